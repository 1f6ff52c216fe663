"""Environments and actors in their own processes, on one machine or many (needs the ``ray`` extra)."""

try:
    import ray  # noqa: F401
except ImportError as error:
    raise ImportError("sb3_attn.distributed needs Ray, which is not installed; pip install 'sb3_attn[ray]'.") from error

from sb3_attn.distributed.cluster import connect
from sb3_attn.distributed.ray_actors import RayActors, RayOptions, check_options
from sb3_attn.distributed.vec_env import RayVecEnv

__all__ = ["RayActors", "RayOptions", "RayVecEnv", "check_options", "connect"]
