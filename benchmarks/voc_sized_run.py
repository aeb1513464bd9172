"""A whole run of PASCAL VOC's size on generated files: `python -m benchmarks.voc_sized_run`.

1,449 pictures with palette masks are written in VOC's own layout, prepared with `data_prep` and
evaluated by the evaluate job, predictions and pictures included. The model is narrow, so that it
takes minutes; images, windows, programs and files are those of the real benchmark. One JSON line
per figure.
"""

import argparse
import pathlib
import tempfile
import time

import jax
import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.figures import print_figure
from benchmarks.process_memory import PeakMemory
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.weights.huggingface import save_groupvit
from configs.evaluate import get_config
from data_prep.segmentation.prepare import prepare_segmentation
from eval.benchmarks import get_benchmark
from eval.job import evaluate
from eval.palettes import voc_colours

_SIZES = ((375, 500), (500, 375), (333, 500), (375, 500), (500, 334), (442, 500), (281, 500))


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    count = get_benchmark("voc").split_size
    parser.add_argument("--images", type=int, default=count, help=f"default: {count}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_voc(root / "VOCdevkit/VOC2012", options.images)
        start = time.perf_counter()
        with PeakMemory() as peak:
            prepare_segmentation("voc", str(root / "VOCdevkit"), str(root / "tfds"))
        rate = options.images / (time.perf_counter() - start)
        print_figure("voc_sized_run/preparation_rate", rate, "images/s")
        print_figure("voc_sized_run/preparation_memory", peak.gigabytes, "GB", 4.0, "lower")
        save_groupvit(narrow_model(), str(root / "model"))
        config = get_config()
        config.checkpoint, config.data_dir = str(root / "model"), str(root / "tfds")
        config.benchmarks, config.save_predictions = "voc", True
        start = time.perf_counter()
        with PeakMemory() as peak:
            figures = evaluate(config, str(root / "run"))["voc"]
        print_figure("voc_sized_run/evaluated", figures["images"], "images")
        rate = figures["images"] / (time.perf_counter() - start)
        print_figure("voc_sized_run/evaluation_rate", rate, "images/s")
        print_figure("voc_sized_run/evaluation_memory", peak.gigabytes, "GB", 4.0, "lower")
        written = len(list((root / "run/predictions/voc").glob("*.png")))
        print_figure("voc_sized_run/predictions", written, "files")


def write_voc(top: pathlib.Path, count: int) -> None:
    """Pictures of coloured blocks in VOC's sizes, and palette masks with all classes."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (top / folder).mkdir(parents=True)
    keys = [f"2007_{number:06d}" for number in range(count)]
    for number, key in enumerate(keys):
        size = _SIZES[number % len(_SIZES)][::-1]
        blocks = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = blocks.resize(size, Image.Resampling.BICUBIC)
        picture.save(top / f"JPEGImages/{key}.jpg", quality=90)
        classes = rng.integers(0, 21, (6, 8), dtype=np.uint8)
        classes[0, 0] = 255
        mask = Image.fromarray(classes).resize(size, Image.Resampling.NEAREST).convert("P")
        mask.putpalette(voc_colours(256).reshape(-1).tolist())
        mask.save(top / f"SegmentationClass/{key}.png")
    (top / "ImageSets/Segmentation/val.txt").write_text("".join(f"{key}\n" for key in keys))


def narrow_model() -> GroupViT:
    """GroupViT with the published windows, patches and groups, an eighth as wide, not as deep."""
    config = GroupViTConfig(
        width=48, heads=2, depths=(1, 1, 1), projection_hidden=64, dense_init_std=0.2,
        assign_init_std=0.4, group_token_init_std=2.0,
    )  # fmt: skip
    model = GroupViT(config, rngs=nnx.Rngs(0))
    tokens = model.image.stages[1].group_tokens
    tokens[...] = jax.random.normal(jax.random.key(0), tokens.shape)
    return model


if __name__ == "__main__":
    main()
