"""A memory over stacked frames: the frames it reads, the blank ones it skips, and learning with any of SB3's algorithms."""

import pickle
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

import sb3_attn
from sb3_attn import MemoryExtractor, RecurrentDQN
from sb3_attn.dqn.policies import MemoryPolicy
from sb3_attn.memory import CORES, MemoryCore

EXTRACTORS = [
    sb3_attn.NTMExtractor,
    sb3_attn.DNCExtractor,
    sb3_attn.KeyValueMemoryExtractor,
    sb3_attn.GTrXLExtractor,
]

FRAMES = {
    "vector": spaces.Box(0.0, 255.0, (3,), np.float32),
    "vector with bounds of its own": spaces.Box(np.float32([0, 0, -1]), np.float32([255, 255, 255])),
    "matrix": spaces.Box(0.0, 255.0, (2, 3), np.float32),
    "image, channels first": spaces.Box(0, 255, (2, 40, 36), np.uint8),
    "image, channels last": spaces.Box(0, 255, (40, 36, 3), np.uint8),
}
FRAMES["dict"] = spaces.Dict(image=FRAMES["image, channels last"], matrix=FRAMES["matrix"], vector=FRAMES["vector"])
VECTOR = FRAMES["vector"]


class Marked(gym.Env):
    """Every entry of an observation encodes its origin: 50 x environment + 10 x episode + step + 1."""

    def __init__(self, space: spaces.Space = VECTOR, number: int = 0, length: int = 6) -> None:
        self.observation_space = space
        self.action_space = spaces.Discrete(2)
        self.number, self.length, self.episode = number, length, -1

    def _observation(self):
        code = 50 * self.number + 10 * self.episode + self.steps + 1
        return _fill(self.observation_space, code)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        self.episode = (self.episode + 1) % 4
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), float(action), self.steps == self.length, False, {}


def _fill(space: spaces.Space, code: int):
    if isinstance(space, spaces.Dict):
        return {key: _fill(part, code) for key, part in space.spaces.items()}
    return np.full(space.shape, code, space.dtype)


class SumState(NamedTuple):
    total: th.Tensor


