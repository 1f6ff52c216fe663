"""Exploration in many environments at once."""

import numpy as np


def ape_x_epsilons(n_envs: int, base: float = 0.4, alpha: float = 7.0) -> np.ndarray:
    """
    One epsilon for each environment, epsilon_i = base^(1 + alpha i / (N - 1)).

    Horgan et al. (2018), section 4.1; also Kapturowski et al. (2019). Some environments explore a lot and others hardly at
    all, so no schedule is needed.

    :param n_envs: number of environments N; a single one gets ``base``
    :param base: epsilon of the first
    :param alpha: the epsilon of the last is ``base ** (1 + alpha)``
    :return: ``[N]``, decreasing
    """
    return base ** (1 + alpha * np.linspace(0, 1, n_envs))
