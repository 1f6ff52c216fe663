"""The task that DARQN is measured on: memory and attention solve it, either alone does not."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("rl_zoo3")

from benchmarks.darqn import TASKS, RememberedSearch


def episode(env: RememberedSearch, seed: int) -> list[np.ndarray]:
    """All observations that an action answers; no action changes them."""
    observations = [env.reset(seed=seed)[0]]
    for _ in range(env.blanks + 1):
        obs, reward, terminated, _, _ = env.step(np.int64(0))
        assert not terminated and reward == 0
        observations.append(obs)
    return observations


@pytest.mark.parametrize("kinds", [2, 4])
def test_memory_solves_it_and_without_it_the_ceiling_is_the_best(kinds):
    env = RememberedSearch(kinds)
    remembered, most_frequent = [], []
    for seed in range(2000):
        first, *blanks, last = episode(env, seed)
        assert not np.any(blanks) and (first == first[0]).all()
        kind = first[0, :kinds].argmax()
        values = last[:, kinds:]
        answer = values[last[:, kind].argmax()].argmax()
        assert last[env.target, kind] == 1
        most_frequent.append(float(values.sum(axis=0).argmax() == answer))
        _, reward, terminated, _, _ = env.step(answer)
        assert terminated
        remembered.append(reward)
    assert np.mean(remembered) == 1
    assert np.mean(most_frequent) == pytest.approx(TASKS[f"RememberedSearch, {kinds} kinds"].ceiling, abs=0.04)


def test_it_is_an_environment():
    check_env(RememberedSearch(), skip_render_check=True)
