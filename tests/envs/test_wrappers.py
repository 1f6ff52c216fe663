"""PreviousActionReward and FlattenSpaces with each kind of space, around an environment that records its actions."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn.envs import CardOrder, FlattenSpaces, MemoryChain, PreviousActionReward


class Recorder(gym.Env[Any, Any]):
    """Random observations; step t pays 10 + t; ends after four steps; keeps its actions and observations."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space
        self.shown: list[Any] = []
        self.got: list[Any] = []

    def _show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.got.append(action)
        self.steps += 1
        return self._show(), 10.0 + self.steps, self.steps == 4, False, {}


def box(*shape: int, high: float = 1.0, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(0, high, shape, dtype)


IMAGE = box(40, 40, 1, high=255, dtype=np.uint8)


@pytest.mark.parametrize(
    ("inner", "size"),
    [(box(2), 2), (box(2, dtype=np.float64), 2), (spaces.Discrete(4), 4), (spaces.MultiDiscrete([2, 3]), 5)],
)
def test_flat_observations_get_previous_action_and_reward_appended(inner: spaces.Space, size: int) -> None:
    base = Recorder(inner)
    env = PreviousActionReward(base)
    check_env(env)
    assert env.observation_space.shape == (size + 3 + 1,)
    assert env.observation_space.dtype == np.float32
    for _ in range(2):  # the second episode starts from zeros again
        observations = [env.reset(seed=0)[0]] + [env.step(action)[0] for action in (2, 0)]
        for obs, shown in zip(observations, base.shown[-3:], strict=True):
            np.testing.assert_array_equal(obs[:size], spaces.flatten(inner, shown).astype(np.float32))
        np.testing.assert_array_equal([obs[size:] for obs in observations], [[0, 0, 0, 0], [0, 0, 1, 11], [1, 0, 0, 12]])


@pytest.mark.parametrize(
    ("inner", "keys"),
    [(spaces.Dict({"a": box(2), "b": IMAGE}), ["a", "b"]), (IMAGE, ["observation"]), (box(3, 2), ["observation"])],
)
def test_images_and_dicts_get_keys(inner: spaces.Space, keys: list[str]) -> None:
    base = Recorder(inner)
    env = PreviousActionReward(base)
    assert set(env.observation_space.spaces) == {*keys, "previous_action", "previous_reward"}
    for _ in range(2):
        observations = [env.reset(seed=0)[0]] + [env.step(action)[0] for action in (2, 0)]
        for obs, shown in zip(observations, base.shown[-3:], strict=True):
            assert env.observation_space.contains(obs)
            for key in keys:
                assert obs[key] is (shown[key] if isinstance(inner, spaces.Dict) else shown)
        assert [obs["previous_action"].tolist() for obs in observations] == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
        assert [obs["previous_reward"].tolist() for obs in observations] == [[0], [11], [12]]


def test_actions_that_do_not_start_at_zero() -> None:
    env = PreviousActionReward(Recorder(box(1), spaces.Discrete(3, start=5)))
    env.reset(seed=0)
    np.testing.assert_array_equal(env.step(np.int64(7))[0][1:4], [0, 0, 1])


def test_each_component_of_an_action_is_one_hot() -> None:
    env = PreviousActionReward(Recorder(box(1), spaces.MultiDiscrete([2, 3])))
    check_env(env)
    env.reset(seed=0)
    np.testing.assert_array_equal(env.step(np.array([1, 2]))[0][1:6], [0, 1, 0, 0, 1])


def test_previous_action_and_reward_through_a_vec_env() -> None:
    """The final observation of an episode has its last action and reward; the first one of the next has zeros."""
    vec_env = make_vec_env("MemoryChain-v0", n_envs=2, seed=0, env_kwargs={"length": 1}, wrapper_class=PreviousActionReward)
    vec_env.reset()
    for _ in range(3):
        observations, rewards, dones, infos = vec_env.step(np.array([0, 1]))
    assert dones.all()
    np.testing.assert_array_equal([info["terminal_observation"][2:4] for info in infos], [[1, 0], [0, 1]])
    np.testing.assert_array_equal([info["terminal_observation"][4] for info in infos], rewards)
    assert set(np.abs(rewards)) == {1}
    np.testing.assert_array_equal(observations[:, 2:], 0)


def test_flatten_spaces_makes_a_tuple_one_hot() -> None:
    base = Recorder(spaces.Tuple((spaces.Discrete(3), box(2), spaces.MultiDiscrete([2, 2]))))
    env = FlattenSpaces(base)
    check_env(env)
    obs, _ = env.reset(seed=1)
    first, second, third = base.shown[-1]
    expected = [*np.eye(3)[first], *second, *np.eye(2)[third[0]], *np.eye(2)[third[1]]]
    np.testing.assert_array_equal(obs, np.array(expected, dtype=np.float32))
    assert env.observation_space == spaces.Box(0.0, 1.0, (9,), np.float32)


def test_flatten_spaces_flattens_a_nested_dict() -> None:
    env = FlattenSpaces(Recorder(spaces.Dict({"a": spaces.Dict({"b": box(2), "c": spaces.Discrete(2)}), "d": box(1)})))
    check_env(env)
    assert env.observation_space.shape == (5,)


@pytest.mark.parametrize(
    "space", [box(2), IMAGE, spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.Dict({"a": box(2), "b": IMAGE})]
)
def test_flatten_spaces_keeps_what_sb3_supports(space: spaces.Space) -> None:
    base = Recorder(space)
    env = FlattenSpaces(base)
    assert env.observation_space is base.observation_space
    assert env.action_space is base.action_space
    assert env.reset(seed=0)[0] is base.shown[-1]
    assert env.step(1)[0] is base.shown[-1]


@pytest.mark.parametrize("actions", [spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([[2, 3]], start=[[1, -1]])])
def test_flatten_spaces_reaches_every_multi_discrete_action(actions: spaces.MultiDiscrete) -> None:
    base = Recorder(box(1), actions)
    env = FlattenSpaces(base)
    assert env.action_space == spaces.Discrete(6)
    for action in range(6):
        env.reset(seed=0)
        env.step(np.int64(action))
    start = np.ravel(actions.start)
    expected = [(start[0] + i, start[1] + j) for i in range(2) for j in range(3)]  # the last component changes fastest
    assert [tuple(np.ravel(action)) for action in base.got] == expected


def test_spaces_of_other_packages_are_left_alone() -> None:
    class Mission(spaces.Space):
        pass

    space = spaces.Dict({"image": IMAGE, "mission": Mission()})
    assert FlattenSpaces(Recorder(space)).observation_space == space


def test_texts_are_flattened() -> None:
    env = FlattenSpaces(Recorder(spaces.Text(3)))
    assert env.observation_space.shape == (3,) and env.reset()[0].dtype == np.float32


def test_both_wrappers_under_stock_dqn() -> None:
    """Tuple observations, MultiDiscrete actions, the previous action shown as one of their combinations."""
    env = PreviousActionReward(FlattenSpaces(Recorder(spaces.Tuple((box(2), box(1))), spaces.MultiDiscrete([2, 3]))))
    assert env.observation_space.shape == (3 + 6 + 1,)
    model = DQN("MlpPolicy", env, learning_starts=8, buffer_size=50, seed=0).learn(24)
    assert model._n_updates > 0
    assert model.replay_buffer.observations[1, 0, 3:9].sum() == 1  # type: ignore[union-attr]


def test_wrappers_are_recorded_in_the_spec() -> None:
    """`gym.make(env.spec)` rebuilds a wrapped environment, which Gymnasium's vector environments use."""
    env = PreviousActionReward(FlattenSpaces(gym.make("MemoryChain-v0", length=2)))
    again = gym.make(env.spec)
    assert again.observation_space == env.observation_space
    assert isinstance(again.unwrapped, MemoryChain)
    assert again.unwrapped.episode_length == 4


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda: PreviousActionReward(Recorder(box(1), box(2))), "needs Discrete or MultiDiscrete actions, but .*Box"),
        (lambda: PreviousActionReward(PreviousActionReward(Recorder(IMAGE))), "already has .*only once"),
        (lambda: FlattenSpaces(Recorder(box(1), box(2))), "env.action_space=Box.* finite set of actions"),
        (lambda: FlattenSpaces(Recorder(spaces.Tuple((spaces.Sequence(box(1)),)))), "no fixed size"),
        (lambda: FlattenSpaces(Recorder(spaces.Sequence(box(1)))), "no fixed size"),
    ],
)
def test_unsupported_spaces_are_refused(wrap: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrap()


class Combination(gym.Env):
    """Two components of 2 and 3, whose masks are for MaskablePPO."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.MultiDiscrete([2, 3])
    taken: Any = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.taken = tuple(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def action_masks(self) -> np.ndarray:
        return np.array([True, False, True, False, True])


def test_masks_of_components_become_those_of_their_combinations() -> None:
    env = FlattenSpaces(Combination())
    env.reset()
    masks = env.get_wrapper_attr("action_masks")()
    valid = []
    for action in range(6):
        env.step(action)
        first, second = env.env.taken  # type: ignore[attr-defined]
        components = [True, False][first] and [True, False, True][second]
        valid.append(components)
    assert masks.tolist() == valid == [True, False, True, False, False, False]


def test_masks_of_discrete_actions_stay_and_none_are_invented() -> None:
    assert FlattenSpaces(CardOrder()).action_masks().tolist() == CardOrder().action_masks().tolist()
    assert is_masking_supported(FlattenSpaces(CardOrder()))
    assert not is_masking_supported(FlattenSpaces(gym.make("CartPole-v1")))
    assert not is_masking_supported(DummyVecEnv([lambda: FlattenSpaces(gym.make("CartPole-v1"))]))
