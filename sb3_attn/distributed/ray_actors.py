"""R2D2's actors on Ray, each in its own process."""

import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import cloudpickle
import ray
import torch as th
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    UnserializableException,
)

from sb3_attn.distributed.cluster import ONE_THREAD, connect
from sb3_attn.distributed.codec import pack, unpack
from sb3_attn.distributed.hang_log import HangLog
from sb3_attn.r2d2.actor import Actor, ActorSpec, Parameters
from sb3_attn.r2d2.actors import Actors, UpdateSchedule
from sb3_attn.r2d2.trajectory import Trajectory

#: Seconds that one wait for a trajectory lasts, and of silence before a warning
WAIT, SILENCE = 0.5, 120.0

#: Seconds at the end for the trajectories on the way, and for actors to close their environments
DRAIN, CLOSE = 30.0, 10.0

#: An actor's process or node died, or its result was lost. The last three do not derive from RayActorError
LOST = (RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError)

#: Seconds before a crashed actor is called again, doubled each time until it answers
SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.1, 10.0


@dataclass(frozen=True)
class RayOptions:
    """
    Options of actors on Ray, the ``backend_kwargs`` of R2D2.

    :param address: address of a Ray cluster to attach to; see :func:`sb3_attn.distributed.connect`
    :param cpus_per_actor: CPUs of the cluster that an actor takes; a fraction if its environments wait more than compute
    :param calls_in_flight: number of trajectories that are requested from an actor ahead of time, so that neither the actor
        nor the learner waits
    :param deterministic: call one actor after the other and wait for each: slow, and the same as ``backend="sync"``
    :param env_timeout: seconds after which a trajectory (``rollout_length`` steps of all environments of an actor) counts as
        hanging, and its actor is restarted
    :param allow_unauthenticated: attach even if anyone on the network may run code on the cluster
    """

    address: str | None = None
    cpus_per_actor: float = 1.0
    calls_in_flight: int = 2
    deterministic: bool = False
    env_timeout: float = 300.0
    allow_unauthenticated: bool = False


def check_options(**options: Any) -> RayOptions:
    """
    Check the ``backend_kwargs`` of R2D2.

    :param options: see :class:`RayOptions`
    :return: all options
    :raises ValueError: if one is unknown or out of range
    """
    known = [option.name for option in fields(RayOptions)]
    if unknown := options.keys() - known:
        raise ValueError(f"backend_kwargs has {sorted(unknown)}; backend='ray' takes {known}.")
    checked = RayOptions(**options)
    for name in ("cpus_per_actor", "calls_in_flight", "env_timeout"):
        if getattr(checked, name) <= 0:
            raise ValueError(f"backend_kwargs has {name}={getattr(checked, name)}; it must be positive.")
    return checked


@dataclass(eq=False)
class _ActorHandle:
    """The learner's view of an actor."""

    index: int
    #: Ray's handle
    remote: Any
    #: A reference to the parameters that it acts with
    parameters: ray.ObjectRef
    #: Calls that it has not answered yet, the oldest first
    calls: deque[ray.ObjectRef] = field(default_factory=deque)
    #: Number of all calls so far
    n_calls: int = 0
    #: No call is sent before this time
    retry_at: float = 0.0
    #: Crashes since its last answer; those that are its own fault
    n_failures: int = 0
    n_deaths: int = 0


