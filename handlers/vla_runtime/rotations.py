"""Rotations as a network gives them, made valid again: a linear output is no rotation yet."""

import numpy as np

# A vector shorter than this has no direction that could be trusted.
SHORTEST = 1e-6


def unit_quaternion(values: np.ndarray) -> np.ndarray:
    """Scale quaternions to unit norm, whatever the order of their parts.

    Args:
        values: float32 [..., 4]

    Returns:
        float32 [..., 4]; NaN where the norm is too small to have a direction
    """
    return _unit(values.astype(np.float64)).astype(np.float32)


def orthonormal_6d(values: np.ndarray) -> np.ndarray:
    """Make the first two columns of a rotation matrix orthonormal by Gram-Schmidt.

    The continuous representation of Zhou et al. 2019, "On the Continuity of Rotation Representations in
    Neural Networks"; the third column is the cross product of the two.

    Args:
        values: float32 [..., 6], the first column, then the second

    Returns:
        float32 [..., 6]; NaN where a column vanishes or the two are parallel
    """
    columns = values.astype(np.float64)
    first = _unit(columns[..., :3])
    second = _unit(columns[..., 3:])
    second = _unit(second - (first * second).sum(-1, keepdims=True) * first)
    return np.concatenate([first, second], axis=-1).astype(np.float32)


# Kind of rotation -> numbers it takes, and what makes them valid.
KINDS = {"quaternion": (4, unit_quaternion), "rotation_6d": (6, orthonormal_6d)}


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths < SHORTEST, np.nan, lengths)
