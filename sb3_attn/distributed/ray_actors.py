"""R2D2's actors, each in a Ray actor of its own."""

import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
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
from sb3_attn.distributed.journal import Journal
from sb3_attn.r2d2.actor import Actor, Weights
from sb3_attn.r2d2.actors import Actors, WeightsPeriod
from sb3_attn.r2d2.spec import ActorSpec
from sb3_attn.r2d2.trajectory import Trajectory

#: Seconds: of one wait for a trajectory, of silence before a warning; for what is under way at the end, and to close
WAIT, SILENCE, DRAIN, CLOSE = 0.5, 120.0, 30.0, 10.0

#: An actor's process or machine has gone, or the answer with it; the last three are no RayActorErrors
LOST = (RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError)

#: Seconds before an actor that died is asked again, doubled each time until it answers
SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.1, 10.0


@dataclass(frozen=True)
class RayOptions:
    """
    How actors run on Ray: the ``backend_kwargs`` of R2D2.

    :param address: of a Ray cluster to attach to; see :func:`sb3_attn.distributed.connect`
    :param cpus_per_actor: what an actor takes of the cluster's CPUs; a fraction if its environments wait more than compute
    :param calls_in_flight: trajectories that an actor is asked for ahead of the learner, so that neither waits
    :param deterministic: ask one actor after the other and wait for each: slow, and the same as ``backend="sync"``
    :param env_timeout: seconds after which a trajectory (``rollout_length`` steps of all environments of an actor) counts as
        hanging, and its actor is started again
    :param allow_unauthenticated: attach also where anyone on the network may run code on the cluster
    """

    address: str | None = None
    cpus_per_actor: float = 1.0
    calls_in_flight: int = 2
    deterministic: bool = False
    env_timeout: float = 300.0
    allow_unauthenticated: bool = False


def check_options(**options: Any) -> RayOptions:
    """
    Check how actors are to run.

    :param options: see :class:`RayOptions`
    :raises ValueError: if one is unknown or out of range
    """
    known = [field.name for field in fields(RayOptions)]
    if unknown := options.keys() - known:
        raise ValueError(f"backend_kwargs has {sorted(unknown)}; backend='ray' takes {known}.")
    checked = RayOptions(**options)
    for name in ("cpus_per_actor", "calls_in_flight", "env_timeout"):
        if getattr(checked, name) <= 0:
            raise ValueError(f"backend_kwargs has {name}={getattr(checked, name)}; it must be positive.")
    return checked


