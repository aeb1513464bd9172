"""Hugging Face checkpoints in and out: what `transformers` reads and writes, without torch."""

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
from cocu_jax.models.weights import assignment_scale
from cocu_jax.models.weights.companions import write_companions, write_json
from cocu_jax.models.weights.config_json import (
    read_clip_config,
    read_groupvit_config,
    read_multi_label_scale,
    read_siglip_config,
    write_clip_config,
    write_groupvit_config,
    write_siglip_config,
)
from cocu_jax.models.weights.convert import arrays, fill, rename
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
    """A `CLIPModel` checkpoint as our CLIP, and how its images are prepared.

    Args:
        path_or_hub_id: a folder, e.g. one written by `save_clip`, or a hub id such as
            `openai/clip-vit-base-patch32`.
        dtype: of the matrix products, "float32" or "bfloat16"; parameters are float32.

    Raises:
        UserError: there is no such model, it is damaged, or it is not a CLIP; one line says why.
    """
    with model_folder(path_or_hub_id) as folder:
        config = _checked(read_clip_config, folder / CONFIG, dtype)
        model = fill(
            lambda rngs: CLIP(config, rngs=rngs),
            functools.partial(find, HUGGINGFACE_CLIP),
            open_weights(folder),
            {},
            str(path_or_hub_id),
        )
        return model, processing_of(folder, ImageProcessing(config.image_size))


def load_groupvit(path_or_hub_id: str, dtype: str = "float32") -> GroupViT:
    """A `GroupViTModel` checkpoint as our GroupViT; arguments and errors as `load_clip`.

    The temperature of the multi-label loss and the other settings that transformers does not know
    are restored if we wrote the checkpoint; else they have their initial values.
    """
    with model_folder(path_or_hub_id) as folder:
        config = _checked(read_groupvit_config, folder / CONFIG, dtype)
        initial = math.log(1 / 0.07)
        multi_label = _checked(read_multi_label_scale, folder / CONFIG, initial)
        restored = assignment_scale.restored(config)
        return fill(
            lambda rngs: GroupViT(restored, rngs=rngs),
            functools.partial(find, HUGGINGFACE_GROUPVIT),
            open_weights(folder),
            {"multi_label_log_scale": multi_label},
            str(path_or_hub_id),
            functools.partial(assignment_scale.unfold, scale=restored.assign_logit_scale),
        )


def load_siglip(path_or_hub_id: str, dtype: str = "float32") -> tuple[Siglip, ImageProcessing]:
    """A `SiglipModel` checkpoint as our SigLIP; arguments and errors as `load_clip`."""
    with model_folder(path_or_hub_id) as folder:
        config = _checked(read_siglip_config, folder / CONFIG, dtype)
        model = fill(
            lambda rngs: Siglip(config, rngs=rngs),
            functools.partial(find, HUGGINGFACE_SIGLIP),
            open_weights(folder),
            {},
            str(path_or_hub_id),
        )
        return model, processing_of(folder, siglip_processing(config.image_size))


def processing_of(folder: pathlib.Path, default: ImageProcessing) -> ImageProcessing:
    """How the images of the model in `folder` are prepared; the default if nothing says so.

    Raises:
        UserError: a file that says so is damaged or asks for what we do not do.
    """
    if (folder / PREPROCESSOR).exists():
        default = _checked(read_processing, folder / PREPROCESSOR, default.size)
    if (folder / PROCESSOR).exists():  # since transformers 5; it comes first there, too
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
        model: the model; in a run of several processes replicated on all devices, and one calls.
        folder: a new folder, local or in a bucket, or one with an earlier model to replace.
        processing: how images were prepared; None: CLIP's way.
        tokenizer: `tokenizer_files` that the model came with; none: CLIP's own.

    Raises:
        UserError: the folder is something else already, or cannot be written.
    """
    config = model.config
    tensors = rename(arrays(model), HUGGINGFACE_CLIP)
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

    Arguments and errors as `save_clip`; without `processing` it is SigLIP's way.
    """
    config = model.config
    tensors = rename(arrays(model), HUGGINGFACE_SIGLIP)
    processing = processing or siglip_processing(config.image_size)
    _save(folder, write_siglip_config(config), tensors, config.text, processing, tokenizer)


def save_groupvit(
    model: GroupViT,
    folder: str,
    processing: ImageProcessing | None = None,
    tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes a folder that `transformers.GroupViTModel.from_pretrained` loads.

    Arguments and errors as `save_clip`; without `processing` it is GroupViT's way (ImageNet's mean
    and deviation). `assignment_scale` says what becomes of `assign_logit_scale`.
    """
    config = model.config
    scale = config.assign_logit_scale
    ours = {path: assignment_scale.fold(path, a, scale) for path, a in arrays(model).items()}
    settings = write_groupvit_config(config, ours["multi_label_log_scale"])
    tensors = rename(ours, HUGGINGFACE_GROUPVIT)
    processing = processing or imagenet_processing(config.image_size)
    _save(folder, settings, tensors, config.text, processing, tokenizer)


def _checked(read: Callable[..., T], file: pathlib.Path, argument) -> T:
    """Reads a JSON file with `read`; what makes no sense in it is the user's error."""
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
        write_companions(staging, config["architectures"][0], text, processing, tokenizer)
        write_json(staging / CONFIG, config)
        # The library writes for the owner only; readable like the other files is what one expects.
        (staging / WEIGHTS).chmod((staging / CONFIG).stat().st_mode)
