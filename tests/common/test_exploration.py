"""Ape-X's epsilons: one for each environment."""

import pytest

from sb3_attn.common.exploration import ape_x_epsilons


@pytest.mark.parametrize("n_envs", [2, 3, 8, 256])
def test_epsilons_equal_their_formula(n_envs):
    expected = [0.4 ** (1 + 7 * i / (n_envs - 1)) for i in range(n_envs)]
    assert ape_x_epsilons(n_envs).tolist() == pytest.approx(expected)
    expected = [0.5 ** (1 + 3 * i / (n_envs - 1)) for i in range(n_envs)]
    assert ape_x_epsilons(n_envs, base=0.5, alpha=3).tolist() == pytest.approx(expected)


def test_a_single_environment_gets_the_base():
    assert ape_x_epsilons(1).tolist() == [0.4]
