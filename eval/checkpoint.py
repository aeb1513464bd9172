"""The model to evaluate, from wherever it is: our runs, Hugging Face, the authors' files."""

import hashlib

import numpy as np
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.weights.convert import arrays
from cocu_jax.models.weights.huggingface import load_groupvit, processing_of
from cocu_jax.models.weights.image_processing import ImageProcessing, imagenet_processing
from cocu_jax.models.weights.official import load_official
from cocu_jax.models.weights.source import model_folder


def load_checkpoint(source: str, dtype: str = "float32") -> tuple[GroupViT, ImageProcessing]:
    """A GroupViT, and how images were prepared for it.

    Args:
        source: directory of a training run of ours (its `export`), a Hugging Face folder or hub id,
            or an authors' `.pth` file.
        dtype: of the matrix products, "float32" or "bfloat16".

    Raises:
        UserError: there is no such model, or it is no GroupViT.
    """
    if not source:
        raise UserError(
            "no checkpoint given; name a training run, a Hugging Face folder or hub id, or a .pth"
        )
    if source.endswith(".pth"):
        model = load_official(source, dtype)
        return model, imagenet_processing(model.config.image_size)
    export = epath.Path(source) / "export"
    with model_folder(str(export) if export.exists() else source) as folder:
        model = load_groupvit(str(folder), dtype)
        return model, processing_of(folder, imagenet_processing(model.config.image_size))


def model_fingerprint(model: GroupViT) -> str:
    """Hash of all arrays: results that were kept belong to exactly one model."""
    digest = hashlib.sha256()
    for path, value in sorted(arrays(model).items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()[:16]
