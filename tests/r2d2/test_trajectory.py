"""NaN and infinity in a trajectory: whatever part they are in, the error names actor, environment and key."""

from functools import partial

import numpy as np
import pytest

from tests.helpers.actors import make_actor
from tests.helpers.environments import POLICIES, SPACES, Walk
from tests.helpers.models import make_r2d2


@pytest.mark.parametrize("part", ["rewards", "observations", "next_observations"])
def test_a_nan_anywhere_in_a_trajectory_is_found(part: str) -> None:
    trajectory = make_actor(make_r2d2(n_actors=1)).collect(5)
    array = getattr(trajectory, part)
    array = array["observation"] if isinstance(array, dict) else array
    array[(1,) if part == "next_observations" else (2, 1)] = np.nan
    with pytest.raises(ValueError, match=r"environment 1 returned .*\(actor 0\)"):
        trajectory.check_finite(0)


def test_a_nan_in_a_final_observation_names_its_environment() -> None:
    trajectory = make_actor(make_r2d2(n_actors=1)).collect(30)
    _, k = np.argwhere(trajectory.timeouts)[0]
    trajectory.final_observations[0]["observation"][2] = np.nan
    with pytest.raises(ValueError, match=f"environment {k} returned a non-finite final observation"):
        trajectory.check_finite(0)


def test_actor_and_environment_are_named() -> None:
    first, second = (make_actor(make_r2d2(n_actors=2), index).collect(5) for index in range(2))
    first.check_finite(0)
    second.rewards[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"environment 1 returned a non-finite reward \(actor 1\) at step 70: nan"):
        second.check_finite(70)


def test_the_key_of_a_dict_is_named() -> None:
    env = partial(Walk, "dict")
    trajectory = make_actor(make_r2d2(env, POLICIES["dict"], n_actors=1, envs_per_actor=3)).collect(5)
    trajectory.check_finite(0)
    trajectory.next_observations["a"][2] = np.inf
    with pytest.raises(ValueError, match=r"environment 2 returned a non-finite observation 'a' \(actor 0\)"):
        trajectory.check_finite(0)


@pytest.mark.parametrize("kind", SPACES)
def test_final_observations_are_checked(kind: str) -> None:
    model = make_r2d2(partial(Walk, kind), POLICIES[kind], n_actors=1, envs_per_actor=2)
    trajectory = make_actor(model).collect(20)
    trajectory.check_finite(0)
    for key, array in trajectory.final_observations[-1].items():
        if array.dtype.kind == "f":
            array[...] = np.nan
            with pytest.raises(ValueError, match=f"non-finite final observation {key!r}"):
                trajectory.check_finite(0)
