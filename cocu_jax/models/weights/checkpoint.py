"""Any checkpoint, opened by its name alone: our runs, Hugging Face, the authors' files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from etils import epath
from jaxtyping import Int

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.weights.config_json import architecture
from cocu_jax.models.weights.huggingface import load_clip, load_groupvit, processing_of
from cocu_jax.models.weights.image_processing import ImageProcessing, imagenet_processing
from cocu_jax.models.weights.official import load_official
from cocu_jax.models.weights.source import CONFIG, model_folder, read_json, tokenizer_files
from cocu_jax.models.weights.text_rows import clip_rows, has_clip_vocabulary
from cocu_jax.models.weights.training_run import EXPORT, find_run_checkpoint, load_run

Model = CLIP | GroupViT


@dataclass(frozen=True)
class Checkpoint:
    """A model with what belongs to it.

    Attributes:
        source: its name, for messages.
        model: has `encode_image` and `encode_text`.
        processing: how its images are prepared.
        tokenizer_files: name and content of the files of a tokenizer that came with it.
    """

    source: str
    model: Model
    processing: ImageProcessing
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)

    def has_clip_vocabulary(self) -> bool:
        """Whether CLIP's tokenizer is the model's."""
        return has_clip_vocabulary(self.model.config.text, self.tokenizer_files, self.source)

    def text_rows(self) -> Callable[[Sequence[str]], Int[np.ndarray, "n t"]]:
        """The function that makes the token ids `encode_text` takes from texts.

        Raises:
            UserError: the model's vocabulary is not CLIP's, and no tokenizer came with it.
        """
        return clip_rows(self.model.config.text, self.tokenizer_files, self.source)


def open_checkpoint(source: str, dtype: str = "float32") -> Checkpoint:
    """Opens a model, whatever it is; nothing that a file contains is executed.

    Args:
        source: one of
            a training run of ours, local or in a bucket: its export, or its newest checkpoint
                while it has none;
            `RUN@STEP`, one checkpoint of a run;
            a Hugging Face folder, local or in a bucket, or a hub id, `@revision` optional;
            an authors' `.pth` file.
        dtype: of the matrix products, "float32" or "bfloat16"; parameters are float32.

    Raises:
        UserError: there is no such model, it is damaged, or it is of a kind we do not compute.
    """
    name = str(source)
    if not name:
        raise UserError(
            "no checkpoint given; name a training run, a Hugging Face folder or hub id, or a .pth"
        )
    if epath.Path(name).is_file() or name.endswith(".pth"):
        model = load_official(name, dtype)
        return Checkpoint(name, model, imagenet_processing(model.config.image_size))
    export = epath.Path(name) / EXPORT
    if (export / CONFIG).exists():
        return _open_folder(str(export), name, dtype)
    if run := find_run_checkpoint(name):
        return Checkpoint(f"{run.run}@{run.step}", *load_run(run, dtype))
    return _open_folder(name, name, dtype)


def _open_folder(path: str, source: str, dtype: str) -> Checkpoint:
    with model_folder(path) as folder:
        tokenizer = tokenizer_files(folder)
        if architecture(read_json(folder / CONFIG), source) == "CLIPModel":
            return Checkpoint(source, *load_clip(str(folder), dtype), tokenizer)
        model = load_groupvit(str(folder), dtype)
        default = imagenet_processing(model.config.image_size)
        return Checkpoint(source, model, processing_of(folder, default), tokenizer)
