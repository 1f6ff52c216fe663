"""Recording: a model acts in an environment, and every step's weights are kept."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, unwrap_vec_normalize, unwrap_vec_wrapper

from sb3_attn.common.observations import map_obs
from sb3_attn.viz.action_scores import PROBABILITY, action_scores, score_name
from sb3_attn.viz.recorded_weights import RecordedWeights
from sb3_attn.viz.recurrent_states import recurrent_states
from sb3_attn.viz.sources import WeightSource, all_sources


@dataclass
class Episode:
    """
    The first T steps of one episode. The observation of a step is the one that its action was chosen for.

    :param observations: as the policy gets them, ``[T, ...]``, or a dict of such arrays
    :param actions: ``[T, ...]``
    :param rewards: before any normalisation, ``[T]``
    :param frames: the rendered frames, RGB, uint8 ``[T, height, width, 3]``; ``None`` if the environment does not render
    :param recorded_weights: one entry for each source of weights
    :param states: the memory of a recurrent model before each step; ``None`` at the first step, and without a memory
    :param probes: the results of ``probe``, one before each step
    :param n_stack: number of frames stacked in each observation, the newest last
    :param finished: True if the episode ended, False if the recording was cut off
    :param fps: frames per second at which the environment is meant to be watched
    :param action_scores: Q-values or probabilities of all actions, ``[T, n_actions]``; minus infinity as the Q-value of an
        invalid one. ``None`` if an action is not one of a few, as SAC's
    :param score_name: ``"Q-value"`` or ``"probability"``
    :param recurrent_states: the units of a recurrent memory after each step's observation, ``[T, units]``, by names such as
        ``"hidden"`` and ``"cell, layer 2"``; empty without a memory, and for a memory with slots
    """

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    frames: np.ndarray | None
    recorded_weights: list[RecordedWeights]
    states: list[Any] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)
    n_stack: int = 1
    finished: bool = False
    fps: float = 10.0
    action_scores: np.ndarray | None = None
    score_name: str | None = None
    recurrent_states: dict[str, np.ndarray] = field(default_factory=dict)

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
        Write weights, actions and rewards to an ``.npz`` file, with the layout of the images that were attended to.

        If there are scores, ``action_scores`` has them, and ``score_name`` says which. The units of a recurrent memory are
        called ``states/<name>``.

        For each source ``<name>`` there are ``<name>/weights`` ``[T, heads, tokens]``, ``<name>/entropy`` (only if it is a
        distribution) and ``<name>/peak`` ``[T, heads]``; if it has rows, all three have an axis for them after the heads.
        For each of its images there are ``<name>/<key>/grid``, ``.../receptive_field`` (size, stride), ``.../image_size`` and
        ``.../tokens`` (index of the first, index after the last). An image that is not part of a Dict has the key ``image``.

        :param path: of the file
        """
        arrays = {"actions": self.actions, "rewards": self.rewards}
        if self.action_scores is not None:
            arrays |= {"action_scores": self.action_scores, "score_name": np.array(self.score_name)}
        arrays |= {f"states/{name}": units for name, units in self.recurrent_states.items()}
        for recorded in self.recorded_weights:
            for quantity in ("weights", "entropy", "peak") if recorded.is_distribution else ("weights", "peak"):
                arrays[f"{recorded.name}/{quantity}"] = getattr(recorded, quantity)
            for part in recorded.parts:
                if part.image is not None:
                    prefix = f"{recorded.name}/{part.key or 'image'}"
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
    Let a model act for one episode, in the first environment of a vectorised one, and record its weights, states and scores.

    The model stays as it was: no hooks are added, and nothing is stored on its modules. The statistics of a ``VecNormalize``
    are not updated.

    :param model: of any of SB3's algorithms, or of ours
    :param env: wrapped as for training; images are transposed if necessary
    :param n_steps: stop after this many steps even if the episode has not ended; ``None`` waits for its end
    :param deterministic: act without exploration
    :param sources: the sources of weights to record; ``None`` takes all that the model has, an empty list none
    :param render: keep rendered frames, if the environment renders arrays
    :param probe: called with the environment before each step; its results are kept in ``Episode.probes``
    :return: the episode
    :raises ValueError: if the environment's spaces are not the model's
    """
    if n_steps is not None and n_steps < 1:
        raise ValueError(f"n_steps={n_steps} records nothing; give at least 1, or None for the whole episode.")
    sources = all_sources(model) if sources is None else sources
    vec_env = wrap_env(model, env)
    render = render and vec_env.render_mode == "rgb_array"
    recorder = _Recorder(model, vec_env, sources, render, probe)
    with restore_modes(model, vec_env):
        recorder.run(n_steps, deterministic)
    return recorder.episode()


def wrap_env(model: BaseAlgorithm, env: GymEnv) -> VecEnv:
    """
    Wrap an environment as ``model.set_env`` would, without changing the model.

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


