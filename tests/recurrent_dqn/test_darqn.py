"""A memory that attends to the regions of each observation."""

import itertools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_attn import R2D2, DARQNPolicy, RecurrentDQN
from sb3_attn.recurrent_dqn import darqn
from sb3_attn.recurrent_dqn.darqn import AttentionLSTMCore
from tests.helpers.environments import Counter, counters
from tests.helpers.masks import ALONE, MASK_KEYS, REAL, SPACE, B, FiniteUnits, N, batch, check_training_and_loading

RGB = spaces.Box(0, 255, (3, 64, 64), np.uint8)
ENTITIES = spaces.Box(-1.0, 1.0, (6, 3), np.float32)
VECTOR = spaces.Box(-1.0, 1.0, (5,), np.float32)
N_REGIONS, REGION_SIZE = 4, 3
SELECTIONS = ["soft", "straight_through", "reinforce"]
SMALL = dict(hidden_size=8, attention_size=8)


def make_core(n_regions: int = N_REGIONS, **kwargs) -> AttentionLSTMCore:
    th.manual_seed(0)
    return AttentionLSTMCore(n_regions * REGION_SIZE, n_regions, **(SMALL | kwargs)).double()


def test_the_context_is_chosen_by_the_last_output():
    """Against the paper's equations, a step and a region at a time."""
    core = make_core()
    inputs = th.randn(5, 2, N_REGIONS * REGION_SIZE, dtype=th.float64)
    outputs, _ = core.unroll(inputs, core.initial_state(2))
    score, cell = core.attention.score, core.lstm
    for b in range(2):
        state = core.initial_state(1)
        for t in range(5):
            regions = inputs[t, b].reshape(N_REGIONS, REGION_SIZE)
            hidden = [th.tanh(score.key(x) + score.query.weight @ state.hidden[0]) for x in regions]
            scores = th.stack([(score.vector.weight[0] * h).sum() for h in hidden])
            weights = scores.exp() / scores.exp().sum()
            context = sum(w * x for w, x in zip(weights, regions, strict=True))
            _, (hidden, cell_state) = cell(context.unsqueeze(0), state[:2])
            state = state._replace(hidden=hidden, cell=cell_state)
            th.testing.assert_close(outputs[t, b], state.hidden[0])


