"""A ``VecEnv`` whose environments live in Ray actors, on one machine or many."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import ray
from gymnasium import spaces
from ray.exceptions import RayActorError, RayTaskError
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_attn.distributed.cluster import ONE_THREAD, connect

#: Seconds for the environments to close, before their processes are ended anyway
CLOSE_TIMEOUT = 10.0

#: Name, positional and keyword arguments of a method of ``DummyVecEnv``
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class RayVecEnv(VecEnv):
    """
    Environments in Ray actors, a ``DummyVecEnv`` in each: like ``SubprocVecEnv``, but with several environments per process,
    and with processes on any machine of a cluster.

    A step costs more than through ``SubprocVecEnv``'s pipes, so this is for environments that take milliseconds per step.

    :param env_fns: functions that create the environments; each is run in its actor
    :param envs_per_actor: number of environments in an actor, stepped one after the other; the last actor may have fewer
    :param cpus_per_actor: CPUs of the cluster that an actor takes; a fraction if its environments wait more than compute
    :param address: address of a Ray cluster to attach to; see :func:`sb3_attn.distributed.connect`
    :param allow_unauthenticated: attach even if anyone on the network may run code on the cluster
    :raises ValueError: if arguments are out of range, an environment cannot be sent or the cluster has too few CPUs
    :raises RuntimeError: if an environment cannot be created, or the cluster is open to others
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        envs_per_actor: int = 1,
        cpus_per_actor: float = 1.0,
        address: str | None = None,
        allow_unauthenticated: bool = False,
    ) -> None:
        if not env_fns:
            raise ValueError("env_fns=[] has no environment; give one function for each environment.")
        if envs_per_actor < 1:
            raise ValueError(f"envs_per_actor={envs_per_actor} must be positive; give the number of environments per actor.")
        if cpus_per_actor < 0:
            raise ValueError(f"cpus_per_actor={cpus_per_actor} must not be negative; give the number of CPUs per actor.")
        pickles = [_pickled(index, env_fn) for index, env_fn in enumerate(env_fns)]
        n_actors = math.ceil(len(env_fns) / envs_per_actor)
        self.envs_per_actor = envs_per_actor
        self._slices = [slice(i * envs_per_actor, min((i + 1) * envs_per_actor, len(env_fns))) for i in range(n_actors)]
        self._steps: list[ray.ObjectRef] = []

        with ExitStack() as stack:
            what = f"{n_actors} actors with cpus_per_actor={cpus_per_actor:g}"
            stack.enter_context(connect(n_actors * cpus_per_actor, what, address, allow_unauthenticated))
            actor_class = ray.remote(num_cpus=cpus_per_actor, runtime_env=ONE_THREAD)(EnvActor)
            self._actors: list[Any] = [actor_class.remote() for _ in self._slices]
            stack.callback(self._end_actors)
            made = [actor.make.remote(pickles[part]) for actor, part in zip(self._actors, self._slices, strict=True)]
            super().__init__(len(env_fns), *self._wait(made)[0])
            self._resources = stack.pop_all()

    def step_async(self, actions: np.ndarray) -> None:
        self._steps = [actor.step.remote(actions[part]) for actor, part in zip(self._actors, self._slices, strict=True)]

    def step_wait(self) -> VecEnvStepReturn:
        steps, self._steps = self._steps, []
        obs, rewards, dones, rest = zip(*self._wait(steps), strict=True)
        infos, self.reset_infos = _joined(rest)
        return self._stack(obs), np.concatenate(rewards), np.concatenate(dones), infos

    def reset(self) -> VecEnvObs:
        self._steps = []  # results of a step under way are dropped; an actor resets after it
        refs = [
            actor.reset.remote(cloudpickle.dumps((self._seeds[part], self._options[part])))
            for actor, part in zip(self._actors, self._slices, strict=True)
        ]
        obs, rest = zip(*self._wait(refs), strict=True)
        (self.reset_infos,) = _joined(rest)
        # VecEnv uses seeds and options for one reset only
        self._reset_seeds()
        self._reset_options()
        return self._stack(obs)

    def close(self) -> None:
        self._resources.close()  # closing it again does nothing

    def get_images(self) -> Sequence[np.ndarray | None]:
        if self.render_mode != "rgb_array":
            warnings.warn(f"The render mode is {self.render_mode}; images need `rgb_array`.", stacklevel=2)
            return [None] * self.num_envs
        return self.env_method("render")

    def has_attr(self, attr_name: str) -> bool:
        # Checked in the actors, since the attribute itself may not be picklable
        return all(self._call(dict.fromkeys(range(len(self._actors)), ("has_attr", (attr_name,), {}))).values())

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._call_envs(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._call_envs(indices, "set_attr", attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._call_envs(indices, "env_method", method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return self._call_envs(indices, "env_is_wrapped", wrapper_class)

    def _call_envs(self, indices: VecEnvIndices, name: str, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method that takes indices; returns its values in the order of the indices, or None for each."""
        envs = [range(self.num_envs)[index] for index in self._get_indices(indices)]  # resolves negative ones
        positions: dict[int, list[int]] = {}
        for position, env in enumerate(envs):
            positions.setdefault(env // self.envs_per_actor, []).append(position)
        calls: dict[int, Call] = {
            i: (name, args, {**kwargs, "indices": [envs[position] % self.envs_per_actor for position in of_actor]})
            for i, of_actor in positions.items()
        }
        results: list[Any] = [None] * len(envs)
        for i, values in self._call(calls).items():
            for position, value in zip(positions[i], values or (), strict=False):
                results[position] = value
        return results

    def _call(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        refs = [self._actors[i].call.remote(cloudpickle.dumps(call)) for i, call in calls.items()]
        return dict(zip(calls, map(cloudpickle.loads, self._wait(refs, calls)), strict=True))

    def _wait(self, refs: Iterable[ray.ObjectRef], actors: Iterable[int] | None = None) -> list[Any]:
        """Wait for the results of calls to all or some actors; an error names the environments."""
        results = []
        for i, ref in zip(range(len(self._actors)) if actors is None else actors, refs, strict=True):
            envs = f"environments {list(range(self._slices[i].start, self._slices[i].stop))}"
            try:
                results.append(ray.get(ref))
            except RayTaskError as error:
                # Callers that probe for an attribute expect an AttributeError
                kind = AttributeError if isinstance(error.cause, AttributeError) else RuntimeError
                raise kind(f"{error.cause!r} was raised in the actor of {envs}; the traceback above says where.") from error
            except RayActorError as error:
                raise RuntimeError(
                    f"The actor of {envs} died ({error}); close this RayVecEnv, and give it fewer environments or more "
                    "memory if that was the cause."
                ) from error
        return results

    def _stack(self, parts: Sequence[VecEnvObs]) -> VecEnvObs:
        """Concatenate observations; a copy, since the arrays that Ray delivers are read-only."""
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.concatenate([part[key] for part in parts]) for key in self.observation_space.spaces}  # type: ignore[call-overload]
        if isinstance(self.observation_space, spaces.Tuple):
            return tuple(map(np.concatenate, zip(*parts, strict=True)))
        return np.concatenate(parts)  # type: ignore[arg-type]

    def _end_actors(self) -> None:
        if not ray.is_initialized():
            return  # the actors ended with the connection
        closed = [actor.call.remote(cloudpickle.dumps(("close", (), {}))) for actor in self._actors]
        ray.wait(closed, num_returns=len(closed), timeout=CLOSE_TIMEOUT)  # does not raise, even if they have crashed
        for actor in self._actors:
            ray.kill(actor)


class EnvActor:
    """
    A ``DummyVecEnv`` in its own process.

    Batches are sent as arrays, everything else as pickles, since arrays out of a pickle are writeable.
    """

    def make(self, env_fns: Sequence[bytes]) -> tuple[spaces.Space, spaces.Space]:
        """
        Create the environments.

        :param env_fns: pickles of the functions that create them
        :return: observation space and action space
        """
        self.venv = DummyVecEnv([cloudpickle.loads(env_fn) for env_fn in env_fns])
        return self.venv.observation_space, self.venv.action_space

    def step(self, actions: np.ndarray) -> tuple[VecEnvObs, np.ndarray, np.ndarray, bytes]:
        """
        Step the environments.

        :param actions: one for each environment
        :return: observations, rewards, dones, and a pickle of infos and reset infos
        """
        obs, rewards, dones, infos = self.venv.step(np.array(actions))
        return obs, rewards, dones, cloudpickle.dumps((infos, self.venv.reset_infos))

    def reset(self, seeds_and_options: bytes) -> tuple[VecEnvObs, bytes]:
        """
        Reset the environments.

        :param seeds_and_options: pickle of two lists, with an entry for each environment
        :return: observations and a pickle of the reset infos
        """
        self.venv._seeds, self.venv._options = cloudpickle.loads(seeds_and_options)
        return self.venv.reset(), cloudpickle.dumps((self.venv.reset_infos,))

    def call(self, call: bytes) -> bytes:
        """
        Call a method of the ``DummyVecEnv``.

        :param call: pickle of its name and arguments
        :return: pickle of its result
        """
        name, args, kwargs = cloudpickle.loads(call)
        return cloudpickle.dumps(getattr(self.venv, name)(*args, **kwargs))


def _joined(pickles: Iterable[bytes]) -> list[list[Any]]:
    """Join the lists that each actor has pickled, into lists over all environments."""
    lists = zip(*map(cloudpickle.loads, pickles), strict=True)
    return [[entry for part in parts for entry in part] for parts in lists]


def _pickled(index: int, env_fn: Callable[[], gym.Env]) -> bytes:
    try:
        return cloudpickle.dumps(env_fn)
    except Exception as error:  # every type raises its own kind of error
        raise ValueError(
            f"env_fns[{index}] cannot be sent to an actor ({error}); create what cannot be pickled inside the function."
        ) from error
