"""A memory that attends to the regions of each observation."""

import itertools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_attn import DARQNPolicy, RecurrentDQN
from sb3_attn.recurrent_dqn import darqn
from sb3_attn.recurrent_dqn.darqn import AttentionLSTMCore
from tests.helpers.environments import Counter
from tests.helpers.masks import ALONE, MASK_KEYS, REAL, SPACE, B, FiniteUnits, N, batch, check_training_and_loading

RGB = spaces.Box(0, 255, (3, 64, 64), np.uint8)
ENTITIES = spaces.Box(-1.0, 1.0, (6, 3), np.float32)
VECTOR = spaces.Box(-1.0, 1.0, (5,), np.float32)
N_REGIONS, REGION_SIZE = 4, 3
SELECTIONS = ["soft", "straight_through", "reinforce"]
SMALL = dict(hidden_size=8, attention_size=8)


def make_core(**kwargs) -> AttentionLSTMCore:
    th.manual_seed(0)
    return AttentionLSTMCore(N_REGIONS * REGION_SIZE, N_REGIONS, **(SMALL | kwargs)).double()


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
    kwargs = dict(buffer_size=100, policy_kwargs=dict(core_kwargs=SMALL), device="cpu")
    model = RecurrentDQN("DARQNPolicy", DummyVecEnv([lambda: Counter(space=ENTITIES)]), **kwargs)
    assert type(model.policy) is DARQNPolicy


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


def test_the_gradient_of_drawn_regions_is_unbiased(monkeypatch):
    """All regions enumerated: the mean gradient of the surrogate is the gradient of the mean loss."""
    core = make_core(selection="reinforce").train()
    inputs = th.randn(3, 1, N_REGIONS * REGION_SIZE, dtype=th.float64)  # 3 steps of one row: 64 paths
    readout = th.randn(3, 8, dtype=th.float64)
    parameters = list(core.parameters())

    def unroll(path):
        """The loss of a path, and the state after it."""
        picks = iter(path)
        monkeypatch.setattr(darqn, "sample_categorical", lambda weights: th.tensor([[next(picks)]]))
        outputs, state = core.unroll(inputs, core.initial_state(1))
        return (outputs[:, 0] * readout).sum().square(), state

    mean_loss, mean_gradient = 0.0, [th.zeros_like(p) for p in parameters]
    for path in itertools.product(range(N_REGIONS), repeat=3):
        loss, state = unroll(path)
        probability = state.log_probability[0].exp()
        mean_loss = mean_loss + probability * loss
        # Two rows with the same path, the other's loss being any number: it is the baseline, and must not matter
        losses = th.stack((loss.detach(), th.tensor(7.0, dtype=th.float64)))
        surrogate = core.surrogate_loss(losses, state._replace(log_probability=th.cat((state.log_probability, th.zeros(1)))))
        gradient = th.autograd.grad(loss + surrogate, parameters, retain_graph=True)
        for total, part in zip(mean_gradient, gradient, strict=True):
            total += probability.detach() * part
    expected = th.autograd.grad(mean_loss, parameters)
    assert any(g.abs().max() > 1e-3 for g in expected)
    for mine, theirs in zip(mean_gradient, expected, strict=True):
        th.testing.assert_close(mine, theirs)


def test_probabilities_of_paths_sum_to_one(monkeypatch):
    core = make_core(selection="reinforce").train()
    inputs = th.randn(2, 1, N_REGIONS * REGION_SIZE, dtype=th.float64)
    total = 0.0
    for path in itertools.product(range(N_REGIONS), repeat=2):
        picks = iter(path)
        monkeypatch.setattr(darqn, "sample_categorical", lambda weights, picks=picks: th.tensor([[next(picks)]]))
        total += core.unroll(inputs, core.initial_state(1))[1].log_probability.exp().item()
    assert total == pytest.approx(1.0)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_evaluation_does_not_sample_regions(selection):
    core = make_core(selection=selection).eval()
    inputs = th.randn(5, 3, N_REGIONS * REGION_SIZE, dtype=th.float64)
    first, state = core.unroll(inputs, core.initial_state(3))
    second, _ = core.unroll(inputs, core.initial_state(3))
    assert th.equal(first, second) and not state.log_probability.any()


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
        outputs, state = network.core(inputs, network.initial_state(B))
        _, weights = network.core.attend(inputs, state)
        network.zero_grad()
        (outputs.sum() + network.core.surrogate_loss(th.arange(float(B)), state)).backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        results.append([outputs, state.log_probability, weights, *gradients])
    assert all(map(th.equal, *results)) and all(tensor.isfinite().all() for tensor in results[0])
    assert (weights[:, 0, -N:][~REAL] == 0).all()
