"""`assign_logit_scale` has no place in published checkpoints: it is folded into the weights.

The assignment's logits are scale * (W x + b) . k / sqrt(D), so multiplying W and b, the query
projection of each grouping block, by the scale gives a model that computes the same without it.
A power of two only shifts exponents: reading divides by it again and restores every bit. Any other
scale rounds once when folded, so it stays folded: the model read back has scale 1 and computes the
same as the file.
"""

import dataclasses
import math

import numpy as np

from cocu_jax.models.groupvit import GroupViTConfig

_FOLDED_INTO = ("grouping.assign.query.kernel", "grouping.assign.query.bias")


def fold(path: str, array: np.ndarray, scale: float) -> np.ndarray:
    """The array at our `path` as it is published."""
    return array * np.float32(scale) if path.endswith(_FOLDED_INTO) else array


def unfold(path: str, array: np.ndarray, scale: float) -> np.ndarray:
    """The array at our `path` as it was before `fold`."""
    return array / np.float32(scale) if path.endswith(_FOLDED_INTO) else array


def restored(config: GroupViTConfig) -> GroupViTConfig:
    """The config of the model read back from a file that `config` was published with."""
    exact = math.frexp(config.assign_logit_scale)[0] == 0.5
    return config if exact else dataclasses.replace(config, assign_logit_scale=1.0)
