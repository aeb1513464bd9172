"""Opens checkpoints of any supported format by name: our runs, Hugging Face, open_clip, files."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from etils import epath
from jaxtyping import Int

from cocu_jax.errors import UserError
from cocu_jax.files import expand_path
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.siglip import Siglip
from cocu_jax.models.weights.config_json import architecture
from cocu_jax.models.weights.huggingface import (
    load_clip,
    load_groupvit,
    load_siglip,
    processing_of,
)
from cocu_jax.models.weights.image_processing import ImageProcessing, imagenet_processing
from cocu_jax.models.weights.official import read_official
from cocu_jax.models.weights.openclip import is_openai, load_openai, load_openclip
from cocu_jax.models.weights.source import (
    CONFIG,
    OPENCLIP_CONFIG,
    is_openclip,
    local_copy,
    model_folder,
    open_openclip_weights,
    read_json,
    tokenizer_files,
)
from cocu_jax.models.weights.text_tokens import clip_tokens, has_clip_vocabulary, siglip_tokens
from cocu_jax.models.weights.torch_file import open_torch, tensors_in
from cocu_jax.models.weights.training_run import EXPORT, find_run_checkpoint, load_run

Model = CLIP | GroupViT | Siglip

_FILES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A model with its image processing and tokenizer.

    Attributes:
        source: its name, for messages.
        model: a model with `encode_image` and `encode_text`.
        processing: preparation of its images.
        tokenizer_files: contents of the tokenizer files that came with it, by file name.
    """

    source: str
    model: Model
    processing: ImageProcessing
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)

    def has_clip_vocabulary(self) -> bool:
        """Whether the model uses CLIP's tokenizer."""
        return not isinstance(self.model, Siglip) and has_clip_vocabulary(
            self.model.config.text, self.tokenizer_files, self.source
        )

    def text_tokenizer(self) -> Callable[[Sequence[str]], Int[np.ndarray, "n t"]]:
        """The function from texts to token ids for `encode_text`.

        Raises:
            UserError: the model's vocabulary is not CLIP's, and it has no tokenizer.
        """
        tokens = siglip_tokens if isinstance(self.model, Siglip) else clip_tokens
        return tokens(self.model.config.text, self.tokenizer_files, self.source)


def open_checkpoint(source: str, dtype: str = "float32") -> Checkpoint:
    """Opens a model of any supported format; nothing in its files is executed.

    Args:
        source: one of
            a training run, local or in a bucket: its export, or its newest checkpoint if there is
                no export yet;
            `RUN@STEP`, one checkpoint of a run;
            a Hugging Face folder, local or in a bucket, or a hub id, `@revision` optional;
            a folder or hub id in open_clip's layout;
            a file: the GroupViT authors' `.pth`, OpenAI's `.pt`, or a checkpoint of open_clip's
                training with its `open_clip_config.json` beside it.
        dtype: type of matrix products, "float32" or "bfloat16"; parameters are float32.

    Raises:
        UserError: there is no such model, it is damaged, or it is of an unsupported kind.
    """
    name = expand_path(source)
    if not name:
        raise UserError(
            "no checkpoint given; give a training run, a Hugging Face folder or hub id, or a file"
        )
    if epath.Path(name).is_file() or name.endswith(_FILES):
        return _open_file(name, dtype)
    export = epath.Path(name) / EXPORT
    if (export / CONFIG).exists():
        return _open_folder(str(export), name, dtype)
    if run := find_run_checkpoint(name):
        return Checkpoint(f"{run.run}@{run.step}", *load_run(run, dtype))
    return _open_folder(name, name, dtype)


def _open_folder(path: str, source: str, dtype: str) -> Checkpoint:
    with model_folder(path) as folder:
        tokenizer = tokenizer_files(folder)
        if is_openclip(folder):
            tensors, file = open_openclip_weights(folder), folder / OPENCLIP_CONFIG
            opened = load_openclip(read_json(file), str(file), tensors, source, dtype)
            return Checkpoint(source, *opened)  # its tokenizer is CLIP's, or it was refused
        kind = architecture(read_json(folder / CONFIG), source)
        if kind == "CLIPModel":
            return Checkpoint(source, *load_clip(str(folder), dtype), tokenizer)
        if kind == "SiglipModel":
            return Checkpoint(source, *load_siglip(str(folder), dtype), tokenizer)
        model = load_groupvit(str(folder), dtype)
        default = imagenet_processing(model.config.image_size)
        return Checkpoint(source, model, processing_of(folder, default), tokenizer)


def _open_file(name: str, dtype: str) -> Checkpoint:
    """A single torch file, whose format is recognised by its content."""
    if name.endswith(".safetensors"):
        raise UserError(f"{name}: contains only weights; give the folder with weights and config")
    with local_copy(name) as file:
        content = open_torch(file)
        if not isinstance(content, dict):
            raise UserError(f"{name}: contains no dictionary of tensors; is it a checkpoint?")
        if is_openai(content):
            return Checkpoint(name, *load_openai(tensors_in(content, file), name, dtype))
        if "model" not in content:
            return _open_training_file(content, file, name, dtype)
        model = read_official(content, name, dtype)
        return Checkpoint(name, model, imagenet_processing(model.config.image_size))


def _open_training_file(content: dict, file: pathlib.Path, name: str, dtype: str) -> Checkpoint:
    """A training checkpoint of open_clip; its config must be in the same directory."""
    tensors = tensors_in(content, file, "state_dict" if "state_dict" in content else None)
    if not any(key.endswith("visual.conv1.weight") for key in tensors):
        raise UserError(
            f"{name}: neither the authors' GroupViT (an entry 'model') nor a CLIP of OpenAI or "
            "open_clip (tensors 'visual.…')"
        )
    config = file.with_name(OPENCLIP_CONFIG)
    if not config.exists():
        raise UserError(
            f"{name}: activation and heads cannot be inferred from its tensors; put the model's "
            f"{OPENCLIP_CONFIG} in the same folder"
        )
    return Checkpoint(name, *load_openclip(read_json(config), str(config), tensors, name, dtype))
