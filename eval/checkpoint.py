"""Loads the model to evaluate, from a training run, Hugging Face, or the authors' files."""

import hashlib

import numpy as np

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.models.weights.convert import arrays
from cocu_jax.models.weights.image_processing import ImageProcessing


def load_checkpoint(source: str, dtype: str = "float32") -> tuple[GroupViT | CLIP, ImageProcessing]:
    """Loads a GroupViT or a CLIP, and the preprocessing of its images.

    Args:
        source: anything that `open_checkpoint` opens: a training run, one checkpoint of it
            (`RUN@STEP`), a Hugging Face folder or hub id, or an authors' `.pth` file.
        dtype: type of the matrix products, "float32" or "bfloat16".

    Raises:
        UserError: there is no such model, or it is not a GroupViT or CLIP with CLIP's vocabulary.
    """
    checkpoint = open_checkpoint(source, dtype)
    if not isinstance(checkpoint.model, GroupViT | CLIP):
        kind = type(checkpoint.model).__name__
        raise UserError(f"{source}: is a {kind}; segmentation needs a GroupViT or a CLIP")
    if not checkpoint.has_clip_vocabulary():
        raise UserError(
            f"{source}: does not use CLIP's vocabulary; segmentation needs a model that does"
        )
    return checkpoint.model, checkpoint.processing


def model_fingerprint(model: GroupViT | CLIP) -> str:
    """Hash of all arrays of a model; part of the identity of stored results."""
    digest = hashlib.sha256()
    for path, value in sorted(arrays(model).items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()[:16]
