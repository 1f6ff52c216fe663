"""MultiDiscrete actions: the same as the Discrete actions of all combinations, whose values are sums over components."""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked_policy
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import MaskableDQN
from sb3_attn.envs import FinalActionMasks
from sb3_attn.recurrent_dqn.components import ActionCombinations, ActionComponents
from sb3_attn.recurrent_dqn.heads import make_head
from sb3_attn.replay.observation_store import MASKS_KEY
from sb3_attn.viz.occlusion import action_scores
from tests.algorithms.test_arguments import Acting
from tests.helpers.actors import make_actor
from tests.helpers.environments import Choices, MaskedWalk, valid_actions
from tests.helpers.models import Make, make_r2d2, make_rdqn

SPACE = Choices().action_space
SIZES = [3, 2]
COMBINATIONS = list(product(range(3), range(2)))
QUANTILES: dict[str, Any] = dict(head="quantile", head_kwargs=dict(n_values=4))
ALL_RANDOM, GREEDY = ({"exploration_initial_eps": e, "exploration_final_eps": e} for e in (1.0, 0.0))


#: Values of components, or of combinations
LAYOUTS: dict[str, Any] = {"components": {"max_combinations": 0}, "combinations": {}}
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def choices(n_envs: int = 2) -> DummyVecEnv:
    MaskedWalk.n_invalid = 0
    return DummyVecEnv([Choices] * n_envs)


# ---------------------------------------------------------------- against the Discrete actions of all combinations


def values_of_combinations(values: th.Tensor) -> th.Tensor:
    """From parts ``[..., 5]`` to the values of the combinations ``[..., 6]``."""
    return th.stack([values[..., a] + values[..., 3 + b] for a, b in COMBINATIONS], dim=-1)


def masks_of_combinations(masks: th.Tensor) -> th.Tensor:
    return th.stack([masks[..., a] & masks[..., 3 + b] for a, b in COMBINATIONS], dim=-1)


def numbers_of_combinations(actions: Any) -> Any:
    return 2 * actions[..., 0] + actions[..., 1]


def test_the_best_actions() -> None:
    q_values = th.randn(50, 5, generator=th.Generator().manual_seed(0))
    q_of_combinations = values_of_combinations(q_values)
    expected = q_of_combinations.max(dim=-1)
    for components, values in ((ActionComponents(SPACE), q_values), (ActionCombinations(SPACE), q_of_combinations)):
        best, actions = components.best(values)
        assert actions.shape == (50, 2)
        assert th.equal(numbers_of_combinations(actions), expected.indices)
        th.testing.assert_close(best, expected.values)


@pytest.mark.parametrize(("n_choices", "sizes"), [([2, 2, 4], [16]), ([17, 1], [17, 1]), ([3] * 50, [3] * 50)], ids=str)
def test_many_combinations_have_no_values_of_their_own(n_choices: list[int], sizes: list[int]) -> None:
    space = spaces.MultiDiscrete(n_choices)
    assert make_rdqn(DummyVecEnv([lambda: Acting(space)])).q_net.components.sizes == sizes


