"""The learner's side of its actors, and actors in its own process."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from sb3_attn.r2d2.actor import Actor, Parameters
from sb3_attn.r2d2.trajectory import Trajectory


class UpdateSchedule:
    """
    Decides when each actor gets the newest parameters: at most once in a number of its environment steps.

    :param n_actors: number of actors
    :param interval: smallest number of environment steps of an actor between two updates of its parameters
    """

    def __init__(self, n_actors: int, interval: int) -> None:
        self.interval = interval
        #: Steps of each actor since its last update
        self._n_steps = [interval] * n_actors

    def is_due(self, actor: int, n_steps: int) -> bool:
        """
        Decide whether an actor gets new parameters now.

        :param actor: number of the actor
        :param n_steps: number of environment steps that it will do next
        :return: whether it gets them
        """
        is_due = self._n_steps[actor] >= self.interval
        self._n_steps[actor] = (0 if is_due else self._n_steps[actor]) + n_steps
        return is_due

    def expire(self, actor: int) -> None:
        """Make an actor's next update due now."""
        self._n_steps[actor] = self.interval


class Actors(ABC):
    """
    The actors of a learner.

    :param latest_parameters: returns the learner's current parameters
    """

    #: Number of bytes received so far, compressed if they were sent so
    n_bytes = 0

    def __init__(self, latest_parameters: Callable[[], Parameters]) -> None:
        self.latest_parameters = latest_parameters

    @abstractmethod
    def receive(self) -> Trajectory | None:
        """Return the next trajectory; ``None`` if none has arrived for a moment."""

    @abstractmethod
    def drain(self) -> list[Trajectory]:
        """Return the trajectories that are still on the way."""

    @abstractmethod
    def close(self) -> None:
        """End all actors, and discard what is on the way."""


class LocalActors(Actors):
    """
    Actors in this process, which act one after the other.

    :param actors: the actors
    :param latest_parameters: returns the learner's current parameters
    :param rollout_length: number of steps of each environment in a trajectory
    :param update_interval: see :class:`UpdateSchedule`
    """

    def __init__(
        self, actors: Sequence[Actor], latest_parameters: Callable[[], Parameters], rollout_length: int, update_interval: int
    ) -> None:
        super().__init__(latest_parameters)
        #: Empty once they are closed
        self.actors = actors
        self.rollout_length = rollout_length
        self._schedule = UpdateSchedule(len(actors), update_interval)
        self._next = 0

    def receive(self) -> Trajectory | None:
        actor = self.actors[self._next]
        self._next = (self._next + 1) % len(self.actors)
        if self._schedule.is_due(actor.index, self.rollout_length * actor.env.num_envs):
            actor.load(self.latest_parameters())
        trajectory = actor.collect(self.rollout_length)
        self.n_bytes += trajectory.n_bytes
        return trajectory

    def begin_episodes(self, seed: tuple[int, ...]) -> None:
        """
        Begin new episodes, with other random streams.

        :param seed: seeds the random streams of all actors
        """
        for actor in self.actors:
            actor.begin_episodes(seed)

    def resume(self, episodes: list[dict[str, Any]]) -> bool:
        """
        Go on with the episodes of other actors; with new ones, and a warning, if environments do not take their states.

        :param episodes: from ``running_episodes`` of each of them
        :return: whether these episodes go on
        :raises ValueError: if the environments are others
        """
        goes_on = all(actor.resume(each) for actor, each in zip(self.actors, episodes, strict=True))
        if not goes_on:
            self.begin_episodes(self.actors[0].spec.seed)
        return goes_on

    def begin_round(self, first: int) -> None:
        """
        Go on in turn, each with the newest parameters.

        :param first: number of the actor whose turn it is
        """
        self._next = first
        for actor in self.actors:
            self._schedule.expire(actor.index)

    def drain(self) -> list[Trajectory]:
        return []

    def close(self) -> None:
        for actor in self.actors:
            actor.close()
        self.actors = ()