class _Recorder:
    """Collects the steps of ``record_episode``."""

    def __init__(self, model: BaseAlgorithm, env: VecEnv, sources: Sequence[WeightSource], render: bool, probe: Any) -> None:
        self.model, self.env, self.sources, self.render, self.probe = model, env, sources, render, probe
        self.observations: list[Any] = []
        self.frames: list[np.ndarray] = []
        self.steps: list[tuple[Any, float]] = []
        self.weights: list[list[np.ndarray]] = [[] for _ in sources]
        self.reachable: list[list[np.ndarray]] = [[] for _ in sources]  # empty where a source does not say
        self.states: list[Any] = []
        self.last_state: Any = None
        self.probes: list[Any] = []
        self.score_name = score_name(model)
        self.scores: list[np.ndarray] = []
        self.finished = False

    def run(self, n_steps: int | None, deterministic: bool) -> None:
        normalize = unwrap_vec_normalize(self.env)
        observations: Any = self.env.reset()
        state, starts = None, np.ones(self.env.num_envs, dtype=bool)
        has_masks = _takes_masks(self.model, self.env)
        while not self.finished and (n_steps is None or len(self.steps) < n_steps):
            # Everything that belongs to the observation is kept before the step, which replaces it
            self.observations.append(first_observation(observations))
            self.states.append(state)
            if self.render:
                self.frames.append(np.asarray(self.env.get_images()[0]))
            if self.probe is not None:
                self.probes.append(self.probe(self.env))
            masks = get_action_masks(self.env) if has_masks else None
            with_masks = {} if masks is None else {"action_masks": masks}
            actions, next_state = self.model.predict(observations, state, starts, deterministic, **with_masks)
            self._record_weights(observations, state, next_state)
            self._record_scores(state, masks)
            observations, rewards, starts, _ = self.env.step(actions)
            if normalize is not None:
                rewards = normalize.get_original_reward()
            self.steps.append((actions[0], float(rewards[0])))
            self.last_state = state = next_state
            self.finished = bool(starts[0])

    def _record_weights(self, observations: Any, state: Any, next_state: Any) -> None:
        tensors, _ = self.model.policy.obs_to_tensor(observations)
        with th.no_grad():
            for source, weights, reachable in zip(self.sources, self.weights, self.reachable, strict=True):
                weights.append(source.weights(tensors, state, next_state)[0].float().cpu().numpy())
                if (of_step := source.reachable(tensors)) is not None:
                    reachable.append(of_step[0].cpu().numpy())

    def _record_scores(self, state: Any, masks: np.ndarray | None) -> None:
        if self.score_name is not None:
            observation = map_obs(lambda array: array[None], self.observations[-1])
            scores = action_scores(self.model, observation, state, None if masks is None else masks[:1])[0]
            self.scores.append(np.exp(scores) if self.score_name == PROBABILITY else scores)

    def episode(self) -> Episode:
        actions, rewards = zip(*self.steps, strict=True)
        return Episode(
            map_obs(lambda *steps: np.stack(steps), *self.observations),
            np.stack(actions),
            np.array(rewards),
            np.stack(self.frames) if self.frames else None,
            [
                source.record(np.stack(weights), np.stack(reachable) if reachable else None)
                for source, weights, reachable in zip(self.sources, self.weights, self.reachable, strict=True)
            ],
            self.states,
            self.probes,
            n_stacked(self.env),
            self.finished,
            _fps(self.env),
            np.stack(self.scores) if self.scores else None,
            self.score_name,
            recurrent_states(self.model, [*self.states[1:], self.last_state]),
        )


def first_observation(observations: Any) -> Any:
    """
    Copy the first observation of a batch: an environment may write the next one into the same array.

    :param observations: ``[B, ...]``, or a dict of such arrays
    """
    return map_obs(lambda array: np.array(array[0]), observations)


def n_stacked(env: VecEnv) -> int:
    """
    The number of frames that are stacked in each observation.

    :param env: with or without a ``VecFrameStack``
    """
    stack = unwrap_vec_wrapper(env, VecFrameStack)
    return 1 if stack is None else int(stack.stacked_obs.n_stack)


def _takes_masks(model: BaseAlgorithm, env: VecEnv) -> bool:
    return bool(getattr(model, "use_masking", isinstance(model, MaskablePPO) and is_masking_supported(env)))


def _fps(env: VecEnv) -> float:
    fps: Any = (env.unwrapped.metadata or {}).get("render_fps")
    return float(fps or 10.0)


@contextlib.contextmanager
def restore_modes(model: BaseAlgorithm, env: VecEnv) -> Iterator[None]:
    """
    Evaluation mode and frozen statistics of ``VecNormalize``; both are as before afterwards.

    :param model: of any of SB3's algorithms, or of ours
    :param env: the vectorised environment
    """
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
    Evaluation mode of the networks, in which hard attention does not sample. The mode is as before afterwards.

    :param model: of any of SB3's algorithms, or of ours
    """
    was_training = model.policy.training
    model.policy.set_training_mode(False)
    try:
        yield
    finally:
        model.policy.set_training_mode(was_training)