@pytest.mark.parametrize("head", ["expected", "quantile"])
@pytest.mark.parametrize(
    "kind",
    [
        {"td_lambda": None, "n_steps": 3},
        {"td_lambda": 0.8, "trace_tolerance": 0.0},
        {"td_lambda": 0.8, "trace_tolerance": 0.5},
        {"td_lambda": None, "munchausen_alpha": 0.9, "munchausen_temperature": 0.5},
        {"td_lambda": None, "munchausen_alpha": 0.9, "munchausen_temperature": 0.05},
        {"td_lambda": None, "double_q": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("use_masking", [True, False])
def test_targets_are_those_of_the_combinations(head: str, kind: dict[str, Any], use_masking: bool) -> None:
    """Which ``test_action_masks.py`` compares with loops over actions."""
    policy_kwargs = QUANTILES if head == "quantile" else {}
    model = make_rdqn(
        choices(), learning_starts=10**6, reward_scaling=False, use_masking=use_masking, policy_kwargs=policy_kwargs, **kind
    ).learn(100)
    batch = model.replay_buffer.sample(40)
    shape = (*batch.observations.shape[:2], 4 if head == "quantile" else 1, 5)
    online, target = th.randn(2, *shape, generator=th.Generator().manual_seed(0)).unbind()
    flat_values = values_of_combinations(online), values_of_combinations(target)
    of_combinations = model._targets(batch, *flat_values)
    model.q_net.components = ActionComponents(SPACE)
    of_components = model._targets(batch, online, target)
    model.q_net.components = ActionComponents(spaces.Discrete(6))
    masks = None if batch.action_masks is None else masks_of_combinations(batch.action_masks)
    flat_batch = batch._replace(actions=numbers_of_combinations(batch.actions), action_masks=masks)
    expected = model._targets(flat_batch, *flat_values)[batch.mask]
    assert th.equal(of_combinations[batch.mask], expected)
    th.testing.assert_close(of_components[batch.mask], expected)


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("head", ["expected", "quantile"])
def test_the_value_of_an_action_is_the_mean_of_values_of_its_components(head: str, dueling: bool) -> None:
    """Tavakoli et al. (2018), eq. 1, for each component, in each block of the last layer; eq. 6 for the mean."""
    module = make_head(head, 6, SIZES, [8], th.nn.ReLU, dueling, {"n_values": 4} if head == "quantile" else None)
    module.running_scale.fill_(3.0)
    latent = th.randn(7, 6)
    outputs = latent
    for layer in module:
        outputs = layer(outputs)
    outputs = outputs.reshape(7, module.n_values, -1)
    v, first, second = (outputs if dueling else th.nn.functional.pad(outputs, (1, 0))).split([1, 3, 2], dim=-1)
    if dueling:
        first, second = first - first.mean(dim=-1, keepdim=True), second - second.mean(dim=-1, keepdim=True)
    expected = th.stack([3 * v[..., 0] + 3 * (first[..., a] + second[..., b]) / 2 for a, b in COMBINATIONS], dim=-1)
    th.testing.assert_close(values_of_combinations(module(latent)), expected)


def test_one_component_is_a_discrete_action() -> None:
    """Bit for bit, but for the axis of components."""

    class One(MaskedWalk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.MultiDiscrete([3])

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return super().step(action[0])

    kwargs = dict(learning_starts=0, munchausen_alpha=0.9, **GREEDY)
    one, discrete = (make_rdqn(DummyVecEnv([env] * 2), **kwargs).learn(150) for env in (One, MaskedWalk))
    np.testing.assert_array_equal(one.replay_buffer.actions, discrete.replay_buffer.actions)
    for mine, reference in zip(one.policy.parameters(), discrete.policy.parameters(), strict=True):
        assert th.equal(mine, reference)


# ---------------------------------------------------------------- acting


@pytest.mark.parametrize(
    ("exploration", "layout"),
    [({}, "components"), (ALL_RANDOM, "combinations"), (GREEDY, "combinations"), ({"per_env_epsilons": True}, "components")],
)
@pytest.mark.parametrize("use_masking", [True, False])
def test_the_replay_has_the_actions_and_valid_ones_are_taken(
    make: Make, exploration: dict[str, Any], use_masking: bool, layout: str
) -> None:
    kwargs = {"per_env_epsilons": False, "policy_kwargs": LAYOUTS[layout]} | exploration
    model = make(choices(), use_masking=use_masking, **kwargs).learn(200)
    model.replay_buffer.check_valid()
    n_steps = model.replay_buffer.size()
    taken, obs = model.replay_buffer.actions[:n_steps], model.replay_buffer.observations[:n_steps]
    assert taken.shape == (n_steps, model.n_replay_envs, 2)
    valid = np.take_along_axis(valid_actions(obs), taken[..., :1], axis=-1)
    assert valid.all() == use_masking == (MaskedWalk.n_invalid == 0)
    if exploration is not GREEDY:
        assert {tuple(action) for action in taken.reshape(-1, 2)} == set(COMBINATIONS)
        rewards = model.replay_buffer.rewards[:n_steps]  # noise, and the sum of the components that were taken
        assert np.corrcoef(rewards.ravel(), taken.sum(axis=-1).ravel())[0, 1] > 0.3
    batch = model.replay_buffer.sample(5)
    assert batch.actions.shape == (*batch.mask.shape, 2)


def test_a_component_without_a_valid_choice_is_refused(make: Make) -> None:
    class Stuck(Choices):
        def action_masks(self) -> np.ndarray:
            return np.array([True, True, True, False, False])

    with pytest.raises(ValueError, match=r"action_masks\(\) of environment 0 has no valid choice of component 1 (at|of)"):
        make(DummyVecEnv([Stuck])).learn(50)
    model = make_rdqn(choices())
    with pytest.raises(ValueError, match="has no valid choice of component 0 in row 1; leave one valid"):
        model.predict(np.zeros((2, 3)), action_masks=[[True] * 5, [False] * 3 + [True] * 2], deterministic=True)


def test_masks_of_combinations_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = r"one bool for.* each choice of each component, \[3, 2\]: 5 in all"
    with pytest.raises(ValueError, match=sentence):
        make_rdqn(choices()).predict(np.zeros(3), action_masks=[True] * 6, deterministic=True)
    model = make(DummyVecEnv([lambda: FinalActionMasks(Choices())]))
    monkeypatch.setattr(FinalActionMasks, "step", step_with_wrong_final_masks)
    with pytest.raises(ValueError, match=sentence):
        model.learn(100)
    monkeypatch.setattr(Choices, "action_masks", lambda self: np.ones(6, bool))
    with pytest.raises(ValueError, match=sentence):
        make(choices()).learn(50)


def step_with_wrong_final_masks(self: FinalActionMasks, action: Any) -> tuple[Any, Any, bool, bool, dict]:
    *rest, info = self.env.step(action)
    return *rest, info | {"action_masks": [True] * 6}  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_actions_have_the_type_of_the_space(make: Make, dtype: type[np.integer]) -> None:
    class Typed(Choices):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.MultiDiscrete([3, 2], dtype=dtype)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            assert action in self.action_space
            return super().step(action)

    model = make(DummyVecEnv([Typed] * 2), use_masking=False).learn(100)
    obs = np.zeros((4, 3), np.float32)
    for deterministic in (True, False):
        actions, _ = model.predict(obs, episode_start=np.ones(4, bool), deterministic=deterministic)
        assert all(action in model.action_space for action in actions)


@EACH_LAYOUT
def test_masks_after_a_termination_need_not_be_valid_in_every_component(layout: str) -> None:
    """There is nothing to choose, so they must not make a target infinite times 0."""
    model = make_rdqn(choices(), learning_starts=10**6, policy_kwargs=LAYOUTS[layout]).learn(100)
    model.replay_buffer._observations.rings[MASKS_KEY][..., 3:] = False
    batch = model.replay_buffer.sample(30)
    values = th.randn(*batch.action_masks.shape[:2], 1, sum(model.q_net.components.sizes))
    assert model._targets(batch, values, values).isfinite().all()


@EACH_LAYOUT
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_returns_actions_of_the_space(make: Make, deterministic: bool, layout: str) -> None:
    model = make(choices(), policy_kwargs=LAYOUTS[layout])
    model.exploration_rate = 1.0
    obs = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    masks = np.concatenate((valid_actions(obs), np.ones((40, 2), bool)), axis=1)
    actions, _ = model.predict(obs, deterministic=deterministic, action_masks=masks)
    assert actions.shape == (40, 2) and all(action in SPACE for action in actions)
    assert masks[np.arange(40), actions[:, 0]].all()
    if not deterministic:
        assert len(np.unique(actions, axis=0)) == 6
    single, _ = model.predict(obs[0], episode_start=np.ones(1, bool), deterministic=deterministic, action_masks=masks[0])
    assert single in SPACE


@EACH_LAYOUT
def test_models_are_evaluated_saved_and_loaded(make: Make, tmp_path: Path, layout: str) -> None:
    model = make(choices(), use_masking=False, policy_kwargs=LAYOUTS[layout]).learn(100)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = type(model).load(tmp_path / "model", env=choices())
    loaded.load_replay_buffer(tmp_path / "replay")
    obs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    actions = [each.predict(obs, episode_start=np.ones(20, bool), deterministic=True)[0] for each in (model, loaded)]
    np.testing.assert_array_equal(*actions)
    evaluate_policy(loaded, choices(1), n_eval_episodes=3, warn=False)
    loaded.learn(50, reset_num_timesteps=False)
    masked = make(choices(), policy_kwargs=LAYOUTS[layout]).learn(50)
    MaskedWalk.n_invalid = 0
    evaluate_masked_policy(masked, choices(1), n_eval_episodes=5, deterministic=False, warn=False)  # type: ignore[arg-type]
    assert MaskedWalk.n_invalid == 0


# ---------------------------------------------------------------- learning


class Lock(gym.Env):
    """One step: an observation of two numbers, each of which a component has to name; the reward is the share that does."""

    observation_space = spaces.Box(0, 1, (6,), np.float32)
    action_space = spaces.MultiDiscrete([3, 3])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.numbers = self.np_random.integers(3, size=2)
        return np.eye(3, dtype=np.float32)[self.numbers].ravel(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return np.zeros(6, np.float32), float((action == self.numbers).mean()), True, False, {}


BIG: dict[str, Any] = dict(buffer_size=2000, batch_size=32)
WIDE: dict[str, Any] = dict(net_arch=[32], ema_decay=0.0, optimizer_kwargs={}, max_combinations=0)
LEARNERS: dict[str, Make] = {
    "RecurrentDQN": partial(make_rdqn, train_freq=2, policy_kwargs=WIDE, **BIG),
    "R2D2": partial(make_r2d2, samples_per_insert=8, policy_kwargs=WIDE, **BIG),
    "MaskableDQN, combinations": lambda env: MaskableDQN("MlpPolicy", env, 1e-2, 1000, 50, seed=0, device="cpu"),
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_each_component_learns_its_own_cue(learner: str) -> None:
    model = LEARNERS[learner](DummyVecEnv([Lock] * 4)).learn(2000)
    assert evaluate_policy(model, DummyVecEnv([Lock]), n_eval_episodes=50, warn=False)[0] > 0.95


def test_the_errors_of_actors_are_those_of_whole_actions() -> None:
    """One-step errors of a network without a memory, from its values of all combinations."""
    policy_kwargs = dict(core="identity", core_kwargs={}, max_combinations=0)
    model = make_r2d2(choices(), n_steps=1, value_rescaling=False, use_masking=False, policy_kwargs=policy_kwargs)
    trajectory = make_actor(model).collect(30)
    assert trajectory.actions.shape == (30, 2, 2)
    obs = trajectory.observations["observation"]
    with th.no_grad():
        q_values = values_of_combinations(model.q_net(th.as_tensor(obs).flatten(0, 1), ())[0]).reshape(30, 2, 6).numpy()
    taken = numbers_of_combinations(trajectory.actions)
    for t, k in np.argwhere(~trajectory.dones[:-1]):
        error = trajectory.rewards[t, k] + 0.997 * q_values[t + 1, k].max() - q_values[t, k, taken[t, k]]
        assert trajectory.td_errors[t, k] == pytest.approx(abs(error), abs=1e-4)


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("number", [-3, "16", 2.0, None])
def test_a_wrong_limit_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=f"^max_combinations={number!r} must be an integer of at least 0"):
        make_rdqn(choices(), policy_kwargs={"max_combinations": number})


def test_scores_of_single_actions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"action space MultiDiscrete\(\[3 2\]\) has no action scores .* one discrete action"):
        action_scores(make_rdqn(choices()), np.zeros((1, 3), np.float32))
