"""Trajectories as bytes."""

import pickle

import zstandard

from sb3_attn.r2d2.trajectory import Trajectory

#: The lowest level already makes game frames many times smaller; higher ones cost more time than they save in transfer
LEVEL = 1


def pack(trajectory: Trajectory) -> bytes:
    """
    Compress a trajectory.

    :param trajectory: of any actor
    :return: bytes for :func:`unpack`
    """
    return zstandard.compress(pickle.dumps(trajectory, protocol=5), LEVEL)


def unpack(packed: bytes) -> Trajectory:
    """
    Decompress a trajectory.

    :param packed: bytes from :func:`pack`
    :return: the trajectory
    """
    return pickle.loads(zstandard.decompress(packed))
