"""Episodes together with the attention weights of every step."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, unwrap_vec_normalize, unwrap_vec_wrapper

from sb3_attn.common.observations import map_obs
from sb3_attn.viz.sources import find_sources
from sb3_attn.viz.weights import Attention, WeightSource


@dataclass
class Episode:
    """
    T steps of one episode, from its start. An observation is the one that the action of its step answers.

    :param observations: as the policy gets them, ``[T, ...]``, or a dict of such arrays
    :param actions: ``[T, ...]``
    :param rewards: before any normalisation, ``[T]``
    :param frames: what the environment rendered, RGB, uint8 ``[T, height, width, 3]``; ``None`` if it does not render
    :param attention: one entry for each source of weights
    :param states: the memory of a recurrent model before each step; ``None`` at the first, and without a memory
    :param probes: what ``probe`` returned before each step
    :param n_stack: number of frames that lie in each observation, one behind the other, the newest last
    :param finished: whether the episode ended, rather than the recording
    :param fps: frames per second at which the environment means to be seen
    """

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    frames: np.ndarray | None
    attention: list[Attention]
    states: list[Any] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)
    n_stack: int = 1
    finished: bool = False
    fps: float = 10.0

    def __len__(self) -> int:
        return len(self.rewards)

    def observation(self, step: int) -> Any:
        """
        One observation, without a batch axis.

        :param step: 0 is the first
        """
        return map_obs(lambda array: array[step], self.observations)

    def save(self, path: str | Path) -> None:
        """
        Write weights, actions and rewards to an ``.npz`` file, with the grids of the images that were attended to.

        For each source ``<name>`` there are ``<name>/weights`` ``[T, heads, tokens]``, ``<name>/entropy`` (unless it is no
        distribution) and ``<name>/peak`` ``[T, heads]``; if it has rows, all three have an axis for them, behind the heads.
        For each of its images there are ``<name>/<key>/grid``, ``.../receptive_field`` (size, stride), ``.../image_size`` and
        ``.../tokens`` (first, after the last). The key of an observation that is no Dict is ``image``.

        :param path: of the file
        """
        arrays = {"actions": self.actions, "rewards": self.rewards}
        for attention in self.attention:
            for quantity in ("weights", "entropy", "peak") if attention.is_distribution else ("weights", "peak"):
                arrays[f"{attention.name}/{quantity}"] = getattr(attention, quantity)
            for part in attention.parts:
                if part.image is not None:
                    prefix = f"{attention.name}/{part.key or 'image'}"
                    arrays |= {f"{prefix}/{name}": np.array(value) for name, value in part.image._asdict().items()}
                    arrays[f"{prefix}/tokens"] = np.array((part.start, part.stop))
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def record_episode(
    model: BaseAlgorithm,
    env: GymEnv,
    n_steps: int | None = None,
    deterministic: bool = True,
    sources: Sequence[WeightSource] | None = None,
    render: bool = True,
    probe: Callable[[VecEnv], Any] | None = None,
) -> Episode:
    """
    Let a model act in the first of some environments, and keep what it attends to.

    The model is left as it was: no hooks, nothing stored on its modules. The statistics of a ``VecNormalize`` stay, too.

    :param model: of any of SB3's algorithms, or of ours
    :param env: wrapped as for training; an image is transposed if need be
    :param n_steps: where to stop if the episode has not ended; ``None`` waits for its end
    :param deterministic: whether to act without exploration
    :param sources: of weights; ``None`` takes all that the model has, an empty list records none
    :param render: keep rendered frames, if the environment renders arrays
    :param probe: called with the environment before each step; what it returns is kept
    :return: the episode
    :raises ValueError: if the model has no attention, or the environment's spaces are not the model's
    """
    if n_steps is not None and n_steps < 1:
        raise ValueError(f"n_steps={n_steps} records nothing; give at least 1, or None for the whole episode.")
    sources = find_sources(model) if sources is None else sources
    vec_env = wrap_env(model, env)
    render = render and vec_env.render_mode == "rgb_array"
    record = _Record(model, vec_env, sources, render, probe)
    with _as_found(model, vec_env):
        record.run(n_steps, deterministic)
    return record.episode()


def wrap_env(model: BaseAlgorithm, env: GymEnv) -> VecEnv:
    """
    Wrap an environment as ``model.set_env`` would, but leave the model alone.

    :param model: of any of SB3's algorithms, or of ours
    :param env: an environment, vectorised or not
    :return: the vectorised environment
    :raises ValueError: if its spaces are not the model's
    """
    vec_env = model._wrap_env(env, verbose=0, monitor_wrapper=False)
    try:
        check_for_correct_spaces(vec_env, model.observation_space, model.action_space)
    except ValueError as error:
        raise ValueError(
            f"The environment does not fit the model ({error}); give it the wrappers of training (frame stack, "
            "AtariWrapper, ...) and the same env_kwargs."
        ) from error
    return vec_env


class _Record:
    """What ``record_episode`` gathers."""

    def __init__(self, model: BaseAlgorithm, env: VecEnv, sources: Sequence[WeightSource], render: bool, probe: Any) -> None:
        self.model, self.env, self.sources, self.render, self.probe = model, env, sources, render, probe
        self.observations: list[Any] = []
        self.frames: list[np.ndarray] = []
        self.steps: list[tuple[Any, float]] = []
        self.weights: list[list[np.ndarray]] = [[] for _ in sources]
        self.states: list[Any] = []
        self.probes: list[Any] = []
        self.finished = False

    def run(self, n_steps: int | None, deterministic: bool) -> None:
        normalize = unwrap_vec_normalize(self.env)
        observations: Any = self.env.reset()
        state, starts = None, np.ones(self.env.num_envs, dtype=bool)
        while not self.finished and (n_steps is None or len(self.steps) < n_steps):
            self.observations.append(first(observations))
            self.states.append(state)
            if self.render:
                self.frames.append(np.asarray(self.env.get_images()[0]))
            if self.probe is not None:
                self.probes.append(self.probe(self.env))
            actions, next_state = self.model.predict(observations, state, starts, deterministic)
            self._attend(observations, state, next_state)
            observations, rewards, starts, _ = self.env.step(actions)
            if normalize is not None:
                rewards = normalize.get_original_reward()
            self.steps.append((actions[0], float(rewards[0])))
            state, self.finished = next_state, bool(starts[0])

    def _attend(self, observations: Any, state: Any, next_state: Any) -> None:
        tensors, _ = self.model.policy.obs_to_tensor(observations)
        with th.no_grad():
            for source, weights in zip(self.sources, self.weights, strict=True):
                weights.append(source.weights(tensors, state, next_state)[0].float().cpu().numpy())

    def episode(self) -> Episode:
        actions, rewards = zip(*self.steps, strict=True)
        return Episode(
            map_obs(lambda *steps: np.stack(steps), *self.observations),
            np.stack(actions),
            np.array(rewards),
            np.stack(self.frames) if self.frames else None,
            [source.attention(np.stack(weights)) for source, weights in zip(self.sources, self.weights, strict=True)],
            self.states,
            self.probes,
            n_stacked(self.env),
            self.finished,
            _fps(self.env),
        )


def first(observations: Any) -> Any:
    """
    The first observation of a batch, copied: an environment may write the next into the same array.

    :param observations: ``[B, ...]``, or a dict of such arrays
    """
    return map_obs(lambda array: np.array(array[0]), observations)


def n_stacked(env: VecEnv) -> int:
    """
    Number of frames that lie in each observation.

    :param env: with or without a ``VecFrameStack``
    """
    stack = unwrap_vec_wrapper(env, VecFrameStack)
    return 1 if stack is None else int(stack.stacked_obs.n_stack)


def _fps(env: VecEnv) -> float:
    fps: Any = (env.unwrapped.metadata or {}).get("render_fps")
    return float(fps or 10.0)


@contextlib.contextmanager
def _as_found(model: BaseAlgorithm, env: VecEnv) -> Iterator[None]:
    """Evaluation mode and frozen statistics, both undone afterwards."""
    normalize = unwrap_vec_normalize(env)
    was_normalize_training = normalize is not None and normalize.training
    if normalize is not None:
        normalize.training = False
    try:
        with evaluation_mode(model):
            yield
    finally:
        if normalize is not None:
            normalize.training = was_normalize_training


@contextlib.contextmanager
def evaluation_mode(model: BaseAlgorithm) -> Iterator[None]:
    """
    Networks in evaluation mode: hard attention draws nothing. Undone afterwards.

    :param model: of any of SB3's algorithms, or of ours
    """
    was_training = model.policy.training
    model.policy.set_training_mode(False)
    try:
        yield
    finally:
        model.policy.set_training_mode(was_training)
