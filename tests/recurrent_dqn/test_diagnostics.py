"""The diagnostics in the logs against slow oracles, and that they change nothing of what is learned."""

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn import diagnostics
from sb3_attn.recurrent_dqn.diagnostics import Diagnostics, delta_q
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork
from tests.helpers.actors import follow, h_inverse, make_actor, think
from tests.helpers.environments import POLICIES, Walk, counters, walks
from tests.helpers.episode_player import EpisodePlayer, make_buffer
from tests.helpers.models import ALGORITHMS, assert_same, make_r2d2, make_rdqn, parameters

KEYS = {"train/q_value", "train/grad_norm", "train/state_norm"}
EPISODE_KEYS = {"rollout/q_value_first", "rollout/discounted_return"}
DELTA_Q_KEYS = {"train/delta_q_first", "train/delta_q_last"}

ATTENTION = dict(hidden_size=6, attention_size=6)
CORES: dict[str, dict[str, Any]] = {
    "lstm": dict(policy_kwargs=dict(core="lstm")),
    "gru": dict(policy_kwargs=dict(core="gru")),
    "quantiles": dict(policy_kwargs=dict(head="quantile")),
    "key_value": dict(policy_kwargs=dict(core="key_value", core_kwargs=dict(hidden_size=6, n_slots=4))),
    "gtrxl": dict(policy_kwargs=dict(core="gtrxl", core_kwargs=dict(hidden_size=8, n_heads=2, memory_length=3))),
    "ntm": dict(policy_kwargs=dict(core="ntm", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4))),
    "dnc": dict(policy_kwargs=dict(core="dnc", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4))),
    "reinforce": dict(
        policy="DARQNPolicy", policy_kwargs=dict(encoder_arch=[], core_kwargs=dict(selection="reinforce", **ATTENTION))
    ),
}


class Rows(KVWriter):
    """Keeps what is logged."""

    def __init__(self, model: RecurrentDQN) -> None:
        self.rows: list[dict[str, Any]] = []
        model.set_logger(Logger(None, [self]))

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def having(self, key: str) -> list[float]:
        return [row[key] for row in self.rows if key in row]


def step_by_step(net: RecurrentQNetwork, observations: Any, state: Any) -> tuple[np.ndarray, Any]:
    """Q-values ``[T, A]`` of one environment's observations ``[T, ...]``, one at a time, and the state after the last."""
    q_values = []
    is_dict = isinstance(observations, dict)
    for t in range(len(next(iter(observations.values())) if is_dict else observations)):
        obs = {k: v[t : t + 1] for k, v in observations.items()} if is_dict else observations[t : t + 1]
        q_values_t, state = net(obs, state)
        q_values.append(q_values_t[0].detach().numpy())
    return np.array(q_values), state


# ---------------------------------------------------------------- episodes


class EpisodeOracle(BaseCallback):
    """Keeps rewards and max_a Q of every step, and computes both numbers of an episode from the lists when it ends."""

    def __init__(self, rows: Rows, value_rescaling: bool, truncation_is_an_end: bool) -> None:
        super().__init__()
        self.rows, self.convert = rows, h_inverse if value_rescaling else float
        self.truncation_is_an_end = truncation_is_an_end
        self.steps: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self.ended: list[tuple[float, float]] = []
        self.expected: list[np.ndarray] = []

    def _on_step(self) -> bool:
        while len(self.expected) < len(self.rows.rows):  # the logs of the step before had all episodes up to it
            self.expected.append(np.mean(self.ended, axis=0) if self.ended else np.full(2, np.nan))
            self.ended = []
        model, gamma = self.model, self.model.gamma
        with th.no_grad():
            obs, _ = model.policy.obs_to_tensor(model._last_obs)
            values = model.q_net(obs, model._step_states[0])[0].numpy().max(axis=1)
        for k, (reward, done) in enumerate(zip(self.locals["rewards"], self.locals["dones"], strict=True)):
            self.steps[k].append((float(reward), self.convert(float(values[k]))))
            if done:
                rewards, maxima = np.array(self.steps.pop(k)).T
                if self.locals["infos"][k]["TimeLimit.truncated"] and not self.truncation_is_an_end:
                    rewards[-1] = maxima[-1]
                self.ended.append((maxima[0], sum(gamma**t * reward for t, reward in enumerate(rewards))))
        return True


