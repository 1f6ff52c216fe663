"""Features extractors for ``policy_kwargs`` of SB3's algorithms."""

from typing import Any

from sb3_attn.common.former_names import find_by_former_name
from sb3_attn.extractors import attention, frozen, impala, memory
from sb3_attn.extractors.attention import *
from sb3_attn.extractors.frozen import *
from sb3_attn.extractors.impala import *
from sb3_attn.extractors.memory import *

__all__ = [*attention.__all__, *frozen.__all__, *impala.__all__, *memory.__all__]


def __getattr__(name: str) -> Any:
    return find_by_former_name(__name__, name)