class RayActors(Actors):
    """
    Actors in their own processes, on one machine or many.

    The learner calls and actors answer; replay and parameters stay with the learner, and Ray's object store holds only what
    is on the way. An actor that crashes is restarted by Ray, on another machine if its own is gone, and called again.

    :param spec: all that an actor needs to know
    :param latest_parameters: returns the learner's current parameters
    :param rollout_length: number of steps of each environment in a trajectory
    :param update_interval: see :class:`sb3_attn.r2d2.actors.UpdateSchedule`
    :param options: see :class:`RayOptions`
    """

    def __init__(
        self,
        spec: ActorSpec,
        latest_parameters: Callable[[], Parameters],
        rollout_length: int,
        update_interval: int,
        **options: Any,
    ) -> None:
        super().__init__(latest_parameters)
        self.options = check_options(**options)
        self.rollout_length = rollout_length
        self._n_steps = rollout_length * len(spec.env_fns)
        self._schedule = UpdateSchedule(spec.n_actors, update_interval)
        self._max_deaths = spec.max_env_restarts + 1  # one more, so that a hanging environment is reported first
        self._silent_since: float | None = None
        self._last_put: tuple[Parameters, ray.ObjectRef] | None = None
        with ExitStack() as stack:
            cpus = self.options.cpus_per_actor
            what = f"n_actors={spec.n_actors} with cpus_per_actor={cpus:g}"
            stack.enter_context(connect(spec.n_actors * cpus, what, self.options.address, self.options.allow_unauthenticated))
            actor_class = ray.remote(
                num_cpus=cpus,
                num_gpus=0,
                max_restarts=-1,
                max_task_retries=0,  # Ray's retries may overtake each other and splice episodes, so we retry ourselves
                runtime_env=ONE_THREAD,
            )(RemoteActor)
            run = f"sb3_attn-{uuid.uuid4().hex}"
            # Kept, and sent as a reference in a list: Ray forgets large arguments after an actor's first start
            self._spec = ray.put(cloudpickle.dumps(spec))
            parameters = self._put_parameters()
            self.handles = [
                _ActorHandle(index, actor_class.remote([self._spec], index, run, self.options.env_timeout), parameters)
                for index in range(spec.n_actors)
            ]
            stack.callback(self._end)
            #: In the order of their last answers, so that none is passed over
            self._order = deque(self.handles)
            self._resources = stack.pop_all()

    def receive(self) -> Trajectory | None:
        self._send_calls()
        oldest = {handle.calls[0]: handle for handle in self._order if handle.calls}
        ready = ray.wait(list(oldest), num_returns=1, timeout=WAIT)[0] if oldest else []
        if not ready:
            self._wait_longer(is_idle=not oldest)
            return None
        handle = oldest[ready[0]]
        self._order.remove(handle)
        self._order.append(handle)
        return self._take_answer(handle)

    def drain(self) -> list[Trajectory]:
        refs = [ref for handle in self.handles for ref in handle.calls]
        ready = ray.wait(refs, num_returns=len(refs), timeout=DRAIN)[0] if refs else []
        trajectories = []
        for ref in ready:
            try:
                trajectories.append(self._unpack(ray.get(ref)))
            except RayError:  # noqa: PERF203  an actor that is about to be ended need not answer
                continue
        return trajectories

    def close(self) -> None:
        self._resources.close()

    def _send_calls(self) -> None:
        """Keep every live actor supplied with calls; if deterministic, only the one whose turn it is."""
        n_calls = 1 if self.options.deterministic else self.options.calls_in_flight
        for handle in [self._order[0]] if self.options.deterministic else self._order:
            while len(handle.calls) < n_calls and handle.retry_at <= time.monotonic():
                if self._schedule.is_due(handle.index, self._n_steps):
                    handle.parameters = self._put_parameters()
                # In a list the reference stays one: only an actor that has other parameters fetches these
                handle.calls.append(handle.remote.collect.remote(self.rollout_length, [handle.parameters], handle.n_calls))
                handle.n_calls += 1

    def _take_answer(self, handle: _ActorHandle) -> Trajectory | None:
        try:
            packed = ray.get(handle.calls.popleft())
        except (RayTaskError, UnserializableException) as error:
            raise RuntimeError(f"actor {handle.index} failed: {getattr(error, 'cause', error)}") from error
        except ActorDiedError as error:
            raise RuntimeError(f"actor {handle.index} is gone for good: {error}") from error
        except LOST as error:  # it is called again once Ray has restarted it
            self._back_off(handle, error)
            return None
        handle.n_failures = handle.n_deaths = 0
        self._silent_since = None
        return self._unpack(packed)

    def _back_off(self, handle: _ActorHandle, error: RayError) -> None:
        now = time.monotonic()
        if now < handle.retry_at:
            return  # all its calls fail together, which is one crash
        handle.retry_at = now + min(SHORTEST_BACKOFF * 2.0 ** min(handle.n_failures, 10), LONGEST_BACKOFF)
        handle.n_failures += 1
        self._schedule.expire(handle.index)
        # While Ray has no room to restart it, calls fail without a crash
        handle.n_deaths += "is restarting" not in str(error)
        if handle.n_deaths > self._max_deaths:
            raise RuntimeError(
                f"actor {handle.index} has died {handle.n_deaths} times without an answer; look for what ends its process, or "
                f"raise max_env_restarts. The last time: {error}"
            ) from error

    def _unpack(self, packed: bytes) -> Trajectory:
        self.n_bytes += len(packed)
        return unpack(packed)

    def _put_parameters(self) -> ray.ObjectRef:
        parameters = self.latest_parameters()
        if self._last_put is None or self._last_put[0] is not parameters:
            self._last_put = parameters, ray.put(parameters)
        return self._last_put[1]

    def _wait_longer(self, is_idle: bool) -> None:
        if is_idle:  # all actors are being restarted
            time.sleep(SHORTEST_BACKOFF)
        self._silent_since = self._silent_since or time.monotonic()
        if time.monotonic() - self._silent_since > SILENCE:
            self._silent_since = None
            warnings.warn(f"no actor has answered for {SILENCE:.0f} s; the cluster may have lost its machines.", stacklevel=2)

    def _end(self) -> None:
        if ray.is_initialized():
            closed = [handle.remote.close.remote() for handle in self.handles]
            ray.wait(closed, num_returns=len(closed), timeout=CLOSE)  # does not raise, even if they have crashed
            for handle in self.handles:
                ray.kill(handle.remote)