class SumCore(MemoryCore):
    """Non-linear in its inputs and never zero, so every frame, its position and the number of frames affect the output."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, input_size)

    def initial_state(self, batch_size: int) -> SumState:
        return SumState(th.full((batch_size, self.output_size), 0.1))

    def forward(self, inputs, state):
        total = th.sin(state[0]) + inputs + 0.3
        return total, SumState(total)


def vec_env(space: spaces.Space = VECTOR, n_envs: int = 2, n_stack: int = 4) -> VecFrameStack:
    return VecFrameStack(DummyVecEnv([lambda i=i: Monitor(Marked(space, i)) for i in range(n_envs)]), n_stack)


def tensors(observations, space: spaces.Space):
    """Preprocessed observations, as an extractor receives them."""
    if isinstance(observations, dict):
        return preprocess_obs({key: th.as_tensor(array) for key, array in observations.items()}, space)
    return preprocess_obs(th.as_tensor(observations), space)


def some(space: spaces.Space, n: int = 5):
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


# --- Frames


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_come_apart_as_vec_frame_stack_put_them_together(kind):
    env = vec_env(FRAMES[kind])
    if "last" in kind or kind == "dict":
        env = VecTransposeImage(env)  # as SB3 does to every environment that needs it
    extractor = MemoryExtractor(env.observation_space, n_stack=4)
    observations, history = env.reset(), [[0, 0, 0, 1], [0, 0, 0, 51]]
    for step in range(1, 10):
        frames = extractor.frames(tensors(observations, env.observation_space))
        for key, tensor in frames.items():
            part = FRAMES["dict"][key] if kind == "dict" else FRAMES[kind]
            assert tensor.shape[:2] == (4, 2) and sorted(tensor.shape[2:]) == sorted(part.shape)
            scale = 255.0 if part.dtype == np.uint8 else 1.0
            expected = th.as_tensor([row[-4:] for row in history]).T.view(4, 2, *[1] * len(part.shape))
            th.testing.assert_close(tensor * scale, expected.expand_as(tensor).float())
        observations, _, dones, _ = env.step(np.zeros(2, dtype=int))
        for number, row in enumerate(history):
            code = 50 * number + (step + 1 if step < 6 else 10 + step - 5)
            history[number] = [0, 0, 0, code] if dones[number] else [*row, code]


@pytest.mark.parametrize("kind", ["vector", "matrix", "dict"])
def test_gymnasium_stacks_frames_on_an_axis_of_their_own(kind):
    space = spaces.Dict(matrix=FRAMES["matrix"], vector=VECTOR) if kind == "dict" else FRAMES[kind]
    env = FrameStackObservation(Marked(space), 4, padding_type="zero")
    extractor = MemoryExtractor(env.observation_space, n_stack=4, stack_axis=0, core=SumCore)
    env.reset()
    observation = env.step(0)[0]
    batch = {k: v[None] for k, v in observation.items()} if kind == "dict" else observation[None]
    for tensor in extractor.frames(tensors(batch, env.observation_space)).values():
        assert tensor.flatten(1)[:, 0].tolist() == [0, 0, 1, 2]
    # Gymnasium stacks on a new axis and VecFrameStack on the last one; the features are the same
    stacked = VecFrameStack(DummyVecEnv([lambda: Marked(space)]), 4)
    other = MemoryExtractor(stacked.observation_space, n_stack=4, core=SumCore)
    other.load_state_dict(extractor.state_dict())
    stacked.reset()
    others = tensors(stacked.step(np.zeros(1, dtype=int))[0], stacked.observation_space)
    th.testing.assert_close(extractor(tensors(batch, env.observation_space)), other(others))


def test_each_frame_is_encoded_on_its_own():
    space = spaces.Box(0, 255, (4, 40, 36), np.uint8)
    extractor = MemoryExtractor(space, n_stack=4)
    assert isinstance(extractor.encoder.extractors["frame"], NatureCNN)
    observations = tensors(some(space), space)
    together = extractor.encode(extractor.frames(observations))
    for i in range(4):
        apart = extractor.projection(extractor.encoder({"frame": observations[:, i : i + 1]}))
        th.testing.assert_close(together[i], apart, atol=1e-5, rtol=1e-5)


# --- What lies before the episode's start


def features_by_loop(extractor: MemoryExtractor, rows: list[np.ndarray]) -> th.Tensor:
    """Row by row and step by step over real frames only; ``rows`` holds matrices ``[frames, entries]``."""
    features = []
    for row in rows:
        state = extractor.core.initial_state(1)
        for frame in row:
            encoding = extractor.projection(th.as_tensor(frame, dtype=th.float32)[None])
            output, state = extractor.core(encoding, state)
        features.append(extractor.linear(output))
    return th.cat(features)


@pytest.mark.parametrize("core", [SumCore, *sorted(CORES)])
def test_blank_frames_have_no_influence(core):
    """Rows with 1 to 5 real frames in one batch, the newest of one of them zero, as is one in another's middle."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 3)) for n in (5, 1, 3, 2, 4, 1, 5)]
    rows[5][-1] = 0.0
    rows[6][1:3] = 0.0
    stacked = np.stack([np.concatenate((np.zeros((5 - len(row), 3)), row)).ravel() for row in rows])
    extractor = MemoryExtractor(spaces.Box(-9, 9, (15,)), n_stack=5, core=core).eval()
    features = extractor(th.as_tensor(stacked, dtype=th.float32))
    th.testing.assert_close(features, features_by_loop(extractor, rows), atol=1e-5, rtol=1e-5)


