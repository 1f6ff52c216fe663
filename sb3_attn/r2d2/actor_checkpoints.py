"""Checkpoints of R2D2, at which the episodes of its actors go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_attn.common.plain_data import from_json, to_json
from sb3_attn.r2d2.actor import Actor
from sb3_attn.r2d2.actors import Actors, LocalActors
from sb3_attn.r2d2.collection import Collection
from sb3_attn.recurrent_dqn import RecurrentDQN
from sb3_attn.recurrent_dqn.environment_states import environment_states


class ActorCheckpoints(RecurrentDQN):
    """Base of ``R2D2``: what becomes of its actors and their episodes at a checkpoint."""

    n_actors: int
    backend: str
    rollout_length: int
    #: What the running ``learn()`` needs to collect experience
    _collection: Collection | None = None
    #: Seed of the actors' random streams since the last checkpoint, instead of ``seed``
    _actors_seed: int | None = None
    #: The actor that steps the learner's environments, after a ``learn()`` that ended in order
    _previous: Actor | None = None
    #: The episodes of a checkpoint, until ``learn()`` has actors that go on with them
    _resumed: dict[str, Any] | None = None

    def _make_actors(self, episodes: dict[str, Any] | None = None) -> Actors:
        """Make the actors of ``learn()``; those in this process go on with the episodes of a checkpoint, if given."""
        raise NotImplementedError

    def save_checkpoint(self, folder: str | Path) -> Path:
        """
        Save all that training needs to go on from here, as ``RecurrentDQN`` does.

        During ``learn()``, episodes go on or new ones begin, as for ``RecurrentDQN``, and actors get the newest parameters.
        After ``learn()`` the actors' environments are closed, so new episodes begin. If the actors' environments differ from
        those of the checkpoint, it is ``learn()`` that says so, not ``load_checkpoint``. With ``backend="ray"`` actors just go
        on, and trajectories that are still on the way are not saved: training can be resumed, but not exactly.

        :param folder: where checkpoints are; this one is a folder in it that is named after the number of steps
        :return: the path of the checkpoint
        :raises OSError: if it cannot be written; existing checkpoints, including one of the same name, are left as they were
        """
        path = super().save_checkpoint(folder)
        # As in a run that is resumed here
        if (actors := self._local_actors()) is not None:
            actors.begin_round(self._turn())
        if running := self._running_actors():
            self._actors_seed = running[0].spec.seed[0]
        return path

    def _turn(self) -> int:
        """The actor whose turn it is, by the number of steps: each has its turn, however often checkpoints are written."""
        return self.num_timesteps // (self.rollout_length * self.n_envs) % max(self.n_actors, 1)

    def _local_actors(self) -> LocalActors | None:
        """The actors in this process of the current or last ``learn()``."""
        actors = None if self._collection is None else self._collection.actors
        return actors if isinstance(actors, LocalActors) else None

    def _running_actors(self) -> Sequence[Actor]:
        """The actors here that can go on: all during ``learn()``, the one of the learner's own environments after it."""
        if (actors := self._local_actors()) is not None and actors.actors:
            return actors.actors
        # Unless learn() would reset these environments
        previous = self._previous
        return [] if previous is None or self._last_obs is None or previous.obs is not self._last_obs else [previous]

    def _was_reset(self) -> bool:
        return any(actor.was_reset for actor in self._running_actors())

    def _running_episodes(self) -> dict[str, Any] | None:
        if self._resumed is not None and self._last_obs is not None:
            return self._resumed  # those of the checkpoint, with which no actor has gone on yet
        actors = self._running_actors()
        if not actors or self._was_reset():
            return None
        if all(actor.obs is None for actor in actors):
            assert self.env is not None, "learn() has just reset it"
            environment_states(self.env)  # tells what is wrong with the actors' as well
            return None
        running = [actor.running_episodes() for actor in actors]
        own = {"return_scale": vars(self.return_scale), "seed": actors[0].spec.seed[0]}
        return None if None in running else {"actors": running, "model": to_json(own, "the model")}

    def _resume_episodes(self, episodes: dict[str, Any]) -> None:
        assert self.env is not None, "load_checkpoint() was given it"
        self._actors_seed = from_json(episodes["model"])["seed"]
        if self.n_actors:  # learn() makes the actors, and only needs observations of the learner's environments
            self._resumed, self._last_obs = episodes, self.env.reset()  # type: ignore[assignment]
            return
        actors = self._make_actors(episodes)
        assert isinstance(actors, LocalActors), "there is only this one"
        (self._previous,) = actors.actors
        self._last_obs = self._previous.obs

    def _seed_episodes(self, seed: int) -> None:
        super()._seed_episodes(seed)
        self._actors_seed = seed

    def _begin_episodes(self, seed: int) -> None:
        if self.n_actors and self.backend == "ray":
            return
        self._seed_episodes(seed)
        self._last_obs = None  # the next learn() resets the environments
        if (actors := self._local_actors()) is not None:
            actors.begin_episodes(self._streams_seed())

    def _streams_seed(self) -> tuple[int, ...]:
        # Without a seed, streams follow from NumPy's global state, as SB3's exploration does. With one, a later learn()
        # must not replay the random numbers of an earlier one
        seed = self.seed if self._actors_seed is None else self._actors_seed
        return (np.random.randint(2**31 - 1),) if seed is None else (seed, self._n_calls)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_collection", "_actors_seed", "_previous", "_resumed"]
