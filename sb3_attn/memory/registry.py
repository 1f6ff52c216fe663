"""The registry of memory cores."""

from typing import Any

from sb3_attn.memory.core import IdentityCore, MemoryCore
from sb3_attn.memory.ctrnn import CTRNNCore
from sb3_attn.memory.external.dnc import DNCCore
from sb3_attn.memory.external.ntm import NTMCore
from sb3_attn.memory.gtrxl import GTrXLCore
from sb3_attn.memory.key_value import KeyValueMemoryCore
from sb3_attn.memory.min_gru import MinGRUCore
from sb3_attn.memory.rnn import GRUCore, LSTMCore, RNNCore

# ``sb3_attn`` and ``sb3_attn.memory`` export these too
__all__ = [
    "CORES",
    "CTRNNCore",
    "DNCCore",
    "GRUCore",
    "GTrXLCore",
    "IdentityCore",
    "KeyValueMemoryCore",
    "LSTMCore",
    "MinGRUCore",
    "NTMCore",
    "RNNCore",
    "get_core_class",
    "make_core",
]

#: The cores that ``policy_kwargs=dict(core=...)`` accepts by name
CORES: dict[str, type[MemoryCore]] = {
    "ctrnn": CTRNNCore,
    "dnc": DNCCore,
    "gru": GRUCore,
    "gtrxl": GTrXLCore,
    "identity": IdentityCore,
    "key_value": KeyValueMemoryCore,
    "lstm": LSTMCore,
    "mingru": MinGRUCore,
    "ntm": NTMCore,
    "rnn": RNNCore,
}

#: Other names that users try, and names in older files
ALIASES = {"gated_transformer": "gtrxl", "transformer": "gtrxl"}


def get_core_class(core: str | type[MemoryCore]) -> type[MemoryCore]:
    """
    Look up a memory core.

    :param core: a key of ``CORES`` or ``ALIASES``, in upper or lower case, or a ``MemoryCore`` subclass
    :return: the class
    :raises ValueError: if the name is unknown, or the class is not a ``MemoryCore``
    """
    if isinstance(core, str):
        name = core.lower()
        name = ALIASES.get(name, name)
        if name not in CORES:
            raise ValueError(f"core={core!r} is unknown; choose one of {sorted(CORES)} or pass a MemoryCore subclass.")
        return CORES[name]
    if not (isinstance(core, type) and issubclass(core, MemoryCore)):
        raise ValueError(
            f"core={core!r} is not a subclass of MemoryCore; subclass sb3_attn.MemoryCore or choose one of {sorted(CORES)}."
        )
    return core


def make_core(core: str | type[MemoryCore], input_size: int, core_kwargs: dict[str, Any] | None = None) -> MemoryCore:
    """
    Build a memory core from a name or a class.

    :param core: as for ``get_core_class``
    :param input_size: size F of its input vectors
    :param core_kwargs: further arguments of its constructor
    :return: the core
    :raises ValueError: if the name is unknown, the arguments do not fit the core, or its state is not a NamedTuple
    """
    core_class = get_core_class(core)
    try:
        built = core_class(input_size, **(core_kwargs or {}))
    except TypeError as error:
        raise ValueError(f"core_kwargs={core_kwargs} do not fit {core_class.__name__}: {error}.") from error
    if not hasattr(state := built.initial_state(1), "_fields"):
        raise ValueError(
            f"{core_class.__name__}.initial_state() returns a {type(state).__name__}; give it a NamedTuple of tensors."
        )
    return built
