"""Seconds from an uploaded photo to all results that the page of the app shows.

    python -m benchmarks.app

The models are CLIP ViT-B/32 and GroupViT-S with random weights. GroupViT-S is timed with windows of
224 pixels (`--crop 224`), and of 448 as in its authors' evaluation. The photo is a JPEG file of
640 x 480 pixels. The first photo includes compilation; later requests have other numbers of words,
with and without a background.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.figures import print_figure
from cocu_jax.app.model import Model, Request, split_words
from cocu_jax.app.page import segment_upload
from cocu_jax.app.view import classes_figure, groups_figures, legend, write_downloads
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.weights.huggingface import save_clip, save_groupvit

_WORDS = ["dog, grass, sky", "cat, sofa", "boat, sea, sand, palm tree"]
_REPEATS = 5


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
        models = [("clip_vit_b_32", 0), ("groupvit_s", 224), ("groupvit_s", 448)]
        for checkpoint, crop in models:
            model = Model(str(folder / checkpoint), crop=crop)
            name = f"{checkpoint}_{crop}" if crop else checkpoint
            first = _seconds(model, folder, Request(split_words(_WORDS[0])))
            print_figure(f"app_first_photo_{name}", first, "s", better="lower")
            new = [_seconds(model, folder, Request(split_words(text))) for text in _WORDS[1:]]
            print_figure(f"app_photo_new_words_{name}", max(new), "s", better="lower")
            known = [
                _seconds(model, folder, Request(split_words(_WORDS[i % len(_WORDS)])))
                for i in range(_REPEATS)
            ]
            print_figure(f"app_photo_{name}", statistics.median(known), "s", 1.0, "lower")
            _seconds(model, folder, Request(split_words(_WORDS[0]), 0.5))
            other = _seconds(model, folder, Request(split_words(_WORDS[0]), 0.6))
            print_figure(f"app_photo_other_threshold_{name}", other, "s", 1.0, "lower")
        model = Model(str(folder / "clip_vit_b_32"))
        refined = Request(split_words(_WORDS[0]), refine=True)
        figure = [_seconds(model, folder, refined) for _ in range(2)][1]
        print_figure("app_photo_refined_clip_vit_b_32", figure, "s", better="lower")


def _seconds(model: Model, folder: pathlib.Path, request: Request) -> float:
    start = time.monotonic()
    result = segment_upload(model, str(folder / "photo.jpg"), request)
    classes_figure(result)
    groups_figures(result)
    legend(result)
    write_downloads(result, folder)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
