"""An update of RecurrentDQN, sampling and optimizer included, against the bare fused LSTM: CartPole without velocities."""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch as th
from torch import nn

from benchmarks.environments import MaskedCartPole
from benchmarks.peers import sizes
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, ratio
from sb3_attn import RecurrentDQN
from sb3_attn.common.bfloat16 import bfloat16_if

#: The layers between the LSTM and the Q-values. Tianshou has a linear layer; our default is a hidden layer, which also sees
#: the LSTM's inputs, and two streams.
HEADS: dict[str, dict[str, Any]] = {"linear": dict(net_arch=[], dueling=False, skip_connection=False), "default": {}}

#: Size of the LSTM, the comparison's or R2D2's, and head
CASES = ((sizes.HIDDEN_SIZE, "linear"), (sizes.HIDDEN_SIZE, "default"), (512, "default"))


def settings(options: Options) -> Settings:
    """A variant for each size and head, one in bfloat16 for each size, and two for the parts of an update in bfloat16."""
    variants: Settings = {}
    for hidden_size, head in CASES:
        variants[f"LSTM {hidden_size}, {head} head"] = {"hidden_size": hidden_size, "head": head}
    for hidden_size in (64, sizes.HIDDEN_SIZE, 256, 512):
        variants[f"LSTM {hidden_size}, default head, bf16"] = {"hidden_size": hidden_size, "head": "default", "bf16": True}
    for hidden_size in (sizes.HIDDEN_SIZE, 512):
        variants[f"parts in bf16, LSTM {hidden_size}"] = {"hidden_size": hidden_size}
    return {name: {**settings, "rounds": options.scaled(300)} for name, settings in variants.items()}


def dqn_arguments() -> dict[str, Any]:
    """Arguments of any DQN in the comparison."""
    return dict(
        learning_rate=sizes.LEARNING_RATE,
        buffer_size=sizes.BUFFER_SIZE,
        learning_starts=sizes.WARM_UP_STEPS,
        batch_size=sizes.BATCH_SIZE,
        train_freq=sizes.STEPS_PER_UPDATE,
        target_update_interval=sizes.UPDATES_PER_TARGET * sizes.STEPS_PER_UPDATE,
        exploration_initial_eps=sizes.EPSILON,
        exploration_final_eps=sizes.EPSILON,
    )


def make_model(
    full_windows: bool, head: str, seed: int, hidden_size: int = sizes.HIDDEN_SIZE, bf16: bool = False
) -> RecurrentDQN:
    """The agent to measure, with the sizes of the comparison and otherwise the constructor's defaults."""
    core: dict[str, Any] = dict(core="lstm", core_kwargs=dict(hidden_size=hidden_size, bf16=bf16))
    return RecurrentDQN(
        "MlpPolicy",
        MaskedCartPole(full_windows),
        **dqn_arguments(),
        trace_length=sizes.TRACE,
        burn_in_length=sizes.BURN_IN,
        policy_kwargs=dict(**core, encoder_arch=[sizes.INPUT_SIZE], **HEADS[head]),
        seed=seed,
        device="cpu",
    )


def make_update(*arguments: Any) -> Callable[[], None]:
    """An update of the agent that :func:`make_model` makes of these arguments, with full windows."""
    model = make_model(True, *arguments)
    model.learn(sizes.WARM_UP_STEPS)  # two episodes in the replay; no window is shorter than the lengths above
    return partial(model.train, 1, sizes.BATCH_SIZE)


def bare_lstm_update(hidden_size: int, bf16: bool = False) -> Callable[[], None]:
    """The part that no update of these sizes can do without: burn-in and unroll of two LSTMs, and the gradient of one."""
    online, target = nn.LSTM(sizes.INPUT_SIZE, hidden_size), nn.LSTM(sizes.INPUT_SIZE, hidden_size)
    past = th.randn(sizes.BURN_IN, sizes.BATCH_SIZE, sizes.INPUT_SIZE)
    # One step more than is trained, for the targets; with a gradient, since there is an encoder before the LSTM
    trained = th.randn(sizes.TRACE + 1, sizes.BATCH_SIZE, sizes.INPUT_SIZE, requires_grad=True)
    gradient = th.randn(sizes.TRACE + 1, sizes.BATCH_SIZE, hidden_size)

    def update() -> None:
        with bfloat16_if(bf16, past.device):
            with th.no_grad():
                _, online_state = online(past)
                _, target_state = target(past)
                target(trained, target_state)
            outputs, _ = online(trained, online_state)
        online.zero_grad()
        trained.grad = None
        outputs.float().backward(gradient)

    return update


def measure(context: Context, hidden_size: int, rounds: int, head: str | None = None, bf16: bool = False) -> dict[str, Any]:
    """
    Measure the sides in turn: an update, the bare LSTM in float32 and, for bfloat16, the same update in float32.

    Without ``head``, the sides are the bare LSTM in float32 and in bfloat16, and updates in bfloat16 with each head. Returns
    the milliseconds of each, and the ratios of the update to the others, or of all to the LSTM in float32.
    """
    sides = {"lstm": bare_lstm_update(hidden_size)}
    if head is None:
        sides["bare nn.LSTM"] = bare_lstm_update(hidden_size, True)
        sides |= {f"update, {name} head": make_update(name, context.seed, hidden_size, True) for name in HEADS}
    else:
        sides["update"] = make_update(head, context.seed, hidden_size, bf16)
        if bf16:
            sides["float32"] = make_update(head, context.seed, hidden_size)
    times = in_turn({name: cpu_milliseconds(side) for name, side in sides.items()}, rounds, warm_up=10)
    if head is None:
        ratios = {name: ratio(times[name], times["lstm"]) for name in sides}
        return {"milliseconds": medians(times), "ratios": ratios, "rounds": times}
    result = {"milliseconds": medians(times), "ratio": ratio(times["update"], times["lstm"]), "rounds": times}
    return result | ({"ratio_to_float32": ratio(times["update"], times["float32"])} if bf16 else {})


def rows(variants: Variants) -> Iterator[Row]:
    """A size and head a row, and another for bfloat16 against float32; and a row for each of the parts."""
    for name, runs in variants.items():
        times = {side: f"{median(values(runs, 'milliseconds', side)):.1f} ms" for side in runs[0].result["milliseconds"]}
        limit = "limit: bare nn.LSTM, float32"
        if "ratios" in runs[0].result:
            for side in list(times)[1:]:
                share = median(values(runs, "ratios", side))
                yield compared(f"{name}: {side}", times[side], limit, times["lstm"], share)
            continue
        share = median(values(runs, "ratio"))
        yield compared(f"update, {name}", times["update"], limit, times["lstm"], share)
        if runs[0].settings.get("bf16"):
            share = median(values(runs, "ratio_to_float32"))
            yield compared(f"update, {name}", times["update"], "ours in float32", times["float32"], share)


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
