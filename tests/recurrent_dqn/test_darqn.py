"""A memory that attends to the regions of each observation."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from toys import Counter

from sb3_attn import DARQNPolicy, RecurrentDQN
from sb3_attn.recurrent_dqn.darqn import AttentionLSTMCore

RGB = spaces.Box(0, 255, (3, 64, 64), np.uint8)
ENTITIES = spaces.Box(-1.0, 1.0, (6, 3), np.float32)
VECTOR = spaces.Box(-1.0, 1.0, (5,), np.float32)
N_REGIONS, REGION_SIZE = 4, 3
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
            _, state = cell(context.unsqueeze(0), state)
            th.testing.assert_close(outputs[t, b], state.hidden[0])


@pytest.mark.parametrize("score", ["additive", "bilinear", "dot_product"])
@pytest.mark.parametrize("hard", [False, True])
def test_weights_depend_on_the_memory(score, hard):
    core = make_core(score=score, hard=hard).eval()
    inputs = th.randn(50, N_REGIONS * REGION_SIZE, dtype=th.float64)
    _, weights = core.attend(inputs, core.initial_state(50))
    state = core.initial_state(50)._replace(hidden=5 * th.randn(50, 8, dtype=th.float64))
    _, other = core.attend(inputs, state)
    assert weights.shape == (50, 1, N_REGIONS)
    th.testing.assert_close(weights.sum(dim=-1), th.ones(50, 1, dtype=th.float64))
    assert not th.allclose(weights, other)


@pytest.mark.parametrize("space", [RGB, ENTITIES, VECTOR, spaces.Dict(a=VECTOR, b=ENTITIES)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("hard", [False, True])
def test_it_trains_saves_and_loads(space, hard, tmp_path):
    env = DummyVecEnv([lambda: Counter(space=space)])
    model = RecurrentDQN(
        DARQNPolicy,
        env,
        learning_starts=10,
        buffer_size=200,
        trace_length=3,
        burn_in_length=2,
        batch_size=4,
        policy_kwargs=dict(core_kwargs=dict(hard=hard, **SMALL)),
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


def test_regions_that_do_not_divide_the_input_are_refused():
    with pytest.raises(ValueError, match="n_regions=5 does not divide the 12 inputs"):
        AttentionLSTMCore(12, 5)
