"""Memory of segmenting one photo of 48 megapixels: `python -m benchmarks.segment_memory`.

Runs `cocu_jax.segment` on a JPEG of 8,000 x 6,000 pixels with GroupViT-S and with a CLIP ViT-B/16
(dense), on one device and on eight forced host devices, each in a separate process. The figure is
the peak resident memory of the whole process, as counted by the kernel, including libraries and
weights. The weights are random, because memory does not depend on them.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.figures import print_figure
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.weights.huggingface import save_clip, save_groupvit

_CLASSES = "dog, grass, sky, sea, house, tree, car, person"
_GOAL = 2.5  # GB


def main() -> None:
    """Prints a figure for each model and number of devices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["groupvit", "clip"])
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", nargs=2, type=int, default=[8000, 6000], help="width, height")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = pathlib.Path(folder) / "photo.jpg"
        write_photo(photo, *options.size)
        for name in options.models:
            checkpoint = write_checkpoint(name, pathlib.Path(folder))
            for devices in options.devices:
                gigabytes = segment(photo, checkpoint, devices, pathlib.Path(folder) / "out")
                subject = f"segment_memory/{name}/{devices}_devices"
                print_figure(f"{subject}/peak", gigabytes, "GB", _GOAL, "lower")


def write_photo(path: pathlib.Path, width: int, height: int) -> None:
    """Writes smooth random colours as a JPEG."""
    colours = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    photo = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    photo.save(path, quality=85)


def write_checkpoint(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes a GroupViT-S or a CLIP ViT-B/16 with random weights."""
    checkpoint = folder / name
    if name == "groupvit":
        save_groupvit(GroupViT(GroupViTConfig(), rngs=nnx.Rngs(0)), str(checkpoint))
    else:
        save_clip(CLIP(CLIPConfig(patch_size=16), rngs=nnx.Rngs(0)), str(checkpoint))
    return checkpoint


def segment(
    photo: pathlib.Path, checkpoint: pathlib.Path, devices: int, output: pathlib.Path
) -> float:
    """Runs the command; returns the largest resident memory in GB (1e9 bytes)."""
    command = [sys.executable, "-m", "cocu_jax.segment", str(photo), "--classes", _CLASSES]
    command += ["--checkpoint", str(checkpoint), "--output", str(output)]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