class RayActors(Actors):
    """
    Actors in processes of their own, on one machine or many.

    The learner asks, actors answer; replay and weights stay with the learner, and nothing waits in Ray's object store but
    what is under way. An actor that dies is started again by Ray, on another machine if its own is gone, and asked again.

    :param spec: what actors have to know
    :param latest_weights: gives the learner's weights as they are
    :param rollout_length: number of steps of each environment in a trajectory
    :param weights_period: see :class:`sb3_attn.r2d2.actors.WeightsPeriod`
    :param options: see :class:`RayOptions`
    """

    def __init__(
        self,
        spec: ActorSpec,
        latest_weights: Callable[[], Weights],
        rollout_length: int,
        weights_period: int,
        **options: Any,
    ) -> None:
        super().__init__(latest_weights)
        self.options = check_options(**options)
        self.rollout_length = rollout_length
        self._n_steps = rollout_length * len(spec.env_fns)
        self._period = WeightsPeriod(spec.n_actors, weights_period)
        self._silent_since: float | None = None
        self._last_put: tuple[int, ray.ObjectRef] | None = None
        with ExitStack() as stack:
            cpus = self.options.cpus_per_actor
            what = f"n_actors={spec.n_actors} with cpus_per_actor={cpus:g}"
            stack.enter_context(connect(spec.n_actors * cpus, what, self.options.address, self.options.allow_unauthenticated))
            actor_class = ray.remote(
                num_cpus=cpus,
                num_gpus=0,
                max_restarts=-1,
                max_task_retries=0,  # what Ray repeats may overtake, and episodes would be spliced: we ask again ourselves
                runtime_env=ONE_THREAD,
            )(RemoteActor)
            self._run = f"sb3_attn-{uuid.uuid4().hex}"
            # Kept, and sent as a reference in a list: Ray forgets large arguments after an actor's first start
            self._spec = ray.put(cloudpickle.dumps(spec))
            self.actors: list[Any] = [
                actor_class.remote([self._spec], index, self._run, self.options.env_timeout) for index in range(spec.n_actors)
            ]
            self._max_deaths = spec.max_env_restarts + 1  # one more, so that an environment that hangs is named first
            stack.callback(self._end)
            #: Weights that each actor was last told to use
            self._weights: list[tuple[int, ray.ObjectRef]] = [self._put_weights()] * spec.n_actors
            #: Calls that each has not answered yet, the oldest first
            self.calls: list[deque[ray.ObjectRef]] = [deque() for _ in self.actors]
            #: Number of calls that each was ever sent
            self._n_asked = [0] * spec.n_actors
            #: When each may be asked again; since its last answer, how often it did not answer, and how often it died
            self._ask_from = [0.0] * spec.n_actors
            self._n_failures = [0] * spec.n_actors
            self._n_deaths = [0] * spec.n_actors
            #: In the order in which they answered last, so that none is passed over
            self._order = deque(range(spec.n_actors))
            self._resources = stack.pop_all()

    def receive(self) -> Trajectory | None:
        self._ask_where_due()
        oldest = {calls[0]: index for index in self._order if (calls := self.calls[index])}
        ready = ray.wait(list(oldest), num_returns=1, timeout=WAIT)[0] if oldest else []
        if not ready:
            self._wait_longer(idle=not oldest)
            return None
        index = oldest[ready[0]]
        self._order.remove(index)
        self._order.append(index)
        return self._answer(index)

    def drain(self) -> list[Trajectory]:
        refs = [ref for calls in self.calls for ref in calls]
        ready = ray.wait(refs, num_returns=len(refs), timeout=DRAIN)[0] if refs else []
        trajectories = []
        for ref in ready:
            try:
                trajectories.append(self._unpack(ray.get(ref)))
            except RayError:  # noqa: PERF203  whoever is ended need not answer
                continue
        return trajectories

    def close(self) -> None:
        self._resources.close()

    def _ask_where_due(self) -> None:
        """Keep every actor that lives supplied with calls; a deterministic one only while it is its turn."""
        n_calls = 1 if self.options.deterministic else self.options.calls_in_flight
        for index in [self._order[0]] if self.options.deterministic else self._order:
            while len(self.calls[index]) < n_calls and self._ask_from[index] <= time.monotonic():
                if self._period.is_due(index, self._n_steps):
                    self._weights[index] = self._put_weights()
                version, ref = self._weights[index]
                # In a list the reference stays one: only an actor that has other weights fetches these
                call = self.actors[index].collect.remote(self.rollout_length, version, [ref], self._n_asked[index])
                self.calls[index].append(call)
                self._n_asked[index] += 1

    def _answer(self, index: int) -> Trajectory | None:
        try:
            packed = ray.get(self.calls[index].popleft())
        except (RayTaskError, UnserializableException) as error:
            raise RuntimeError(f"actor {index} failed: {getattr(error, 'cause', error)}") from error
        except ActorDiedError as error:
            raise RuntimeError(f"actor {index} is gone for good: {error}") from error
        except LOST as error:  # it will be asked again when Ray has started it again
            self._back_off(index, error)
            return None
        self._n_failures[index] = self._n_deaths[index] = 0
        self._silent_since = None
        return self._unpack(packed)

    def _back_off(self, index: int, error: RayError) -> None:
        now = time.monotonic()
        if now < self._ask_from[index]:
            return  # all its calls fail together; that is one death
        self._ask_from[index] = now + min(SHORTEST_BACKOFF * 2.0 ** min(self._n_failures[index], 10), LONGEST_BACKOFF)
        self._n_failures[index] += 1
        self._period.expire(index)
        # Ray may have no room for it at present, which is no fault of its own
        self._n_deaths[index] += "is restarting" not in str(error)
        if self._n_deaths[index] > self._max_deaths:
            raise RuntimeError(
                f"actor {index} has died {self._n_deaths[index]} times without an answer; look for what ends its process, or "
                f"raise max_env_restarts. The last time: {error}"
            ) from error

    def _unpack(self, packed: bytes) -> Trajectory:
        self.n_bytes += len(packed)
        return unpack(packed)

    def _put_weights(self) -> tuple[int, ray.ObjectRef]:
        weights = self.latest_weights()
        if self._last_put is None or self._last_put[0] != weights.version:
            self._last_put = weights.version, ray.put(weights)
        return self._last_put

    def _wait_longer(self, idle: bool) -> None:
        if idle:  # all are being started again
            time.sleep(SHORTEST_BACKOFF)
        self._silent_since = self._silent_since or time.monotonic()
        if time.monotonic() - self._silent_since > SILENCE:
            self._silent_since = None
            warnings.warn(f"no actor has answered for {SILENCE:.0f} s; the cluster may have lost its machines.", stacklevel=2)

    def _end(self) -> None:
        if ray.is_initialized():
            closed = [actor.close.remote() for actor in self.actors]
            ray.wait(closed, num_returns=len(closed), timeout=CLOSE)  # does not raise, whatever became of them
            for actor in self.actors:
                ray.kill(actor)


class RemoteActor:
    """
    An actor in a process of its own.

    :param spec: a reference to the pickle of what it has to know
    :param index: its number
    :param run: name of the run, for the journal
    :param env_timeout: seconds after which a trajectory counts as hanging
    """

    def __init__(self, spec: list[ray.ObjectRef], index: int, run: str, env_timeout: float) -> None:
        th.set_num_threads(1)
        self._spec = spec
        self._index = index
        self._journal = Journal(run, index, env_timeout)
        self._actor: Actor | None = None

    def collect(self, n_steps: int, version: int, weights: list[ray.ObjectRef], n_asked: int) -> bytes:
        """
        Go on for some steps.

        :param n_steps: number of steps of each environment
        :param version: of the weights to act with
        :param weights: a reference to them
        :param n_asked: number of calls that were sent before this one; a process whose first it is, though there were
            others, takes the place of one that died
        :return: a packed trajectory
        """
        if self._actor is None:
            self._actor = self._make_actor(rebuilt=n_asked > 0)
        if self._actor.version != version:
            self._actor.load(ray.get(weights[0]))
        with self._journal.watch():
            return pack(self._actor.collect(n_steps))

    def close(self) -> None:
        """Close the environments, and leave nothing behind."""
        if self._actor is not None:
            self._actor.close()
        self._journal.remove()

    def _make_actor(self, rebuilt: bool) -> Actor:
        spec: ActorSpec = cloudpickle.loads(ray.get(self._spec[0]))
        hang = self._journal.last_hang()
        if hang is not None and hang[1] > spec.max_env_restarts:
            env, n_hangs, where = hang
            raise TimeoutError(
                f"environment {env} of actor {self._index} has hung {n_hangs} times; mend it, or raise env_timeout if it is "
                f"only slow. It stood at\n{where}"
            )
        return Actor(spec, self._index, rebuilt=rebuilt, current_env=self._journal.current_env)
