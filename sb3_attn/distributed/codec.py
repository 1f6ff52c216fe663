"""Trajectories as bytes."""

import pickle

import zstandard

from sb3_attn.r2d2.trajectory import Trajectory

#: Frames of games become many times smaller on the lowest level already, and higher ones cost more than they save
LEVEL = 1


def pack(trajectory: Trajectory) -> bytes:
    """
    Compress a trajectory.

    :param trajectory: any
    :return: bytes for :func:`unpack`
    """
    return zstandard.compress(pickle.dumps(trajectory, protocol=5), LEVEL)


def unpack(packed: bytes) -> Trajectory:
    """
    The trajectory that was packed.

    :param packed: what :func:`pack` returned
    """
    return pickle.loads(zstandard.decompress(packed))