def test_blank_frames_count_where_they_are_not_masked():
    kwargs = dict(n_stack=3, core=SumCore, frame_size=8)
    masked = MemoryExtractor(spaces.Box(-9, 9, (6,)), **kwargs)
    whole = MemoryExtractor(spaces.Box(-9, 9, (6,)), mask_blank_frames=False, **kwargs)
    whole.load_state_dict(masked.state_dict())
    observations = th.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 2.0], [0.0, 1.0, 0.0, 0.0, 1.0, 2.0]])
    all_frames = features_by_loop(whole, list(observations.numpy().reshape(2, 3, 2)))
    th.testing.assert_close(whole(observations), all_frames)
    assert not th.allclose(masked(observations)[0], all_frames[0])
    th.testing.assert_close(masked(observations)[1], all_frames[1])


def test_a_frame_of_a_dict_is_blank_only_if_all_of_it_is():
    space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), b=spaces.Box(-9, 9, (2,)))
    extractor = MemoryExtractor(space, n_stack=2, core=SumCore)
    blank = extractor({"a": th.tensor([[0.0, 1.0]]), "b": th.tensor([[0.0, 1.0]])})
    half = extractor({"a": th.tensor([[0.0, 1.0]]), "b": th.tensor([[2.0, 1.0]])})
    th.testing.assert_close(blank, features_by_loop(extractor, [np.ones((1, 2))]))
    assert not th.allclose(blank, half)


@pytest.mark.parametrize("extractor_class", [MemoryExtractor, *EXTRACTORS])
def test_the_order_of_older_frames_matters(extractor_class):
    space = spaces.Box(-9, 9, (12,))
    extractor = extractor_class(space, n_stack=4)
    frames = th.randn(5, 4, 3)
    swapped = frames[:, [1, 0, 2, 3]]
    assert not th.allclose(extractor(frames.flatten(1)), extractor(swapped.flatten(1)), atol=1e-6)


def test_the_gradient_reaches_every_real_frame_and_no_blank_one():
    extractor = MemoryExtractor(spaces.Box(-9, 9, (12,)), n_stack=4)
    observations = th.randn(2, 12)
    observations[1, :6] = 0.0
    observations.requires_grad_()
    extractor(observations).sum().backward()
    reached = (observations.grad.view(2, 4, 3) != 0).any(dim=2)
    assert reached.tolist() == [[True] * 4, [False, False, True, True]]


def test_the_memory_of_an_episode_grows_from_one_frame():
    """With VecFrameStack there are 1, 2, ... real frames, and 1 again after the end of the episode."""
    env = vec_env(n_envs=1)
    extractor = MemoryExtractor(env.observation_space, n_stack=4, core=SumCore)
    observations = env.reset()
    for codes in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6], [11], [11, 12]):
        frames = np.repeat(np.array(codes)[:, None], 3, axis=1)
        th.testing.assert_close(extractor(th.as_tensor(observations)), features_by_loop(extractor, [frames]))
        observations, _, _, infos = env.step(np.zeros(1, dtype=int))
        if codes == [3, 4, 5, 6]:  # what DQN stores as the last observation of the first episode
            assert infos[0]["terminal_observation"][::3].tolist() == [4, 5, 6, 7]


# --- In SB3


def test_features_depend_on_nothing_but_the_observation():
    space = spaces.Box(-9, 9, (8,))
    extractor = MemoryExtractor(space, n_stack=4)
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    observations = tensors(some(space), space)
    first = extractor(observations)
    extractor(observations.flip(0) * 2.0)
    assert th.equal(extractor(observations), first)
    assert all(th.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())


@pytest.mark.parametrize("extractor_class", [MemoryExtractor, *EXTRACTORS])
@pytest.mark.parametrize("algorithm", [DQN, QRDQN, PPO, RecurrentDQN])
def test_every_algorithm_learns_with_memory_extractors(algorithm, extractor_class, tmp_path):
    env = vec_env()
    kwargs = dict(n_steps=8, batch_size=8, n_epochs=1) if algorithm is PPO else dict(learning_starts=8, buffer_size=400)
    policy_kwargs = dict(features_extractor_class=extractor_class, features_extractor_kwargs=dict(n_stack=4, frame_size=16))
    model = algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, device="cpu", seed=0, **kwargs)
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters() if ".core." in name}
    model.learn(24)
    parameters = dict(model.policy.named_parameters())
    assert before and any(not th.equal(old, parameters[name]) for name, old in before.items())
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    observations = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    evaluate_policy(loaded, env, n_eval_episodes=2)


