"""Reads and writes Hugging Face checkpoints, without torch."""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from safetensors.numpy import save_file

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.siglip import Siglip
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.config_json import (
    read_clip_config,
    read_groupvit_config,
    read_multi_label_scale,
    read_siglip_config,
    write_clip_config,
    write_siglip_config,
)
from cocu_jax.models.weights.convert import arrays, model_from_tensors, tensors_from_arrays
from cocu_jax.models.weights.groupvit_tensors import groupvit_from_tensors, groupvit_to_tensors
from cocu_jax.models.weights.hub_files import write_hub_files, write_json
from cocu_jax.models.weights.image_processing import (
    ImageProcessing,
    imagenet_processing,
    read_joint_processing,
    read_processing,
    siglip_processing,
)
from cocu_jax.models.weights.names import (
    HUGGINGFACE_CLIP,
    HUGGINGFACE_GROUPVIT,
    HUGGINGFACE_SIGLIP,
    Table,
    find,
)
from cocu_jax.models.weights.source import (
    CONFIG,
    PREPROCESSOR,
    PROCESSOR,
    WEIGHTS,
    model_folder,
    open_weights,
    read_json,
)
from cocu_jax.models.weights.target import new_folder

T = TypeVar("T")


def load_clip(path_or_hub_id: str, dtype: str = "float32") -> tuple[CLIP, ImageProcessing]:
    """A `CLIPModel` checkpoint as our CLIP, and its image preparation.

    Args:
        path_or_hub_id: a folder, e.g. one written by `save_clip`, or a hub id such as
            `openai/clip-vit-base-patch32`.
        dtype: type of matrix products, "float32" or "bfloat16"; parameters are float32.

    Raises:
        UserError: there is no such model, it is damaged, or it is not a CLIP.
    """
    return _load_two_towers(
        path_or_hub_id, dtype, read_clip_config, CLIP, HUGGINGFACE_CLIP, ImageProcessing
    )


def load_siglip(path_or_hub_id: str, dtype: str = "float32") -> tuple[Siglip, ImageProcessing]:
    """A `SiglipModel` checkpoint as our SigLIP; arguments and errors as `load_clip`."""
    return _load_two_towers(
        path_or_hub_id, dtype, read_siglip_config, Siglip, HUGGINGFACE_SIGLIP, siglip_processing
    )


def _load_two_towers(
    path_or_hub_id: str,
    dtype: str,
    read_config: Callable,
    kind: type[T],
    table: Table,
    default_processing: Callable[[int], ImageProcessing],
) -> tuple[T, ImageProcessing]:
    with model_folder(path_or_hub_id) as folder:
        config = _checked(read_config, folder / CONFIG, dtype)
        model = model_from_tensors(
            lambda rngs: kind(config, rngs=rngs),
            functools.partial(find, table),
            open_weights(folder),
            {},
            str(path_or_hub_id),
        )
        return model, processing_of(folder, default_processing(config.image_size))


def load_groupvit(path_or_hub_id: str, dtype: str = "float32") -> GroupViT:
    """A `GroupViTModel` checkpoint as our GroupViT; arguments and errors as `load_clip`.

    The temperature of the multi-label loss and the other settings that transformers does not have
    are restored if we wrote the checkpoint; otherwise they get their initial values.
    """
    with model_folder(path_or_hub_id) as folder:
        config = _checked(read_groupvit_config, folder / CONFIG, dtype)
        initial = math.log(1 / 0.07)
        multi_label = _checked(read_multi_label_scale, folder / CONFIG, initial)
        return groupvit_from_tensors(
            config,
            HUGGINGFACE_GROUPVIT,
            open_weights(folder),
            {"multi_label_log_scale": multi_label},
            str(path_or_hub_id),
        )


def processing_of(folder: pathlib.Path, default: ImageProcessing) -> ImageProcessing:
    """Image preparation of the model in `folder`; `default` if no file describes it.

    Raises:
        UserError: the file is damaged, or describes a preparation that is not supported.
    """
    if (folder / PREPROCESSOR).exists():
        default = _checked(read_processing, folder / PREPROCESSOR, default.size)
    if (folder / PROCESSOR).exists():  # since transformers 5, which prefers it as well
        return _checked(read_joint_processing, folder / PROCESSOR, default)
    return default


def save_clip(
    model: CLIP,
    folder: str,
    processing: ImageProcessing | None = None,
    tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes a folder that `transformers.CLIPModel.from_pretrained` loads.

    Args:
        model: the model; if several processes train, it must be replicated, and only one may call.
        folder: a new folder, local or in a bucket, or one with an earlier model to replace.
        processing: image preparation of the model; None: CLIP's.
        tokenizer: the model's `tokenizer_files`; empty: CLIP's.

    Raises:
        UserError: the folder exists and is not a model, or cannot be written.
    """
    config = model.config
    tensors = tensors_from_arrays(arrays(model), HUGGINGFACE_CLIP)
    processing = processing or ImageProcessing(config.image_size)
    settings = write_clip_config(config)
    _save(folder, settings, tensors, config.text, processing, tokenizer)


def save_siglip(
    model: Siglip,
    folder: str,
    processing: ImageProcessing | None = None,
    tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes a folder that `transformers.SiglipModel.from_pretrained` loads.

    Arguments and errors as `save_clip`, except that the default preparation is SigLIP's.
    """
    config = model.config
    tensors = tensors_from_arrays(arrays(model), HUGGINGFACE_SIGLIP)
    processing = processing or siglip_processing(config.image_size)
    _save(folder, write_siglip_config(config), tensors, config.text, processing, tokenizer)


def save_groupvit(
    model: GroupViT,
    folder: str,
    processing: ImageProcessing | None = None,
    tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes a folder that `transformers.GroupViTModel.from_pretrained` loads.

    Arguments and errors as `save_clip`, except that the default preparation is GroupViT's. For
    `assign_logit_scale` see `groupvit_tensors`.
    """
    tensors, settings = groupvit_to_tensors(model, HUGGINGFACE_GROUPVIT)
    processing = processing or imagenet_processing(model.config.image_size)
    _save(folder, settings, tensors, model.config.text, processing, tokenizer)


def _checked(read: Callable[..., T], file: pathlib.Path, argument) -> T:
    """Reads a JSON file with `read`; content that `read` cannot interpret is a `UserError`."""
    content = read_json(file)
    try:
        return read(content, str(file), argument)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not as transformers writes it ({reason})") from None


def _save(
    folder: str,
    config: dict,
    tensors: dict[str, np.ndarray],
    text: TextConfig,
    processing: ImageProcessing,
    tokenizer: Mapping[str, bytes],
) -> None:
    with new_folder(folder) as staging:
        save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        write_hub_files(staging, config["architectures"][0], text, processing, tokenizer)
        write_json(staging / CONFIG, config)
        # The library makes the file readable for its owner only, unlike the other files.
        (staging / WEIGHTS).chmod((staging / CONFIG).stat().st_mode)
