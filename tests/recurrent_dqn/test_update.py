"""One update of RecurrentDQN: gradients, targets and weights against oracles."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_attn import HardAttentionExtractor, RecurrentDQN
from sb3_attn.common.core_state import state_from_arrays
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork
from sb3_attn.replay import SequenceReplayBufferSamples
from tests.helpers.actors import slow_td_errors
from tests.helpers.environments import counters
from tests.helpers.models import make_rdqn


def darqn(selection: str) -> dict[str, Any]:
    core_kwargs = dict(selection=selection, hidden_size=8, attention_size=8)
    return dict(policy="DARQNPolicy", policy_kwargs=dict(encoder_arch=[], core_kwargs=core_kwargs))


HARD = dict(features_extractor_class=HardAttentionExtractor)
#: Networks by whether they sample in training mode
SAMPLING: dict[str, tuple[bool, dict[str, Any]]] = {
    "reinforce": (True, darqn("reinforce")),
    "straight-through": (True, darqn("straight_through")),
    "hard extractor": (True, dict(policy_kwargs=HARD | dict(features_extractor_kwargs=dict(sample=True)))),
    "hard extractor that does not draw": (False, dict(policy_kwargs=HARD)),
    "soft": (False, darqn("soft")),
    "lstm": (False, {}),
}


def filled(n_collected: int = 60, **kwargs: Any) -> RecurrentDQN:
    """A model whose buffer holds random steps, without an update so far."""
    return make_rdqn(**(dict(learning_starts=10**6, reward_scaling=False) | kwargs)).learn(n_collected)


def gradient(model: RecurrentDQN, batch: SequenceReplayBufferSamples, monkeypatch: pytest.MonkeyPatch) -> th.Tensor:
    """The gradient that train() makes of one batch, all parameters in a row; the parameters stay as they are."""
    kept: list[th.Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: batch)
        patch.setattr(th.nn.utils, "clip_grad_norm_", lambda *args: th.zeros(()))
        patch.setattr(
            model.policy.optimizer,
            "step",
            lambda: kept.append(th.cat([p.grad.flatten() for p in model.q_net.parameters()])),
        )
        model.train(1, 1)
    return kept[0].clone()


def with_targets(model: RecurrentDQN, batch: SequenceReplayBufferSamples, monkeypatch: pytest.MonkeyPatch) -> th.Tensor:
    """The targets ``[T, B]`` that train() computes for a batch."""
    kept: list[th.Tensor] = []
    original = model._targets
    with monkeypatch.context() as patch:
        patch.setattr(model, "_targets", lambda *args: kept.append(original(*args)) or kept[0])
        gradient(model, batch, patch)
    return kept[0].squeeze(-1)


def sample_with_burn_in(model: RecurrentDQN, size: int = 64) -> SequenceReplayBufferSamples:
    batch = model.replay_buffer.sample(size)
    assert batch.burn_in_lengths.min() == 0 and batch.burn_in_lengths.max() == model.burn_in_length
    return batch


def perturb(module: th.nn.Module) -> None:
    with th.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_no_gradient_reaches_a_burn_in_observation(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(policy_kwargs=dict(core=core))
    batch = sample_with_burn_in(model)
    batch.burn_in_observations.requires_grad_()
    batch.observations.requires_grad_()
    changed = batch._replace(burn_in_observations=batch.burn_in_observations + 1.0)
    before = gradient(model, batch, monkeypatch)
    assert batch.observations.grad.abs().sum() > 0
    assert batch.burn_in_observations.grad is None or not batch.burn_in_observations.grad.any()
    # but the burn-in does change the update
    assert not th.equal(before, gradient(model, changed, monkeypatch))


def values_by_hand(net: RecurrentQNetwork, batch: SequenceReplayBufferSamples, b: int) -> th.Tensor:
    """Q-values ``[T + 1, actions]`` of window b, whose past is whole: step by step from the episode's start."""
    state, values = net.initial_state(1), []
    burn_in_length, length = batch.burn_in_lengths[b], int(batch.mask[:, b].sum())
    for obs in [*batch.burn_in_observations[:burn_in_length, b], *batch.observations[: length + 1, b]]:
        with th.no_grad():
            q_values, state = net(obs[None], state)
        values.append(q_values[0])
    return th.stack(values[burn_in_length:])


