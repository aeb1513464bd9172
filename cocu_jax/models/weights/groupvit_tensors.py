"""Converts between a GroupViT and the tensors of a checkpoint in a published format.

These formats have no field for `assign_logit_scale`, so it is folded into the weights. The
assignment's logits are scale * (W x + b) . k / sqrt(D). If W and b, the query projection of each
grouping block, are multiplied by the scale, the model computes the same without it. A power of two
only changes exponents, so reading divides by it again and restores the weights bit by bit. With any
other scale folding rounds the weights, so reading leaves them as they are and sets the scale to 1.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.weights.config_json import write_groupvit_config
from cocu_jax.models.weights.convert import arrays, model_from_tensors, tensors_from_arrays
from cocu_jax.models.weights.names import Table, find
from cocu_jax.models.weights.safetensors_file import StoredTensor

_FOLDED_INTO = ("grouping.assign.query.kernel", "grouping.assign.query.bias")


def groupvit_from_tensors(
    config: GroupViTConfig,
    table: Table,
    tensors: Mapping[str, StoredTensor],
    given: Mapping[str, np.ndarray],
    source: str,
) -> GroupViT:
    """The model in a checkpoint; its assignment scale is restored if that is exact.

    Args:
        config: the config that was written with the checkpoint.
        table: names of its tensors.
        tensors: the checkpoint.
        given: see `model_from_tensors`.
        source: the checkpoint's name, for messages.

    Raises:
        UserError: see `model_from_tensors`.
    """
    if math.frexp(config.assign_logit_scale)[0] != 0.5:  # no power of two
        config = dataclasses.replace(config, assign_logit_scale=1.0)
    scale = np.float32(config.assign_logit_scale)
    return model_from_tensors(
        lambda rngs: GroupViT(config, rngs=rngs),
        functools.partial(find, table),
        tensors,
        given,
        source,
        lambda path, array: array / scale if path.endswith(_FOLDED_INTO) else array,
    )


def groupvit_to_tensors(model: GroupViT, table: Table) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors of a checkpoint by name, and the content of its `config.json`."""
    scale = np.float32(model.config.assign_logit_scale)
    folded = {
        path: array * scale if path.endswith(_FOLDED_INTO) else array
        for path, array in arrays(model).items()
    }
    config = write_groupvit_config(model.config, folded["multi_label_log_scale"])
    return tensors_from_arrays(folded, table), config
