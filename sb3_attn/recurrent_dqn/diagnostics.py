"""Numbers for the logger that show why a model does not learn; docs/guide/diagnostics.md says how to read them."""

import math
from collections import deque

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn.common import td
from sb3_attn.common.core_state import CoreState, map_state
from sb3_attn.memory import MemoryCore
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork
from sb3_attn.replay import SequenceReplayBuffer, SequenceReplayBufferSamples

#: Delta Q is measured on this many windows, each with at most this many steps before it, and at most once in this many
#: updates, so that it takes less than 1 % of the time of training, and less memory than a batch of images
DELTA_Q_WINDOWS, DELTA_Q_MAX_PAST, DELTA_Q_INTERVAL = 4, 500, 200


class EpisodeValues:
    """
    Q-values at the starts of episodes, and the discounted returns of these episodes.

    A truncated episode would have gone on, so its return ends with the value of the last observation in which it acted:
    r_1 + ... + gamma^(T-2) r_{T-1} + gamma^(T-1) max_a Q(o_{T-1}, a), with T steps and observations from o_0.

    :param n_envs: number of environments K
    :param gamma: the discount factor
    :param value_rescaling: whether the network learns h(Q), so that its values have to be converted
    """

    def __init__(self, n_envs: int, gamma: float, value_rescaling: bool) -> None:
        self.gamma = gamma
        self.value_rescaling = value_rescaling
        self._first_values, self._returns, self._discounts = np.zeros((3, n_envs))

    def update(
        self, values: np.ndarray, rewards: np.ndarray, timeouts: np.ndarray, episode_starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Take account of one step of each environment.

        :param values: max_a Q of the observations before the step, ``[K]``
        :param rewards: ``[K]``
        :param timeouts: whether the step truncated an episode, ``[K]``
        :param episode_starts: whether those observations are the first of their episodes, ``[K]``
        :return: max_a Q of the episodes' first observations, and their discounted returns so far, ``[K]`` both
        """
        if episode_starts.any() or timeouts.any():  # the values of all other steps are not needed
            if self.value_rescaling:
                values = td.signed_parabolic(th.as_tensor(values)).numpy()
            self._first_values = np.where(episode_starts, values, self._first_values)
            self._returns[episode_starts], self._discounts[episode_starts] = 0.0, 1.0
            rewards = np.where(timeouts, values, rewards)
        self._returns += self._discounts * rewards
        self._discounts *= self.gamma
        return self._first_values, self._returns


class Diagnostics:
    """
    The diagnostics of an algorithm. Nothing here changes what it learns: no shared random numbers, no gradient.

    :param n_envs: number of environments that the algorithm itself steps
    :param gamma: the discount factor
    :param value_rescaling: whether the network learns h(Q)
    """

    def __init__(self, n_envs: int, gamma: float, value_rescaling: bool) -> None:
        self.value_rescaling = value_rescaling
        self.episode_values = EpisodeValues(n_envs, gamma, value_rescaling)
        self._last_update: tuple[th.Tensor, th.Tensor, CoreState] | None = None
        self._grad_norms: deque[th.Tensor] = deque(maxlen=100)  # bounded, since a run may never log
        self._rng = np.random.default_rng(0)
        self._last_delta_q = 0
        self._forget_episodes()

    def _forget_episodes(self) -> None:
        self._n_episodes, self._sum_of_values, self._sum_of_returns = 0, 0.0, 0.0

    def add_step(
        self, values: np.ndarray, rewards: np.ndarray, dones: np.ndarray, timeouts: np.ndarray, episode_starts: np.ndarray
    ) -> None:
        """
        Take account of one step of each environment; the arguments as for ``EpisodeValues.update``.

        :param dones: whether an episode ended, ``[K]``
        """
        first_values, returns = self.episode_values.update(values, rewards, timeouts, episode_starts)
        if dones.any():
            self.add_episodes(first_values[dones], returns[dones])

    def add_episodes(self, first_values: np.ndarray, returns: np.ndarray) -> None:
        """
        Take account of n episodes that ended.

        :param first_values: max_a Q of their first observations, ``[n]``
        :param returns: their discounted returns, ``[n]``
        """
        self._n_episodes += len(returns)
        self._sum_of_values += float(np.sum(first_values))
        self._sum_of_returns += float(np.sum(returns))

    def add_update(self, chosen_values: th.Tensor, mask: th.Tensor, core_state: CoreState, grad_norm: th.Tensor) -> None:
        """
        Keep what ``log_updates`` needs of one update; nothing is computed yet.

        :param chosen_values: N values of the actions taken, ``[T, B, N]``
        :param mask: True on trained steps, bool ``[T, B]``
        :param core_state: the state after the unroll, ``[B, ...]``
        :param grad_norm: norm of the gradient before clipping
        """
        self._last_update = chosen_values.detach(), mask, map_state(th.Tensor.detach, core_state)
        self._grad_norms.append(grad_norm)

    def log_updates(self, logger: Logger, core: MemoryCore) -> None:
        """
        Record the mean norm of the gradients since the last call, and values and state of the last update, if there was one.

        :param logger: the logger
        :param core: the memory
        """
        if self._last_update is None:
            return
        chosen_values, mask, core_state = self._last_update
        q_values = chosen_values.mean(dim=-1)[mask]
        logger.record("train/q_value", (td.signed_parabolic(q_values) if self.value_rescaling else q_values).mean().item())
        # The unroll takes shorter windows through padding; mask[-1] is True on the longest, of which there is at least one
        logger.record("train/state_norm", state_norm(core, core_state, mask[-1]))
        logger.record("train/grad_norm", th.stack(tuple(self._grad_norms)).mean().item())
        self._last_update = None
        self._grad_norms.clear()

    def log_episodes(self, logger: Logger) -> None:
        """
        Record the means of the episodes since the last call, if one has ended.

        :param logger: the logger
        """
        if self._n_episodes > 0:
            logger.record("rollout/q_value_first", self._sum_of_values / self._n_episodes)
            logger.record("rollout/discounted_return", self._sum_of_returns / self._n_episodes)
            self._forget_episodes()

    def log_delta_q(
        self,
        logger: Logger,
        q_net: RecurrentQNetwork,
        replay_buffer: SequenceReplayBuffer,
        n_updates: int,
        env: VecNormalize | None = None,
    ) -> None:
        """
        Record Delta Q, if it is due and a window has steps before its burn-in.

        :param logger: the logger
        :param q_net: the online network
        :param replay_buffer: where the windows come from
        :param n_updates: number of updates so far
        :param env: normalizes observations, if given
        """
        if n_updates - self._last_delta_q < DELTA_Q_INTERVAL:
            return
        batches = replay_buffer.sample_with_past(DELTA_Q_WINDOWS, DELTA_Q_MAX_PAST, self._rng, env)
        if batches is None:
            return
        self._last_delta_q = n_updates
        first, last = delta_q(q_net, *batches)
        logger.record("train/delta_q_first", first)
        logger.record("train/delta_q_last", last)


def state_norm(core: MemoryCore, state: CoreState, rows: th.Tensor) -> float:
    """
    Root mean square of all numbers in which a core remembers.

    :param core: the memory
    :param state: ``[B, ...]``
    :param rows: rows to take into account, bool ``[B]``
    :return: 0 for a core without a memory
    """
    named = state._asdict().items()  # type: ignore[attr-defined]
    fields = [field[rows] for name, field in named if name not in core.auxiliary_fields and field.is_floating_point()]
    n_numbers = sum(field.numel() for field in fields)
    return math.sqrt(sum(field.square().sum().item() for field in fields) / n_numbers) if n_numbers else 0.0


@th.no_grad()
def delta_q(
    q_net: RecurrentQNetwork, batch: SequenceReplayBufferSamples, with_past: SequenceReplayBufferSamples
) -> tuple[float, float]:
    """
    Delta Q = ||q(h^_t) - q(h_t)||_2 / |max_{a, j} q(h^_j)_a|, at the first and the last trained step t of windows.

    Kapturowski et al. (2019), section 3. h^ is the state as training has it: from the stored state through the burn-in. Our h
    is the state of the present parameters after the whole episode so far; the paper's is the stored state of step t, which the
    replay does not keep. The maximum is over all actions and trained steps j of a window. Numerator and denominator are summed
    over the windows before they are divided, since a single window with values near 0 would outweigh all others.

    :param q_net: the network, which is left in the mode in which it was
    :param batch: B windows
    :param with_past: the same windows, whose burn-in is the whole episode so far
    :return: Delta Q at the first step and at the last
    """
    training = q_net.training
    q_net.set_training_mode(False)  # as acting: nothing is sampled
    q_values, true_values = (q_net.unroll(batch.observations, q_net.burn_in(b))[0][:-1] for b in (batch, with_past))
    q_net.set_training_mode(training)
    largest = th.where(batch.mask, q_net.components.best(q_values)[0], -th.inf).amax(dim=0).abs()
    distances = (q_values - true_values).norm(dim=-1)  # [T, B]
    last_steps = batch.mask.sum(dim=0) - 1
    scale = max(largest.sum().item(), np.finfo(np.float32).tiny)  # all values are 0 where no reward has been seen
    return distances[0].sum().item() / scale, distances.gather(0, last_steps.unsqueeze(0)).sum().item() / scale
