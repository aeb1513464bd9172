"""Seconds from an uploaded photo to everything that the app's page shows of it.

    python -m benchmarks.app

Weights are random, their sizes are those of CLIP ViT-B/32 and of GroupViT-S; the photo is one of
640 x 480, as a JPEG file. The first photo compiles; the later ones have other words, as many.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.figures import print_figure
from cocu_jax.app.model import Model
from cocu_jax.app.page import segment_upload
from cocu_jax.app.view import legend, view_of, write_downloads
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.weights.huggingface import save_clip, save_groupvit

_WORDS = [("dog", "grass", "sky"), ("cat", "sofa", "wall"), ("boat", "sea", "sand")]
_REPEATS = 6


def main() -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        vit_b_32 = CLIPConfig(patch_size=32)
        save_clip(CLIP(vit_b_32, rngs=nnx.Rngs(0)), str(folder / "clip_vit_b_32"))
        save_groupvit(GroupViT(GroupViTConfig(), rngs=nnx.Rngs(0)), str(folder / "groupvit_s"))
        rng = np.random.default_rng(0)
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((640, 480)).save(folder / "photo.jpg")
        for checkpoint in ("clip_vit_b_32", "groupvit_s"):
            model = Model(str(folder / checkpoint))
            first, *later = [
                _seconds(model, folder, _WORDS[i % len(_WORDS)]) for i in range(1 + _REPEATS)
            ]
            new_words, known_words = later[:2], later[2:]
            print_figure(f"app_first_photo_{checkpoint}", first, "s", better="lower")
            print_figure(f"app_photo_new_words_{checkpoint}", max(new_words), "s", better="lower")
            print_figure(
                f"app_photo_{checkpoint}", statistics.median(known_words), "s", 1.0, "lower"
            )


def _seconds(model: Model, folder: pathlib.Path, words: tuple[str, ...]) -> float:
    start = time.monotonic()
    result = segment_upload(model, str(folder / "photo.jpg"), ", ".join(words), None)
    view = view_of(result)
    view.overlay(0.55)
    view.group_pictures(0.55)
    legend(result)
    write_downloads(result, folder)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
