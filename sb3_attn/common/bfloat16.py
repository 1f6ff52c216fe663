"""Computing in bfloat16 where the processor has instructions for it."""

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch as th


def bfloat16_if(enabled: bool, device: th.device) -> AbstractContextManager:
    """
    Autocast to bfloat16, or nothing.

    :param enabled: whether to do so; if the device has no instructions for it, a warning says so once
    :param device: where it is computed
    :return: a context in which operations that autocast knows are computed in bfloat16
    """
    if not enabled:
        return nullcontext()
    _warn_if_slow(device.type)
    return th.autocast(device.type, th.bfloat16)


@functools.cache
def _warn_if_slow(device_type: str) -> None:
    if device_type == "cpu":
        supported = th.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        supported = device_type != "cuda" or th.cuda.is_bf16_supported(including_emulation=False)
    if not supported:
        warnings.warn(
            f"bf16=True or bf16_features=True, but device {device_type} has no instructions for bfloat16, so training is "
            "slower rather than faster; leave it out.",
            stacklevel=3,
        )
