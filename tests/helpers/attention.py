"""Small models, and environments with observations of every kind."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_attn import DARQNPolicy, RecurrentDQN, SoftAttentionExtractor

LENGTH = 5
IMAGE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (4,), np.float32)
SPACES = {
    "image": IMAGE,
    "vector": VECTOR,
    "entities": spaces.Box(-1.0, 1.0, (3, 2), np.float32),
    "dict": spaces.Dict(vector=VECTOR, image=IMAGE),
}
EXTRACTOR_KWARGS = dict(features_dim=8, n_heads=2, attention_size=8, trunk=[(4, 16, 12)], temperature=0.3)


class Rendered(gym.Env):
    """Random observations for some steps; the reward is 10 times the number of the step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, kind: str, render_mode: str | None = "rgb_array") -> None:
        self.observation_space = SPACES[kind]
        self.action_space = spaces.Discrete(3)
        self.render_mode = render_mode
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1000)))
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.sample(), 10.0 * self.time, self.time == LENGTH, False, {}

    def render(self):
        return np.full((32, 48, 3), 40 * self.time, np.uint8)


def make_env(kind: str, n_envs: int = 1, normalize: bool = False, n_stack: int = 1) -> VecEnv:
    env: VecEnv = DummyVecEnv([lambda: Rendered(kind) for _ in range(n_envs)])
    env.seed(0)
    if kind in ("image", "dict"):
        env = VecTransposeImage(env)
    if normalize:
        env = VecNormalize(env)
    return VecFrameStack(env, n_stack) if n_stack > 1 else env


def make_model(algorithm: type[BaseAlgorithm], env: VecEnv, extractor=SoftAttentionExtractor, **kwargs) -> BaseAlgorithm:
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    policy_kwargs = dict(features_extractor_class=extractor, net_arch=[])
    if extractor is not None and extractor.__module__.startswith("sb3_attn"):
        policy_kwargs["features_extractor_kwargs"] = {**EXTRACTOR_KWARGS, **kwargs}
        if algorithm is PPO:
            policy_kwargs["ortho_init"] = False
    if algorithm is RecurrentDQN:
        policy_kwargs |= dict(core_kwargs=dict(hidden_size=8), encoder_arch=[])
    sizes = dict(n_steps=4, batch_size=4) if algorithm is PPO else dict(buffer_size=400, learning_starts=4)
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **sizes)


def make_darqn(env: VecEnv) -> RecurrentDQN:
    policy_kwargs = dict(
        features_extractor_kwargs=dict(trunk=[(4, 16, 12)]), core_kwargs=dict(hidden_size=8, attention_size=8), net_arch=[]
    )
    return RecurrentDQN(DARQNPolicy, env, policy_kwargs=policy_kwargs, buffer_size=400, seed=0, device="cpu")


ALGORITHMS = [DQN, PPO, QRDQN, RecurrentDQN]
