"""RL Zoo for the algorithms of this package: ``sb3-attn train | enjoy | optimize | ...`` (needs the ``zoo`` extra)."""

from sb3_attn.zoo.registration import ALGORITHMS, ZooAlgorithm, register, zoo_config_path

__all__ = ["ALGORITHMS", "ZooAlgorithm", "register", "zoo_config_path"]