def test_each_network_burns_in_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: targets by the target network alone, errors (seen as priorities) against the online network alone."""
    model = filled(
        env=counters(length=5), stored_state=False, burn_in_length=5, double_q=False, td_lambda=None, prioritized_replay=True
    )
    perturb(model.q_net_target)
    batch = model.replay_buffer.sample(16)
    assert len(set(batch.burn_in_lengths)) > 1
    priorities: list[np.ndarray] = []
    monkeypatch.setattr(model.replay_buffer, "update_priorities", lambda batch, values: priorities.append(values))
    targets = with_targets(model, batch, monkeypatch)
    for b in range(16):
        mask = batch.mask[:, b]
        next_values = values_by_hand(model.q_net_target, batch, b)[1:].amax(dim=1)
        expected = batch.rewards[mask, b] + 0.99 * (1 - batch.terminations[mask, b]) * next_values
        th.testing.assert_close(targets[mask, b], expected, atol=1e-5, rtol=1e-5)
        chosen = values_by_hand(model.q_net, batch, b)[:-1].gather(1, batch.actions[mask, b, None])[:, 0]
        errors = (expected - chosen).abs()
        assert priorities[0][b] == pytest.approx(float(0.9 * errors.max() + 0.1 * errors.mean()), abs=1e-5)


def test_the_two_networks_burnt_in_differ_when_their_weights_do() -> None:
    model = filled()
    batch = sample_with_burn_in(model)
    online, target = model.q_net.burn_in(batch), model.q_net_target.burn_in(batch)
    assert all(map(th.equal, online, target))
    perturb(model.q_net_target)
    target = model.q_net_target.burn_in(batch)
    has_past = batch.burn_in_lengths > 0
    for mine, theirs in zip(online, target, strict=True):
        assert (mine != theirs)[has_past].any(dim=1).all()
        assert th.equal(mine[~has_past], theirs[~has_past])  # at an episode's start both are the initial state


@pytest.mark.parametrize("stored_state", [True, False])
def test_burn_in_is_a_step_by_step_unroll_from_the_stored_or_the_initial_state(stored_state: bool) -> None:
    model = filled(env=counters(length=12), n_collected=120, stored_state=stored_state)
    batch = model.replay_buffer.sample(64)
    assert (~batch.episode_starts).any() and bool(batch.core_state) == stored_state
    burnt_in = model.q_net.burn_in(batch)
    for b in range(64):
        state = model.q_net.initial_state(1)
        if stored_state and not batch.episode_starts[b]:
            state = state_from_arrays([array[b : b + 1] for array in batch.core_state], like=state)
            assert any(array.any() for array in state)
        for t in range(batch.burn_in_lengths[b]):
            _, state = model.q_net(batch.burn_in_observations[t, b : b + 1], state)
        for field, expected in zip(burnt_in, state, strict=True):
            th.testing.assert_close(field[b : b + 1], expected, atol=1e-6, rtol=1e-5)


def test_a_cue_in_the_first_observation_changes_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(trace_length=None, burn_in_length=0)
    batch = model.replay_buffer.sample(4)
    cued = batch.observations.clone()
    cued[0] += 1.0
    before = with_targets(model, batch, monkeypatch)
    after = with_targets(model, batch._replace(observations=cued), monkeypatch)
    assert (before[:-1] != after[:-1]).all()  # the last step terminates: its target is its reward
    assert th.equal(before[-1], after[-1])


def test_a_cue_before_the_burn_in_reaches_the_targets_through_the_stored_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(env=counters(length=12), n_collected=120, td_lambda=None, double_q=False)
    batch = model.replay_buffer.sample(64)
    before = with_targets(model, batch, monkeypatch)
    zeroed = batch._replace(core_state=tuple(map(th.zeros_like, batch.core_state)))
    changed = before != with_targets(model, zeroed, monkeypatch)
    reached = ~batch.episode_starts & batch.mask & (batch.terminations == 0)  # a terminal target is its reward
    assert reached.any() and changed[reached].float().mean() > 0.9
    assert not changed[batch.mask & ~reached].any()


@pytest.mark.parametrize("switches", [{}, dict(td_lambda=None), dict(value_rescaling=True), dict(double_q=False)], ids=str)
def test_importance_weights_scale_the_gradient(switches: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(prioritized_replay=True, **switches)
    batch = model.replay_buffer.sample(16)
    full = gradient(model, batch._replace(importance_weights=th.ones(16)), monkeypatch)
    halved = gradient(model, batch._replace(importance_weights=th.full((16,), 0.5)), monkeypatch)
    th.testing.assert_close(halved, full / 2)
    # Window by window: the gradient is linear in the weights
    first = th.zeros(16)
    first[0] = 1.0
    alone = gradient(model, batch._replace(importance_weights=first), monkeypatch)
    rest = gradient(model, batch._replace(importance_weights=1 - first), monkeypatch)
    assert alone.any()
    th.testing.assert_close(alone + rest, full, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "switches", [{}, dict(td_lambda=None, n_steps=3), dict(value_rescaling=True), SAMPLING["reinforce"][1]], ids=str
)
def test_the_contents_of_padding_change_nothing(switches: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    # Episodes of 5 steps: windows of 4 and of 1
    model = filled(trace_length=4, burn_in_length=3, prioritized_replay=True, **switches)
    batch = model.replay_buffer.sample(64)
    padding = ~batch.mask
    assert padding.any() and batch.mask.any(dim=0).all()
    observations, burn_in_observations = batch.observations.clone(), batch.burn_in_observations.clone()
    for b in range(64):
        observations[batch.mask[:, b].sum() + 1 :, b] = 9.0
        burn_in_observations[batch.burn_in_lengths[b] :, b] = -9.0
    filled_up = batch._replace(
        observations=observations,
        burn_in_observations=burn_in_observations,
        actions=th.where(padding, 1 - batch.actions, batch.actions),
        rewards=th.where(padding, 100.0, batch.rewards),
        terminations=th.where(padding, 1 - batch.terminations, batch.terminations),
    )
    priorities: list[np.ndarray] = []
    monkeypatch.setattr(model.replay_buffer, "update_priorities", lambda batch, values: priorities.append(values))
    th.manual_seed(0)
    clean = gradient(model, batch, monkeypatch)
    th.manual_seed(0)
    th.testing.assert_close(gradient(model, filled_up, monkeypatch), clean, atol=1e-7, rtol=1e-6)
    np.testing.assert_allclose(priorities[1], priorities[0], rtol=1e-6)


@pytest.mark.parametrize("kind", SAMPLING)
def test_the_amount_of_padding_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(**SAMPLING[kind][1])
    batch = model.replay_buffer.sample(16)
    longer = {
        name: th.cat((array := getattr(batch, name), th.zeros_like(array[:2])))
        for name in ("observations", "actions", "rewards", "terminations", "mask")
    }
    th.manual_seed(0)
    clean = gradient(model, batch, monkeypatch)
    th.manual_seed(0)  # the regions of the padding are sampled last
    th.testing.assert_close(gradient(model, batch._replace(**longer), monkeypatch), clean, atol=1e-7, rtol=1e-6)


def say_everywhere(net: RecurrentQNetwork, value: float) -> None:
    with th.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.q_net[-1].bias[0] = value


RETURNS = [dict(td_lambda=None), dict(td_lambda=None, n_steps=3), dict(td_lambda=0.8), dict(td_lambda=1.0)]


@pytest.mark.parametrize(("double_q", "clipped"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("tolerance", [None, 0.0, 0.2])
def test_traces_are_cut_by_the_values_in_targets(
    tolerance: float | None, double_q: bool, clipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the definition, one window, one step and one reward at a time."""
    arguments = dict(td_lambda=0.8, trace_tolerance=tolerance, double_q=double_q, clipped_double_q=clipped)
    model = filled(env=counters(length=12), n_collected=120, **arguments)
    perturb(model.q_net_target)
    batch = model.replay_buffer.sample(32)
    targets = with_targets(model, batch, monkeypatch)
    with th.no_grad():
        values, target_values = (
            net.unroll(batch.observations, net.burn_in(batch))[0] for net in (model.q_net, model.q_net_target)
        )
    greedy_actions = (values if double_q else target_values).argmax(dim=-1)[1:]
    if clipped:
        assert (values < target_values).any() and (values > target_values).any()
        target_values = th.where(values < target_values, values, target_values)
    q_values, greedy_values = (
        target_values[steps].gather(-1, actions[..., None])[..., 0]
        for steps, actions in ((slice(0, -1), batch.actions), (slice(1, None), greedy_actions))
    )
    starts = th.cat((th.ones_like(batch.mask[:1]), ~batch.mask[1:]))
    rows = (q_values, batch.rewards, model.gamma * (1 - batch.terminations), greedy_values, starts)
    expected = slow_td_errors(*map(np.asarray, rows), td_lambda=0.8, trace_tolerance=tolerance)
    np.testing.assert_allclose((targets - q_values).abs()[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("returns", RETURNS, ids=str)
@pytest.mark.parametrize("truncates", [True, False])
def test_truncation_bootstraps_and_termination_does_not(
    returns: dict, truncates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reward is 1 and every target value 10: at gamma 0.9 the target is 10, except at a termination."""
    model = filled(env=counters(truncates=truncates, reward=1.0), gamma=0.9, clipped_double_q=False, **returns)
    say_everywhere(model.q_net_target, 10.0)
    batch = model.replay_buffer.sample(64)
    targets = with_targets(model, batch, monkeypatch)
    assert bool(batch.terminations.any()) is not truncates
    terminal = batch.terminations == 1
    assert (targets[terminal] == 1.0).all()
    open_ended = batch.mask & ~terminal.any(dim=0)
    th.testing.assert_close(targets[open_ended], th.full_like(targets[open_ended], 10.0))


@pytest.mark.parametrize("returns", RETURNS, ids=str)
def test_value_rescaling_is_undone_before_the_return_and_done_after_it(returns: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, but the networks learn h(10) = sqrt(11) - 1 + 0.01."""
    arguments = dict(gamma=0.9, value_rescaling=True, clipped_double_q=False)
    model = filled(env=counters(truncates=True, reward=1.0), **arguments, **returns)
    say_everywhere(model.q_net_target, 11**0.5 - 0.99)
    batch = model.replay_buffer.sample(64)
    targets = with_targets(model, batch, monkeypatch)[batch.mask]
    th.testing.assert_close(targets, th.full_like(targets, 11**0.5 - 0.99), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("double_q", "clipped", "online_values", "value"),
    [
        (False, False, [1.0, 0.0], 7.0),
        (True, False, [1.0, 0.0], 3.0),
        (True, True, [1.0, 0.0], 1.0),
        (True, True, [5.0, 0.0], 3.0),
    ],
)
def test_targets_are_pinned_by_double_q(
    double_q: bool, clipped: bool, online_values: list[float], value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The online network chooses the action, the target network values it; clipped, the one that values it less."""
    arguments = dict(double_q=double_q, clipped_double_q=clipped)
    model = filled(td_lambda=None, policy_kwargs=dict(dueling=False), **arguments)
    with th.no_grad():
        for net, bias in ((model.q_net, online_values), (model.q_net_target, [3.0, 7.0])):
            for parameter in net.parameters():
                parameter.zero_()
            net.q_net[-1].bias.copy_(th.tensor(bias))
    batch = model.replay_buffer.sample(16)
    expected = batch.rewards + 0.99 * value * (1 - batch.terminations)
    targets = with_targets(model, batch, monkeypatch)
    th.testing.assert_close(targets[batch.mask], expected[batch.mask])


def test_clipped_quantiles_are_all_from_the_network_with_the_smaller_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(td_lambda=None, policy_kwargs=dict(head="quantile", head_kwargs=dict(n_values=3)))
    perturb(model.q_net_target)
    batch = model.replay_buffer.sample(32)
    targets = with_targets(model, batch, monkeypatch)
    with th.no_grad():
        nets = (model.q_net, model.q_net_target)
        online, target = (net.unroll_values(batch.observations, net.burn_in(batch))[0] for net in nets)
    smaller = set()
    for t, b in batch.mask.nonzero().tolist():
        action = online[t + 1, b].mean(dim=0).argmax()
        candidates = [values[t + 1, b, :, action] for values in (online, target)]
        index = int(th.stack(candidates).mean(dim=1).argmin())
        smaller.add(index)
        expected = batch.rewards[t, b] + 0.99 * (1 - batch.terminations[t, b]) * candidates[index]
        th.testing.assert_close(targets[t, b], expected, atol=1e-5, rtol=1e-5)
    assert smaller == {0, 1}


@pytest.mark.parametrize("kind", ["reinforce", "straight-through", "hard extractor"])
@pytest.mark.parametrize(("double_q", "clipped"), [(True, True), (True, False), (False, False)])
def test_next_actions_are_chosen_and_valued_without_sampling(
    kind: str, double_q: bool, clipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: both networks step by step in evaluation mode, as in acting."""
    lengths = dict(env=counters(length=5), n_collected=120, stored_state=False, burn_in_length=5)
    model = filled(**lengths, double_q=double_q, clipped_double_q=clipped, td_lambda=None, **SAMPLING[kind][1])
    for net in (model.q_net, model.q_net_target):
        perturb(net)
    batch = model.replay_buffer.sample(32)
    with th.no_grad():
        model.q_net.set_training_mode(True)
        sampled, _ = model.q_net.unroll(batch.observations, model.q_net.burn_in(batch))
        shift = (sampled[..., 1] - sampled[..., 0]).median()  # so that either action is the better one half of the time
        model.q_net.q_net[-1].bias[-1] -= shift
        sampled[..., 1] -= shift
    targets = with_targets(model, batch, monkeypatch)
    model.q_net.set_training_mode(False)
    n_different = 0
    for b in range(32):
        mask = batch.mask[:, b]
        target_values = values_by_hand(model.q_net_target, batch, b)[1:]
        values = values_by_hand(model.q_net, batch, b)[1:]
        chosen = (values if double_q else target_values).argmax(dim=1)
        n_different += int((sampled[1:, b][mask].argmax(dim=1) != chosen).sum())
        next_values = (target_values.minimum(values) if clipped else target_values).gather(1, chosen[:, None])[:, 0]
        expected = batch.rewards[mask, b] + 0.99 * (1 - batch.terminations[mask, b]) * next_values
        th.testing.assert_close(targets[mask, b], expected, atol=1e-5, rtol=1e-5)
    assert n_different > 0  # so sampled regions would have chosen other actions


@pytest.mark.parametrize("kind", SAMPLING)
@pytest.mark.parametrize("double_q", [True, False])
def test_only_a_network_that_samples_is_unrolled_twice(kind: str, double_q: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, kwargs = SAMPLING[kind]
    model = filled(double_q=double_q, **kwargs)
    modes: list[bool] = []
    unroll = model.q_net.unroll_values
    monkeypatch.setattr(model.q_net, "unroll_values", lambda *args: modes.append(model.q_net.training) or unroll(*args))
    model.train(1, 4)
    assert modes == ([True, False] if samples and double_q else [True])
    assert model.q_net.training and not model.q_net_target.training


def test_modules_are_in_training_mode_only_during_an_update() -> None:
    modes = set()
    model = make_rdqn()
    model.q_net.encoder.register_forward_pre_hook(lambda encoder, inputs: modes.add((len(inputs[0]) == 1, encoder.training)))
    model.learn(60)
    assert modes == {(True, False), (False, True)}


@pytest.mark.parametrize("policy_kwargs", [{}, dict(head="quantile", head_kwargs=dict(n_values=3))], ids=str)
def test_munchausen_targets(policy_kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Vieillard et al. (2020), eq. 2, for each step and quantile by itself; the online network has no part in them."""
    model = filled(munchausen_alpha=0.9, munchausen_temperature=0.5, td_lambda=None, policy_kwargs=policy_kwargs)
    perturb(model.q_net)
    batch = model.replay_buffer.sample(16)
    targets = with_targets(model, batch, monkeypatch)
    with th.no_grad():
        values, _ = model.q_net_target.unroll_values(batch.observations, model.q_net_target.burn_in(batch))
    log_policy = (values.mean(dim=-2) / 0.5).log_softmax(dim=-1)
    for t, b in batch.mask.nonzero().tolist():
        bonus = max(0.5 * float(log_policy[t, b, batch.actions[t, b]]), -1.0)
        policy = log_policy[t + 1, b].exp()
        soft = (policy * (values[t + 1, b] - 0.5 * log_policy[t + 1, b])).sum(dim=-1)  # [N]
        expected = batch.rewards[t, b] + 0.9 * bonus + 0.99 * (1 - batch.terminations[t, b]) * soft
        th.testing.assert_close(targets[t, b].flatten(), expected, atol=1e-5, rtol=1e-5)