class RemoteActor:
    """
    An actor in its own process.

    :param spec: a reference to the pickle of its :class:`sb3_attn.r2d2.actor.ActorSpec`
    :param index: number of the actor
    :param run: name of the run, for the hang log
    :param env_timeout: seconds after which a trajectory counts as hanging
    """

    def __init__(self, spec: list[ray.ObjectRef], index: int, run: str, env_timeout: float) -> None:
        th.set_num_threads(1)
        self._spec = spec
        self._index = index
        self._hang_log = HangLog(run, index, env_timeout)
        self._actor: Actor | None = None
        self._parameters: ray.ObjectRef | None = None

    def collect(self, n_steps: int, parameters: list[ray.ObjectRef], n_calls_before: int) -> bytes:
        """
        Continue for some steps.

        :param n_steps: number of steps of each environment
        :param parameters: a reference to the parameters to act with
        :param n_calls_before: number of calls that were sent before this one. A process that receives its first call after
            others were sent replaces one that crashed
        :return: a packed trajectory
        """
        if self._actor is None:
            self._actor = self._make_actor(is_restart=n_calls_before > 0)
        if self._parameters is None or self._parameters != parameters[0]:
            self._parameters = parameters[0]
            self._actor.load(ray.get(self._parameters))
        with self._hang_log.watch():
            return pack(self._actor.collect(n_steps))

    def close(self) -> None:
        """Close the environments, and remove the files of the hang log."""
        if self._actor is not None:
            self._actor.close()
        self._hang_log.remove()

    def _make_actor(self, is_restart: bool) -> Actor:
        spec: ActorSpec = cloudpickle.loads(ray.get(self._spec[0]))
        hang = self._hang_log.last_hang()
        if hang is not None and hang[1] > spec.max_env_restarts:
            env, n_hangs, traceback = hang
            raise TimeoutError(
                f"environment {env} of actor {self._index} has hung {n_hangs} times; fix it, or raise env_timeout if it is "
                f"only slow. The traceback of the last hang:\n{traceback}"
            )
        return Actor(spec, self._index, is_restart=is_restart, current_env=self._hang_log.current_env)
