"""Actors in the learner's process."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from sb3_attn.r2d2.actor import Actor, Weights
from sb3_attn.r2d2.trajectory import Trajectory


class WeightsPeriod:
    """
    Which weights each actor has: the newest, but renewed at most every so many of its steps.

    :param n_actors: number of actors
    :param period: number of environment steps of an actor between two renewals
    """

    def __init__(self, n_actors: int, period: int) -> None:
        self.period = period
        self._steps = [period] * n_actors

    def is_due(self, actor: int, n_steps: int) -> bool:
        """
        Whether an actor gets new weights now.

        :param actor: its number
        :param n_steps: number of environment steps that it will do next
        """
        due = self._steps[actor] >= self.period
        self._steps[actor] = (0 if due else self._steps[actor]) + n_steps
        return due

    def expire(self, actor: int) -> None:
        """Let an actor have new weights the next time."""
        self._steps[actor] = self.period


class Actors(ABC):
    """
    The actors of a learner.

    :param latest_weights: gives the learner's weights as they are
    """

    #: Bytes received so far, as they came
    n_bytes = 0

    def __init__(self, latest_weights: Callable[[], Weights]) -> None:
        self.latest_weights = latest_weights

    @abstractmethod
    def receive(self) -> Trajectory | None:
        """The next trajectory; ``None`` if the wait for it was cut short."""

    @abstractmethod
    def drain(self) -> list[Trajectory]:
        """What is still on the way."""

    @abstractmethod
    def close(self) -> None:
        """End them all, whatever is on the way."""


class LocalActors(Actors):
    """
    Actors that take turns in this process.

    :param actors: the actors
    :param latest_weights: gives the learner's weights as they are
    :param rollout_length: number of steps of each environment in a trajectory
    :param weights_period: see :class:`WeightsPeriod`
    """

    def __init__(
        self, actors: Sequence[Actor], latest_weights: Callable[[], Weights], rollout_length: int, weights_period: int
    ) -> None:
        super().__init__(latest_weights)
        self.actors = actors
        self.rollout_length = rollout_length
        self._period = WeightsPeriod(len(actors), weights_period)
        self._turn = 0

    def receive(self) -> Trajectory | None:
        actor = self.actors[self._turn]
        self._turn = (self._turn + 1) % len(self.actors)
        if self._period.is_due(actor.index, self.rollout_length * actor.env.num_envs):
            actor.load(self.latest_weights())
        trajectory = actor.collect(self.rollout_length)
        self.n_bytes += trajectory.n_bytes
        return trajectory

    def drain(self) -> list[Trajectory]:
        return []

    def close(self) -> None:
        for actor in self.actors:
            actor.close()