@pytest.mark.parametrize("core", CORES)
def test_a_core_in_the_registry_is_public_with_an_extractor_and_a_policy(core):
    name = CORES[core].__name__.removesuffix("Core")
    public = [getattr(sb3_attn, name + kind) for kind in ("Core", "Extractor", "Policy")]
    assert {name + kind for kind in ("Core", "Extractor", "Policy")} <= set(sb3_attn.__all__)
    assert pickle.loads(pickle.dumps(public)) == public
    core_class, extractor, policy = public
    assert core_class is CORES[core] and policy.default_features_extractor is extractor
    assert type(extractor(spaces.Box(-1, 1, (8,)), n_stack=4).core) is core_class


KINDS = ("Memory", "NTM", "DNC", "KeyValueMemory", "GTrXL")
NAMED = [f"{kind}{net}Policy" for kind in KINDS for net in ("Mlp", "Cnn", "MultiInput")]


@pytest.mark.parametrize("name", NAMED)
def test_named_policies_need_only_n_stack(name, tmp_path):
    policy = getattr(sb3_attn, name)
    plain = name.replace("Mlp", "").replace("Cnn", "").replace("MultiInput", "")
    assert issubclass(policy, MemoryPolicy) and policy is getattr(sb3_attn, plain) and plain in sb3_attn.__all__
    space = {"Mlp": VECTOR, "Cnn": FRAMES["image, channels last"], "Mul": FRAMES["dict"]}
    env = vec_env(next(part for net, part in space.items() if net in name.removeprefix("KeyValueMemory")))
    policy_kwargs = dict(features_extractor_kwargs=dict(n_stack=4))
    model = DQN(policy, env, buffer_size=50, learning_starts=5, batch_size=4, policy_kwargs=policy_kwargs, device="cpu").learn(
        9
    )
    assert isinstance(model.q_net.q_net[0], th.nn.Linear) and len(model.q_net.q_net) == 1, "no layers that SB3 slips in"
    model.policy.save(tmp_path / "policy")
    loaded = policy.load(tmp_path / "policy")
    for expected, parameter in zip(model.policy.parameters(), loaded.parameters(), strict=True):
        assert th.equal(expected, parameter)
    model.save(tmp_path / "model")
    assert type(DQN.load(tmp_path / "model").policy) is policy


RANDOM_MEMORY = dict(core_kwargs=dict(memory_initialisation="random"))


@pytest.mark.parametrize(
    ("extractor_class", "kwargs"),
    [(MemoryExtractor, {}), *((extractor, {}) for extractor in EXTRACTORS), (sb3_attn.NTMExtractor, RANDOM_MEMORY)],
    ids=str,
)
def test_targets_are_deterministic_and_copied_with_the_parameters(extractor_class, kwargs):
    policy_kwargs = dict(features_extractor_class=extractor_class, features_extractor_kwargs=dict(n_stack=4, **kwargs))
    model = DQN("MlpPolicy", vec_env(), policy_kwargs=policy_kwargs, learning_starts=4, batch_size=4, device="cpu").learn(20)
    model.policy.set_training_mode(True)  # as in an update
    observations = th.randn(6, 12)
    assert th.equal(model.q_net_target(observations), model.q_net_target(observations))
    assert not th.allclose(model.q_net_target(observations), model.q_net(observations))
    polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), tau=1.0)  # all that DQN copies
    th.testing.assert_close(model.q_net_target(observations), model.q_net(observations))


