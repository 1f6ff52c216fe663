"""Heads: the layers after the memory, which value the actions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F

from sb3_attn.memory.core import check_sizes

#: Largest number of outputs for which one matrix product combines V and the advantages
MAX_MATRIX_SIZE = 64


def take_actions(values: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    Select the values of some actions.

    :param values: ``[..., N, A]``
    :param actions: ``[...]``
    :return: ``[..., N]``
    """
    indices = actions[..., None, None].expand(*values.shape[:-1], 1)
    return values.gather(-1, indices).squeeze(-1)


def expected_values(values: th.Tensor) -> th.Tensor:
    """
    Q-values: the mean of N values of each action.

    :param values: ``[..., N, A]``
    :return: ``[..., A]``
    """
    # torch takes as long for a mean over one number as for a whole layer, which would slow acting down
    return values.squeeze(-2) if values.shape[-2] == 1 else values.mean(dim=-2)


def dueling_values(outputs: th.Tensor, sizes: Sequence[int]) -> th.Tensor:
    """
    Q = V + A - mean A, the mean in each component.

    Wang et al. (2016), eq. 9. The mean is subtracted so that V and A are determined: without it a constant could move from one
    to the other.

    :param outputs: V, then the advantages, ``[..., 1 + A]``
    :param sizes: number of actions of each component; their sum is A
    :return: ``[..., A]``
    """
    parts = outputs[..., 1:].split(list(sizes), dim=-1)
    return outputs[..., :1] + th.cat([part - part.mean(dim=-1, keepdim=True) for part in parts], dim=-1)


class Head(nn.Sequential):
    """
    Layers that give each action N values, whose mean is its Q-value; N is 1 here.

    The layers' outputs, and the errors in the loss, are measured in units of ``running_scale``: ``values = running_scale *
    outputs``. The algorithm sets it to the size of the returns, so that learning does not depend on the unit of the rewards.

    :param latent_dim: size of the inputs
    :param n_actions: number of actions A; for ``MultiDiscrete`` actions, the number of choices of each component, whose sum
        is A
    :param net_arch: sizes of the hidden layers
    :param activation_fn: Activation function
    :param dueling: Q = V + A - mean A (Wang et al. 2016, eq. 9); V and A share the hidden layers, at half the cost of the
        paper's two streams
    :param n_values: number N of values
    """

    # SB3 copies what is called "running_" to the target network whenever it updates that
    running_scale: th.Tensor
    dueling_matrix: th.Tensor | None

    def __init__(
        self,
        latent_dim: int,
        n_actions: int | Sequence[int],
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        dueling: bool = True,
        n_values: int = 1,
    ) -> None:
        check_sizes(self, n_values=n_values)
        if type(self) is Head and n_values > 1:  # this loss would pair values with targets one by one
            raise ValueError(f'n_values={n_values} of Head must be 1; leave it out, or use head="quantile".')
        sizes = [int(n_actions)] if isinstance(n_actions, int | np.integer) else list(n_actions)
        # With dueling one more output than actions: V, then the advantages
        super().__init__(*create_mlp(latent_dim, n_values * (sum(sizes) + dueling), net_arch, activation_fn))
        self.component_sizes = sizes
        self.dueling = dueling
        self.n_values = n_values
        self.register_buffer("running_scale", th.ones(()))
        # With few actions, one product takes less than half the time of the separate steps, which speeds acting up
        n_outputs = 1 + sum(sizes)
        matrix = dueling_values(th.eye(n_outputs), sizes) if dueling and n_outputs <= MAX_MATRIX_SIZE else None
        self.register_buffer("dueling_matrix", matrix, persistent=False)

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """
        Value the actions.

        :param latent: ``[..., latent_dim]``
        :return: values ``[..., N, A]``
        """
        outputs = super().forward(latent).unflatten(-1, (self.n_values, -1))
        if self.dueling_matrix is not None:
            outputs = outputs @ self.dueling_matrix
        elif self.dueling:
            outputs = dueling_values(outputs, self.component_sizes)
        n_components = len(self.component_sizes)
        return (self.running_scale if n_components == 1 else self.running_scale / n_components) * outputs

    def loss(self, values: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        Huber loss of the errors, measured in the outputs' unit.

        :param values: N values of the actions taken, ``[T, B, N]``
        :param targets: ``[T, B, N]``
        :return: ``[T, B]``
        """
        return F.smooth_l1_loss(values / self.running_scale, targets / self.running_scale, reduction="none").sum(dim=-1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}running_scale", th.ones(()))  # models of earlier versions have none
        super()._load_from_state_dict(state_dict, prefix, *args)


class QuantileHead(Head):
    """
    Layers that give each action N quantiles of its return: QR-DQN.

    Dabney et al. (2018), https://arxiv.org/abs/1710.10044. Parameters as for ``Head``.
    """

    def __init__(
        self,
        latent_dim: int,
        n_actions: int | Sequence[int],
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        dueling: bool = True,
        n_values: int = 32,
    ) -> None:
        super().__init__(latent_dim, n_actions, net_arch, activation_fn, dueling, n_values)

    def loss(self, values: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        Quantile Huber loss: sum_i mean_j |tau_i - 1{u_ij < 0}| L(u_ij), with u_ij = target_j - value_i.

        Dabney et al. (2018), eq. 10 and algorithm 1, with kappa = 1.

        :param values: quantiles of the actions taken, at tau_i = (2 i - 1) / (2 N), ``[T, B, N]``
        :param targets: ``[T, B, N]``
        :return: ``[T, B]``
        """
        fractions = (th.arange(self.n_values, device=values.device) + 0.5) / self.n_values
        errors = (targets.unsqueeze(-2) - values.unsqueeze(-1)) / self.running_scale  # u_ij, [T, B, N, N]
        weights = (fractions.unsqueeze(-1) - (errors.detach() < 0).float()).abs()
        return (weights * F.huber_loss(errors, th.zeros_like(errors), reduction="none")).mean(dim=-1).sum(dim=-1)


#: The heads that ``policy_kwargs=dict(head=...)`` accepts by name
HEADS: dict[str, type[Head]] = {"expected": Head, "quantile": QuantileHead}


def make_head(
    head: str | type[Head],
    latent_dim: int,
    n_actions: int | Sequence[int],
    net_arch: list[int],
    activation_fn: type[nn.Module],
    dueling: bool,
    head_kwargs: dict[str, Any] | None = None,
) -> Head:
    """
    Build a head from a name or a class.

    :param head: a key of ``HEADS``, or a ``Head`` subclass
    :param latent_dim: as for ``Head``, like the following three
    :param n_actions: number of actions, or a list with that of each component
    :param net_arch: sizes of the hidden layers
    :param activation_fn: Activation function
    :param dueling: whether the head learns values and advantages
    :param head_kwargs: further arguments of its constructor
    :return: the head
    :raises ValueError: if the name is unknown, the class is not a ``Head``, or the arguments do not fit it
    """
    head_class = HEADS.get(head) if isinstance(head, str) else head
    if not (isinstance(head_class, type) and issubclass(head_class, Head)):
        raise ValueError(f"head={head!r} is unknown; choose one of {sorted(HEADS)} or pass a Head subclass.")
    try:
        return head_class(latent_dim, n_actions, net_arch, activation_fn, dueling, **(head_kwargs or {}))
    except TypeError as error:
        raise ValueError(
            f"head_kwargs={head_kwargs} do not fit {head_class.__name__} with n_actions={n_actions}: {error}."
        ) from error