@pytest.mark.parametrize(
    "switches",
    [
        {},
        pytest.param(dict(env=walks(3, kind="dict"), policy="MultiInputPolicy"), id="dict"),
        dict(value_rescaling=True),
        dict(replay_buffer_kwargs=dict(handle_timeout_termination=False)),
        pytest.param(dict(env=VecNormalize(walks(2))), id="VecNormalize"),
        CORES["reinforce"],
    ],
    ids=str,
)
def test_values_and_returns_of_episodes_are_those_of_the_whole_lists(switches: dict[str, Any]) -> None:
    model = make_rdqn(**(dict(env=walks(2), gamma=0.9) | switches))
    rows = Rows(model)
    truncation_is_an_end = not model.replay_buffer.handle_timeout_termination
    oracle = EpisodeOracle(rows, model.value_rescaling, truncation_is_an_end)
    model.learn(400, oracle, log_interval=3)
    logged = [[row.get("rollout/q_value_first", np.nan), row.get("rollout/discounted_return", np.nan)] for row in rows.rows]
    assert len(oracle.expected) > 10
    # Two logs within one step: the second has no new episode
    np.testing.assert_allclose(logged[: len(oracle.expected)], oracle.expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_logged_of_episodes_before_one_has_ended() -> None:
    model = make_rdqn(counters(length=1000))
    rows = Rows(model)
    model.learn(40)
    model.dump_logs()
    assert rows.rows[-1].keys() >= KEYS and not rows.rows[-1].keys() & EPISODE_KEYS


def test_a_new_learn_begins_new_episodes() -> None:
    """The rewards of an episode that the end of `learn` cut off belong to no other."""
    model = make_rdqn(counters(length=5, reward=1.0), gamma=0.5)
    rows = Rows(model)
    model.learn(7, log_interval=1)
    model._last_obs = None  # so that the environments are reset
    model.learn(5, log_interval=1)
    assert rows.having("rollout/discounted_return") == [1.9375, 1.9375]


@pytest.mark.parametrize("switches", [{}, dict(value_rescaling=False), dict(envs_per_actor=3)], ids=str)
def test_an_actor_sends_both_numbers_of_its_episodes(switches: dict[str, Any]) -> None:
    model = make_r2d2(n_actors=1, gamma=0.9, **switches)
    actor = make_actor(model)
    trajectories = [actor.collect(9) for _ in range(4)]
    convert = h_inverse if model.value_rescaling else float
    expected = []
    actions = np.concatenate([trajectory.actions for trajectory in trajectories])
    seed = int(np.random.default_rng([*actor.spec.seed, 0]).integers(2**31))
    for k in range(actions.shape[1]):
        steps = follow(Walk(), seed + k, actions[:, k])
        values = [convert(value) for value in greedy_values(model, steps)]
        start = 0
        for t, step in enumerate(steps):
            if not (step.terminated or step.truncated):
                continue
            rewards = [s.reward for s in steps[start : t + 1]]
            if step.truncated:
                rewards[-1] = values[t]
            expected.append((values[start], sum(0.9**i * reward for i, reward in enumerate(rewards))))
            start = t + 1
    sent = [pair for trajectory in trajectories for pair in trajectory.episode_values]
    assert len(sent) > 8
    np.testing.assert_allclose(sorted(sent), sorted(expected), rtol=1e-4, atol=1e-5)


def greedy_values(model: Any, steps: list[Any]) -> list[float]:
    """max_a Q of each step's observation: the largest of the Q-values of all actions."""
    n_actions = model.action_space.n
    return [
        float(max(thoughts[a].q_value for a in range(n_actions)))
        for thoughts in zip(*(think(model, [s._replace(action=a) for s in steps]) for a in range(n_actions)), strict=True)
    ]


@pytest.mark.parametrize("n_actors", [0, 2])
def test_r2d2_logs_the_means_of_what_its_actors_sent(n_actors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_r2d2(n_actors=n_actors)
    rows, sent, expected = Rows(model), [], []
    original = model.diagnostics.add_episodes
    monkeypatch.setattr(
        model.diagnostics, "add_episodes", lambda *pairs: sent.extend(zip(*pairs, strict=True)) or original(*pairs)
    )
    write = rows.write
    rows.write = lambda *args: (expected.append(np.mean(sent, axis=0)), sent.clear(), write(*args))
    model.learn(300, log_interval=3)
    assert len(expected) == len(rows.having("rollout/q_value_first")) > 5
    logged = np.stack((rows.having("rollout/q_value_first"), rows.having("rollout/discounted_return")), axis=1)
    np.testing.assert_allclose(logged, expected)


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize(
    ("name", "value_rescaling"),
    [
        *((name, False) for name in CORES if name != "reinforce"),
        *((name, True) for name in CORES if name not in ("reinforce", "quantiles")),
    ],
)
def test_value_and_state_of_an_update_are_those_of_its_windows_one_by_one(
    name: str, value_rescaling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_rdqn(walks(2), learning_starts=10**6, value_rescaling=value_rescaling, reward_scaling=False, **CORES[name])
    model.learn(120)
    batch = model.replay_buffer.sample(16)
    lengths = batch.mask.sum(dim=0).tolist()
    assert len(set(lengths)) > 1 and set(batch.burn_in_lengths) == {0, 2}
    values, numbers = [], []
    for b, length in enumerate(lengths):
        net, begin = model.q_net, int(batch.burn_in_lengths[b])
        state = net.initial_state(1)
        if not batch.episode_starts[b]:
            state = state._make(field[b : b + 1] for field in batch.core_state)
        _, state = step_by_step(net, batch.burn_in_observations[:begin, b], state)
        q_values, state = step_by_step(net, batch.observations[: length + 1, b], state)
        values += [float(q_values[t, batch.actions[t, b]]) for t in range(length)]
        if length == max(lengths):
            numbers += [f.detach().numpy().ravel() for f, n in zip(state, state._fields, strict=True) if n != "valid"]
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: batch)
    model.train(1, 16)
    model.diagnostics.log_updates(model.logger, model.q_net.core)
    logged = model.logger.name_to_value
    assert logged["train/q_value"] == pytest.approx(
        np.mean([h_inverse(v) for v in values] if value_rescaling else values), rel=1e-4
    )
    assert logged["train/state_norm"] == pytest.approx(np.sqrt(np.mean(np.concatenate(numbers) ** 2)), rel=1e-4)


@pytest.mark.parametrize("name", ["lstm", "reinforce"])
def test_the_gradients_norm_is_that_before_clipping(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    switches: dict[str, Any] = dict(learning_starts=10**6) | CORES[name]
    free, clipped = (make_rdqn(max_grad_norm=limit, **switches).learn(60) for limit in (1e9, 1e-3))
    norms = []

    def kept(model: RecurrentDQN) -> None:
        norms.append(float(np.sqrt(sum((p.grad.numpy().astype(float) ** 2).sum() for p in model.q_net.parameters()))))

    for model in (free, clipped):
        monkeypatch.setattr(model.policy.optimizer, "step", partial(kept, model))
        np.random.seed(0)
        th.manual_seed(0)
        model.train(1, 8)
    assert norms[1] == pytest.approx(1e-3, rel=1e-2)
    for model in (free, clipped):
        model.diagnostics.log_updates(model.logger, model.q_net.core)
        assert model.logger.name_to_value["train/grad_norm"] == pytest.approx(norms[0], rel=1e-4)


def test_log_probabilities_are_not_part_of_the_state() -> None:
    model = make_rdqn(**CORES["reinforce"]).learn(60)
    state = model.q_net.initial_state(4)
    state = state._replace(log_probabilities=state.log_probabilities - 1e6)
    assert diagnostics.state_norm(model.q_net.core, state, th.ones(4, dtype=th.bool)) == 0


def test_the_norms_since_the_last_log_are_averaged() -> None:
    model = make_rdqn(learning_starts=10**6).learn(60)
    kept: list[th.Tensor] = []
    clip = th.nn.utils.clip_grad_norm_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(th.nn.utils, "clip_grad_norm_", lambda *args: kept.append(clip(*args)) or kept[-1])
        model.train(1, 4)
        model.dump_logs()
        rows = Rows(model)
        model.train(1, 4)
        model.train(3, 4)
        model.dump_logs()
    assert len(kept) == 5 and rows.having("train/grad_norm") == pytest.approx([np.mean(kept[1:])], rel=1e-5)
    model.dump_logs()
    assert not rows.rows[-1].keys() & KEYS, "no update since"


def test_the_return_scale_is_logged_where_it_is_used() -> None:
    for reward_scaling in (True, False):
        model = make_rdqn(reward_scaling=reward_scaling)
        rows = Rows(model)
        model.learn(60)
        assert rows.having("train/return_scale")[-1:] == ([model.return_scale.value] if reward_scaling else [])


# ---------------------------------------------------------------- Delta Q


def slow_distances(model: RecurrentDQN, position: int, env_index: int) -> tuple[float, float, float]:
    """Both distances of one window and its largest value, step by step through the ring with a batch of one."""
    buffer, net = model.replay_buffer, model.q_net
    n_past, length = int(buffer.episode_steps[position, env_index]), int(buffer.window_lengths[position, env_index])
    burn_in = model.burn_in_length

    def observed(first: int, n_steps: int) -> Any:
        positions = [(position + first + i) % buffer.buffer_size for i in range(n_steps)]
        assert [buffer.episode_steps[p, env_index] for p in positions] == [n_past + first + i for i in range(n_steps)]
        rings = {key: th.as_tensor(ring[positions, env_index]) for key, ring in buffer._observations.rings.items()}
        return rings if len(rings) > 1 else rings["observation"]

    def unroll(first: int, state: Any) -> np.ndarray:
        return step_by_step(net, observed(first, length - first), state)[0][-length:]

    begin = (position - burn_in) % buffer.buffer_size
    arrays = buffer._core_states.get(np.array([begin]), np.array([env_index]))
    initial = net.initial_state(1)
    trained = unroll(-burn_in, initial._make(map(th.as_tensor, arrays)) if arrays else initial)
    true = unroll(-n_past, initial)
    largest = abs(max(trained[t, a] for t in range(length) for a in range(trained.shape[1])))
    distances = [np.sqrt(((trained[t] - true[t]) ** 2).sum()) for t in (0, length - 1)]
    return distances[0], distances[1], largest


@pytest.mark.parametrize(
    "switches",
    [
        *CORES.values(),
        pytest.param(dict(env=walks(2, kind="dict", longest=20), policy="MultiInputPolicy"), id="dict"),
        dict(stored_state=False),
        dict(sequence_period=1, prioritized_replay=True),
    ],
    ids=str,
)
def test_delta_q_is_that_of_a_plain_loop(switches: dict[str, Any]) -> None:
    model = make_rdqn(**(dict(env=walks(2, longest=20), buffer_size=160, burn_in_length=1, learning_starts=500) | switches))
    model.learn(500)
    buffer = model.replay_buffer
    assert buffer.full.all()
    model.policy.set_training_mode(False)
    with th.no_grad():  # as after many updates
        for parameter in model.q_net.parameters():
            parameter.add_(0.5 * th.randn_like(parameter))
    found, expected, rng = [], [], np.random.default_rng(0)
    for batch_size in (1,) * 15 + (4,) * 5:
        batch, with_past = buffer.sample_with_past(batch_size, 10**6, rng)
        windows = [slow_distances(model, *divmod(int(index), buffer.n_envs)) for index in batch.indices]
        first, last, largest = np.mean(windows, axis=0)
        found.append(delta_q(model.q_net, batch, with_past))
        expected.append((first / largest, last / largest))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.max(expected) > 1e-3


def test_with_the_true_state_delta_q_is_0() -> None:
    model = make_rdqn(walks(2, longest=20), learning_starts=10**6).learn(150)  # nothing learned, so no state is stale
    batch, with_past = model.replay_buffer.sample_with_past(30, 100, np.random.default_rng(0))
    np.testing.assert_allclose(delta_q(model.q_net, batch, with_past), 0.0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_delta_q_leaves_the_networks_mode(training: bool) -> None:
    model = make_rdqn(walks(2, longest=20)).learn(100)
    model.q_net.set_training_mode(training)
    delta_q(model.q_net, *model.replay_buffer.sample_with_past(3, 100, np.random.default_rng(0)))
    assert all(module.training == training for module in model.q_net.modules())


@pytest.mark.parametrize("seed", range(6))
def test_windows_with_a_past_begin_at_the_start_of_their_episodes(seed: int) -> None:
    """Those are drawn that start beyond their burn-in and whose episode is stored from its first step, and no others."""
    rng = np.random.default_rng(seed)
    lengths = dict(trace_length=4, burn_in_length=int(rng.integers(0, 4)), sequence_period=int(rng.integers(1, 5)))
    buffer = make_buffer(80, n_envs=2, **lengths)
    player = EpisodePlayer(buffer, lambda: int(rng.integers(1, 25)), seed=seed)
    max_past = int(rng.choice([10, 1000]))
    for n_steps in (7, 30, 60, 33):
        for _ in range(n_steps):
            player.step()
        expected = set()
        for env_index, episode, start, length in player.expected_windows():
            begin = sum(player.lengths[env_index][:episode])
            is_stored = begin >= sum(player.lengths[env_index]) - buffer.buffer_size
            if buffer.burn_in_length < start <= max_past and is_stored:
                expected.add((env_index, episode, start, length))
        drawn = buffer.sample_with_past(25 * max(len(expected), 1), max_past, rng)
        if drawn is None:
            assert not expected
            continue
        batch, with_past = drawn
        assert player.check(batch) == expected
        for b, (env_index, episode, start) in enumerate(batch.observations[0].numpy().astype(int)):
            past = with_past.burn_in_observations[: with_past.burn_in_lengths[b], b].numpy()
            np.testing.assert_array_equal(past, [(env_index, episode, step) for step in range(start)])
        assert with_past.episode_starts.all() and with_past.core_state == ()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_delta_q_is_measured_now_and_then(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "DELTA_Q_INTERVAL", 15)
    model = ALGORITHMS[name](partial(Walk, longest=20) if "R2D2" in name else walks(2, longest=20))
    rows = Rows(model)
    counts: list[int] = []
    monkeypatch.setattr(diagnostics, "delta_q", lambda *args: counts.append(model._n_updates) or delta_q(*args))
    model.learn(600, log_interval=1)
    assert len(counts) == len(rows.having("train/delta_q_first")) == len(rows.having("train/delta_q_last")) > 2
    assert min(np.diff([0, *counts])) >= 15


def test_windows_without_a_past_have_no_delta_q(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "DELTA_Q_INTERVAL", 1)
    model = make_rdqn(trace_length=None, burn_in_length=0)
    rows = Rows(model)
    model.learn(100, log_interval=1)
    assert rows.having("train/q_value") and not rows.having("train/delta_q_first")


# ---------------------------------------------------------------- all together


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_every_number_is_finite(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "DELTA_Q_INTERVAL", 5)
    env = partial(Walk, kind)
    model = ALGORITHMS[name](env if "R2D2" in name else DummyVecEnv([env] * 2), POLICIES[kind], sequence_period=1)
    rows = Rows(model)
    model.learn(300, log_interval=1)
    assert set().union(*rows.rows) >= KEYS | EPISODE_KEYS | DELTA_Q_KEYS
    assert all(np.isfinite(value) for row in rows.rows for value in row.values())


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(
    "switches",
    [CORES["quantiles"] | dict(value_rescaling=False), CORES["gtrxl"], CORES["reinforce"], dict(prioritized_replay=True)],
    ids=str,
)
def test_learning_is_the_same_without_diagnostics(
    name: str, switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit."""
    monkeypatch.setattr(diagnostics, "DELTA_Q_INTERVAL", 5)

    def learned() -> dict[str, th.Tensor]:
        model = ALGORITHMS[name](sequence_period=1, **switches)
        model.learn(120, log_interval=1)
        assert model._n_updates > 5
        return parameters(model)

    with_diagnostics = learned()
    for method in ("add_step", "add_episodes", "add_update", "log_updates", "log_episodes", "log_delta_q"):
        monkeypatch.setattr(Diagnostics, method, lambda *args, **kwargs: None)
    assert_same(with_diagnostics, learned())
