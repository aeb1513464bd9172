"""Reads and writes the `.pth` checkpoint files of the GroupViT and CoCu authors.

The embedded config is pickled, so the architecture is inferred from tensor shapes, with heads of
width 64 as in all published models. Files that we write also contain their config as text, so that
reading restores all settings.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cocu_jax.errors import UserError
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.config_json import OURS, read_groupvit_config
from cocu_jax.models.weights.groupvit_tensors import groupvit_from_tensors, groupvit_to_tensors
from cocu_jax.models.weights.names import OFFICIAL_GROUPVIT
from cocu_jax.models.weights.safetensors_file import StoredTensor
from cocu_jax.models.weights.target import new_file
from cocu_jax.models.weights.torch_file import open_torch, tensors_in, without_wrappers, write_torch

_ENTRY = "model"
_HEAD_WIDTH = 64


def load_official(file: str, dtype: str = "float32") -> GroupViT:
    """An authors' `.pth` as our GroupViT; no code in the file is executed.

    Args:
        file: a file with the weights under `model`; names may start with `module.` or
            `_orig_mod.`.
        dtype: type of matrix products, "float32" or "bfloat16"; parameters are float32.

    Raises:
        UserError: there is no such file, it is damaged, or it is not a GroupViT.
    """
    return read_official(open_torch(pathlib.Path(file)), str(file), dtype)


def read_official(content: Any, file: str, dtype: str = "float32") -> GroupViT:
    """The GroupViT in an opened `.pth`; arguments and errors as `load_official`."""
    tensors = without_wrappers(tensors_in(content, pathlib.Path(file), _ENTRY))
    if isinstance(content.get(OURS), str):
        config = _config_from_notes(content[OURS], file, dtype)
    else:
        config = _config_from_shapes(tensors, file, dtype)
    given = {"multi_label_log_scale": np.float32(math.log(1 / 0.07))}  # trained without prompts
    if "multi_label_logit_scale" in tensors:
        given = {}
    return groupvit_from_tensors(config, OFFICIAL_GROUPVIT, tensors, given, file)


def save_official(model: GroupViT, file: str) -> None:
    """Writes a `.pth` for the authors' code, which `torch.load(weights_only=True)` reads as well.

    Args:
        model: the model.
        file: name of the file; an existing file is replaced.

    Raises:
        UserError: it cannot be written.
    """
    tensors, config = groupvit_to_tensors(model, OFFICIAL_GROUPVIT)
    with new_file(file) as staging:
        write_torch(staging, tensors, _ENTRY, {OURS: json.dumps(config)})


def _config_from_notes(notes: str, source: str, dtype: str) -> GroupViTConfig:
    try:
        return read_groupvit_config(json.loads(notes), source, dtype)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: its entry {OURS!r} is damaged ({error})") from None


def _config_from_shapes(
    tensors: Mapping[str, StoredTensor], source: str, dtype: str
) -> GroupViTConfig:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{source}: tensor {name} is missing; is it a GroupViT checkpoint?")
        if len(tensors[name].shape) != rank:
            raise UserError(f"{source}: tensor {name} has shape {list(tensors[name].shape)}")
        return tensors[name].shape

    def blocks(pattern: str) -> int:
        return 1 + max(
            (int(match[1]) for name in tensors if (match := re.match(pattern, name))), default=-1
        )

    _, patches, width = shape("img_encoder.pos_embed", 3)
    patch = shape("img_encoder.patch_embed.proj.weight", 4)[-1]
    mlp = shape("img_encoder.layers.0.downsample.pre_assign_attn.mlp.fc1.weight", 2)
    hidden = shape("img_projector.linear_hidden.0.weight", 3)[0]
    return GroupViTConfig(
        image_size=patch * math.isqrt(patches),
        patch_size=patch,
        width=width,
        heads=_heads(width, source),
        mlp_ratio=mlp[0] / width,
        depths=tuple(blocks(rf"img_encoder\.layers\.{i}\.blocks\.(\d+)\.") for i in range(3)),
        groups=tuple(shape(f"img_encoder.layers.{i}.group_token", 3)[1] for i in range(2)),
        projection_hidden=hidden,
        projection_dim=shape("img_projector.linear_out.weight", 3)[0],
        text=_text_from_shapes(shape, blocks, source),
        dtype=dtype,
    )


def _text_from_shapes(shape, blocks, source: str) -> TextConfig:
    vocabulary, width = shape("text_encoder.token_embedding.weight", 2)
    mlp = shape("text_encoder.transformer.resblocks.0.mlp.c_fc.weight", 2)
    return TextConfig(
        vocab_size=vocabulary,
        context_length=shape("text_encoder.positional_embedding", 2)[0],
        width=width,
        heads=_heads(width, source),
        layers=blocks(r"text_encoder\.transformer\.resblocks\.(\d+)\."),
        mlp_ratio=mlp[0] / width,
    )


def _heads(width: int, source: str) -> int:
    if width % _HEAD_WIDTH:
        raise UserError(
            f"{source}: width {width} is not a multiple of {_HEAD_WIDTH}, the width of a head in "
            "published models"
        )
    return width // _HEAD_WIDTH