def test_replay_keeps_the_zeros_where_vec_normalize_is_outside():
    env = VecNormalize(vec_env(), norm_obs=False)
    policy_kwargs = dict(features_extractor_class=MemoryExtractor, features_extractor_kwargs=dict(n_stack=4))
    model = DQN("MlpPolicy", env, policy_kwargs=policy_kwargs, buffer_size=40, device="cpu")
    model.learn(16)
    codes = model.replay_buffer.observations[:8, 0, ::3].tolist()  # time, environment, entries
    assert codes[:4] == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]] and codes[6] == [0, 0, 0, 11]


# --- Arguments


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Box(-1, 1, (12,)), dict(n_stack=5), r"n_stack=5 does not divide axis 0 of 'frame' with shape \(12,\)"),
        (spaces.Box(-1, 1, (12,)), dict(n_stack=0), "n_stack=0 of MemoryExtractor must be at least 1"),
        (spaces.Box(0, 255, (4, 40, 40), np.uint8), dict(n_stack=3), "does not divide axis 0"),
        (spaces.Box(-1, 1, (4, 6)), dict(n_stack=4), "does not divide axis 1.*stack_axis=0"),
        (
            spaces.Dict(a=spaces.Box(-1, 1, (8,)), b=spaces.Box(-1, 1, (6,))),
            dict(n_stack=4),
            "n_stack=4 does not divide axis 0 of 'b'",
        ),
        (spaces.Box(-1, 1, (12,)), dict(n_stack=4, stack_axis=1), "stack_axis=1 is not an axis of 'frame'"),
        (spaces.Discrete(4), dict(n_stack=4), "only a Box can hold stacked frames"),
        (spaces.Box(-1, 1, (12,)), dict(n_stack=4, core="tape"), "core='tape' is unknown"),
        (spaces.Box(-1, 1, (12,)), dict(n_stack=4, core_kwargs=dict(depth=2)), "do not fit LSTMCore"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MemoryExtractor(space, **kwargs)


CARTPOLE = gym.make("CartPole-v1").observation_space


def test_without_n_stack_four_frames_are_assumed_with_a_warning():
    with pytest.warns(
        UserWarning, match="NTMExtractor was not given n_stack and takes every observation for 4 stacked frames"
    ):
        model = DQN(sb3_attn.NTMPolicy, vec_env(), buffer_size=50, device="cpu")
    assert model.q_net.features_extractor.n_stack == 4


def test_a_vector_whose_bounds_are_not_those_of_frames_is_warned_of():
    with pytest.warns(UserWarning, match=r"does not look like n_stack=4 frames.*VecFrameStack\(env, 4\)"):
        MemoryExtractor(CARTPOLE, n_stack=4)
    for stack in (np.repeat, np.tile):  # VecFrameStack; a flattened FrameStackObservation
        MemoryExtractor(spaces.Box(stack(CARTPOLE.low, 3), stack(CARTPOLE.high, 3)), n_stack=3)


def test_the_window_of_a_memory_is_n_stack_unless_another_is_given():
    space = spaces.Box(-1, 1, (12,))
    assert sb3_attn.KeyValueMemoryExtractor(space, n_stack=6).core.n_slots == 6
    assert sb3_attn.GTrXLExtractor(space, n_stack=6).core.memory_length == 6
    assert sb3_attn.GTrXLExtractor(space, n_stack=6, core_kwargs=dict(memory_length=2)).core.memory_length == 2
    assert isinstance(sb3_attn.KeyValueMemoryExtractor(space, n_stack=6, core="gru").core, sb3_attn.GRUCore)


def test_normalized_image_makes_a_box_an_image():
    space = spaces.Box(0.0, 1.0, (8, 40, 40))
    assert MemoryExtractor(space, n_stack=4, normalized_image=True).frames(th.zeros(2, 8, 40, 40))["frame"].shape == (
        4,
        2,
        2,
        40,
        40,
    )
    assert MemoryExtractor(space, n_stack=4).frames(th.zeros(2, 8, 40, 40))["frame"].shape == (4, 2, 8, 40, 10)