@pytest.mark.parametrize("score", ["additive", "bilinear", "dot_product"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_attention_depends_on_the_memory(score, selection):
    core = make_core(score=score, selection=selection).eval()
    inputs = th.randn(50, N_REGIONS * REGION_SIZE, dtype=th.float64)
    _, weights = core.attend(inputs, core.initial_state(50))
    state = core.initial_state(50)._replace(hidden=5 * th.randn(50, 8, dtype=th.float64))
    _, other = core.attend(inputs, state)
    assert weights.shape == (50, 1, N_REGIONS)
    th.testing.assert_close(weights.sum(dim=-1), th.ones(50, 1, dtype=th.float64))
    assert not th.allclose(weights, other)


def test_the_policy_has_an_alias() -> None:
    kwargs = dict(buffer_size=200, policy_kwargs=dict(core_kwargs=SMALL), device="cpu")
    model = RecurrentDQN("DARQNPolicy", DummyVecEnv([lambda: Counter(space=ENTITIES)]), **kwargs)
    assert type(model.policy) is DARQNPolicy


@pytest.mark.parametrize(
    "given",
    [dict(core="gru"), dict(encoder_arch=[32]), dict(skip_connection=True), dict(features_extractor_class=FlattenExtractor)],
    ids=str,
)
@pytest.mark.parametrize("algorithm", [RecurrentDQN, R2D2])
def test_arguments_that_the_policy_sets_itself_are_refused_but_old_zips_load(algorithm, given, monkeypatch, tmp_path) -> None:
    env = DummyVecEnv([lambda: Counter(space=ENTITIES)])
    kwargs = dict(buffer_size=200, policy_kwargs=dict(core_kwargs=SMALL, **given), device="cpu")
    with pytest.raises(ValueError, match=rf"policy_kwargs has .*DARQNPolicy sets \['{next(iter(given))}'\] itself; leave"):
        algorithm("DARQNPolicy", env, **kwargs)
    with monkeypatch.context() as earlier:
        earlier.setattr(algorithm, "_check_new_model", lambda self: None)
        algorithm("DARQNPolicy", env, **kwargs).save(tmp_path / "model")
    assert type(algorithm.load(tmp_path / "model", device="cpu").q_net.core) is AttentionLSTMCore


@pytest.mark.parametrize("space", [RGB, ENTITIES, VECTOR, spaces.Dict(a=VECTOR, b=ENTITIES)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_policy_that_attends_trains_saves_and_loads(space, selection, tmp_path):
    env = DummyVecEnv([lambda: Counter(space=space)])
    model = RecurrentDQN(
        DARQNPolicy,
        env,
        learning_starts=10,
        buffer_size=200,
        trace_length=3,
        burn_in_length=2,
        batch_size=4,
        policy_kwargs=dict(core_kwargs=dict(selection=selection, **SMALL)),
        device="cpu",
        seed=0,
    )
    before = [parameter.clone() for parameter in model.q_net.core.parameters()]
    model.learn(40)
    unchanged = [th.equal(old, new) for old, new in zip(before, model.q_net.core.parameters(), strict=True)]
    assert sum(unchanged) <= 1  # the bias that moves all scores alike
    model.save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=env)
    obs = env.reset()
    action, state = model.predict(obs, deterministic=True)
    loaded_action, loaded_state = loaded.predict(obs, deterministic=True)
    assert action == loaded_action
    assert all(map(np.array_equal, state, loaded_state))
    evaluate_policy(loaded, VecMonitor(env), n_eval_episodes=2)


@pytest.mark.parametrize("lengths", [(2, 2), (2, 1), (1, 2)])
def test_the_gradient_of_sampled_regions_is_unbiased(lengths, monkeypatch):
    """All regions of two windows enumerated: the mean gradient of the surrogate is the gradient of the mean loss."""
    core = make_core(n_regions=2, selection="reinforce").train()
    inputs = th.randn(3, 2, 2 * REGION_SIZE, dtype=th.float64)
    readout = th.randn(3, 2, 8, dtype=th.float64)
    mask = th.arange(2)[:, None] < th.tensor(lengths)
    parameters = list(core.parameters())

    mean_loss, mean_gradient = 0.0, [th.zeros_like(p) for p in parameters]
    for path in itertools.product([0, 1], repeat=6):  # three steps of two windows
        picks = iter(th.tensor(path).view(3, 2, 1))
        monkeypatch.setattr(darqn, "sample_categorical", lambda weights, picks=picks: next(picks))
        outputs, state = core.unroll(inputs, core.initial_state(2))
        # A step's loss depends on the regions of this step and of those before
        step_losses = th.where(mask, (outputs * readout).sum(dim=-1).cumsum(dim=0).square()[:2], 0.0)
        probability = state.log_probabilities.sum().exp()
        mean_loss = mean_loss + probability * step_losses.sum()
        surrogate = core.surrogate_loss(step_losses.detach(), mask, state)
        gradient = th.autograd.grad(step_losses.sum() + surrogate, parameters, retain_graph=True)
        for total, part in zip(mean_gradient, gradient, strict=True):
            total += probability.detach() * part
    expected = th.autograd.grad(mean_loss, parameters)
    assert any(g.abs().max() > 1e-3 for g in expected)
    for mine, theirs in zip(mean_gradient, expected, strict=True):
        th.testing.assert_close(mine, theirs)


def test_a_region_answers_for_the_losses_of_its_own_step_and_later_ones():
    """Number by number; one window is longer than the others."""
    lengths = [2, 5, 4, 2]
    core, losses = make_core(selection="reinforce"), th.rand(5, 4, dtype=th.float64)
    mask = th.arange(5)[:, None] < th.tensor(lengths)
    log_probabilities = th.rand(4, 7, dtype=th.float64, requires_grad=True)  # a 0, then one for each of six observations
    state = core.initial_state(4)._replace(log_probabilities=log_probabilities)
    core.surrogate_loss(th.where(mask, losses, 0.0), mask, state).backward()
    for b, length in enumerate(lengths):
        for t in range(6):
            expected = 0.0
            for k in range(t, length):
                others = [losses[k, c].item() for c in range(4) if c != b and k < lengths[c]]
                expected += losses[k, b].item() - (sum(others) / len(others) if others else 0.0)
            assert log_probabilities.grad[b, 1 + t].item() == pytest.approx(expected), (b, t)


def test_regions_are_recorded_only_where_they_can_learn():
    core = make_core(selection="reinforce").train()
    inputs = th.randn(5, 3, N_REGIONS * REGION_SIZE, dtype=th.float64)
    with th.no_grad():
        _, burnt_in = core.unroll(inputs, core.initial_state(3))
    assert burnt_in.log_probabilities.shape == (3,) and not burnt_in.log_probabilities.any()
    _, state = core.unroll(inputs, burnt_in)
    assert state.log_probabilities.shape == (3, 6) and (state.log_probabilities < 0).equal(th.arange(6).expand(3, -1) > 0)
    _, state = core.eval().unroll(inputs, burnt_in)
    assert state.log_probabilities.shape == (3,)


def test_probabilities_of_paths_sum_to_one(monkeypatch):
    core = make_core(selection="reinforce").train()
    inputs = th.randn(2, 1, N_REGIONS * REGION_SIZE, dtype=th.float64)
    total = 0.0
    for path in itertools.product(range(N_REGIONS), repeat=2):
        picks = iter(path)
        monkeypatch.setattr(darqn, "sample_categorical", lambda weights, picks=picks: th.tensor([[next(picks)]]))
        total += core.unroll(inputs, core.initial_state(1))[1].log_probabilities.sum().exp().item()
    assert total == pytest.approx(1.0)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_evaluation_does_not_sample_regions(selection):
    core = make_core(selection=selection).eval()
    inputs = th.randn(5, 3, N_REGIONS * REGION_SIZE, dtype=th.float64)
    first, state = core.unroll(inputs, core.initial_state(3))
    second, _ = core.unroll(inputs, core.initial_state(3))
    assert th.equal(first, second) and not state.log_probabilities.any()


def test_sampled_regions_have_no_gradient_through_the_burn_in():
    arguments = dict(core_kwargs=dict(selection="reinforce"), burn_in_gradient=True)
    with pytest.raises(ValueError, match=r"burn_in_gradient=True does not fit .*reinforce"):
        RecurrentDQN("DARQNPolicy", counters(), policy_kwargs=arguments)


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="selection='argmax' is unknown"):
        make_core(selection="argmax")


def test_regions_that_do_not_divide_the_input_are_refused():
    with pytest.raises(ValueError, match="n_regions=5 does not divide the 12 inputs"):
        AttentionLSTMCore(12, 5)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_memory_that_attends_takes_masks(selection, tmp_path):
    policy_kwargs = dict(features_extractor_kwargs=dict(mask_keys=MASK_KEYS), core_kwargs=dict(selection=selection, **SMALL))
    lengths = dict(trace_length=3, burn_in_length=2, batch_size=4, learning_starts=8, buffer_size=100)
    model = RecurrentDQN(DARQNPolicy, FiniteUnits(), policy_kwargs=policy_kwargs, device="cpu", seed=0, **lengths)
    check_training_and_loading(model, tmp_path)


@pytest.mark.parametrize("space", [SPACE, ALONE], ids=["with others", "alone"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_memory_never_looks_at_padding(selection, space):
    """Nor in training mode, where regions are drawn."""
    policy = DARQNPolicy(
        space,
        spaces.Discrete(2),
        lambda _: 1e-3,
        features_extractor_kwargs=dict(mask_keys=MASK_KEYS),
        core_kwargs=dict(selection=selection, **SMALL),
    )
    network, observations, results = policy.q_net.train(), batch(space), []
    for content in (0.0, float("nan")):
        units = th.where(REAL.unsqueeze(-1), observations["units"], content)
        inputs = network.features_extractor({**observations, "units": units})
        th.manual_seed(0)
        outputs, state = network.core.unroll(th.stack((inputs, inputs)), network.initial_state(B))
        _, weights = network.core.attend(inputs, state)
        network.zero_grad()
        losses = th.arange(float(B)).unsqueeze(0)
        (outputs.sum() + network.core.surrogate_loss(losses, losses >= 0, state)).backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        results.append([outputs, state.log_probabilities, weights, *gradients])
    assert all(map(th.equal, *results)) and all(tensor.isfinite().all() for tensor in results[0])
    assert (weights[:, 0, -N:][~REAL] == 0).all()
