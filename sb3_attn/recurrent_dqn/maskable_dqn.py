"""DQN with action masks, without a memory."""

from typing import Any, TypeVar

from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_attn.memory import IdentityCore
from sb3_attn.recurrent_dqn.policies import RecurrentDQNPolicy
from sb3_attn.recurrent_dqn.recurrent_dqn import RecurrentDQN

SelfMaskableDQN = TypeVar("SelfMaskableDQN", bound="MaskableDQN")

#: What makes RecurrentDQN's network that of DQN, and its update
DQN_NETWORK: dict[str, Any] = dict(core="identity", encoder_arch=[], dueling=False, skip_connection=False, ema_decay=0.0)
DQN_UPDATE: dict[str, Any] = dict(
    double_q=False,
    clipped_double_q=False,
    td_lambda=None,
    reward_scaling=False,
    trace_length=1,
    burn_in_length=0,
    stored_state=False,
)


class MaskableDQN(RecurrentDQN):
    """
    Stable-Baselines3's DQN with action masks, by the protocol of sb3-contrib's MaskablePPO.

    It is ``RecurrentDQN`` with a core that remembers nothing and with what DQN does not have switched off. Where all actions
    are valid it learns as DQN does; with one environment and SB3's Adam (``policy_kwargs=dict(optimizer_kwargs={})``) the
    same, bit for bit. Features extractors are chosen by ``policy_kwargs``.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from, with a method ``action_masks()`` (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: how many steps of the model to collect transitions for before learning starts
    :param batch_size: Minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1) default 1 for hard update
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout; ``-1`` means as many as steps done
    :param target_update_interval: update the target network every ``target_update_interval`` environment steps.
    :param exploration_fraction: fraction of entire training period over which the exploration rate is reduced
    :param exploration_initial_eps: initial value of random action probability
    :param exploration_final_eps: final value of random action probability
    :param max_grad_norm: The maximum value for the gradient clipping
    :param policy_kwargs: additional arguments for the policy: ``net_arch``, ``features_extractor_class``, ...
    :param kwargs: further arguments of ``RecurrentDQN``, such as ``seed``, ``verbose``, ``device`` and ``use_masking``
    :raises ValueError: as ``RecurrentDQN`` does, and if ``n_steps`` is more than ``trace_length``, which is 1 here,
        or there is a memory
    """

    def __init__(
        self,
        policy: str | type[RecurrentDQNPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 32,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        target_update_interval: int = 10_000,
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        max_grad_norm: float = 10,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        n_steps, trace_length = kwargs.get("n_steps", 1), kwargs.get("trace_length", 1)
        if trace_length is not None and n_steps > trace_length:
            raise ValueError(
                f"n_steps={n_steps}, but returns end with the window, and trace_length={trace_length}; give at least "
                f"trace_length={n_steps}, too."
            )
        core = (policy_kwargs or {}).get("core", "identity")
        if core not in ("identity", IdentityCore):
            raise ValueError(f"core={core!r}, but MaskableDQN has no memory; use RecurrentDQN, which takes masks as well.")
        policy_class = self.policy_aliases[policy] if isinstance(policy, str) and policy in self.policy_aliases else policy
        default_extractor = getattr(policy_class, "default_features_extractor", None)
        extractor = (policy_kwargs or {}).get("features_extractor_class") or default_extractor
        net_arch: list[int] = [] if extractor is NatureCNN else [64, 64]  # as SB3 has them
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            target_update_interval=target_update_interval,
            exploration_fraction=exploration_fraction,
            exploration_initial_eps=exploration_initial_eps,
            exploration_final_eps=exploration_final_eps,
            max_grad_norm=max_grad_norm,
            policy_kwargs=DQN_NETWORK | {"net_arch": net_arch} | (policy_kwargs or {}),
            **(DQN_UPDATE | kwargs),
        )

    def learn(
        self: SelfMaskableDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MaskableDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskableDQN:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
