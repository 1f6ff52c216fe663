"""Default arguments of optimizers."""

from typing import Any

import torch as th


def default_optimizer_kwargs(optimizer_class: type[th.optim.Optimizer]) -> dict[str, Any]:
    """
    Default keyword arguments of an optimizer: Adam is fused, which changes only its speed.

    :param optimizer_class: class of the optimizer
    :return: keyword arguments
    """
    return {"fused": True} if optimizer_class is th.optim.Adam else {}
