"""Rate and memory of preparing an image-text corpus: `python -m benchmarks.preparation`.

One tar is prepared in this process, and read with plain tarfile and Pillow (every image decoded,
every caption decoded, nothing written), in turns; what is counted is the time of the core, so that
other work on the machine does not matter. Then the whole command runs on `--pairs` pairs, in the
order of the sources and shuffled, and on a Dask cluster of four processes of which one is killed.
"""

import argparse
import io
import pathlib
import shutil
import statistics
import tarfile
import tempfile
import time

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from benchmarks.dask_cluster import dask_cluster
from benchmarks.figures import print_figure
from benchmarks.process_memory import PeakMemory
from data_prep.gallery.gallery import Gallery
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.prepare import Preparation, prepare_image_text
from data_prep.image_text.readers import Unit
from data_prep.image_text.units import Recipe, UnitPreparer
from data_prep.image_text.work import Workers

_PICTURES = 50
_REPEATS = 5
_TAR_PAIRS = 1_000
_CLUSTER_WORKERS = 4
_CLUSTER_TARS, _CLUSTER_TAR_PAIRS = 40, 100


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tar_pairs", type=int, default=400, help="pairs of the tar that is timed")
    parser.add_argument("--pairs", type=int, default=4_000, help="pairs of the whole run")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    gallery = Gallery.load()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        one_tar(folder, gallery, arguments.tar_pairs)
        whole_runs(folder, gallery, arguments.pairs, arguments.workers)
        cluster_run(folder / "cluster", gallery)


def one_tar(folder: pathlib.Path, gallery: Gallery, pairs: int) -> None:
    """Preparing against reading, as ratios of medians."""
    tar = folder / "timed.tar"
    write_tar(tar, _pictures((512, 384)), 0, pairs, gallery)
    megabytes = tar.stat().st_size / 1e6
    for resize in ("none", "pad"):
        preparer = UnitPreparer(Recipe(ImageRecipe(resize), gallery))
        ours, plain = [], []
        for repeat in range(_REPEATS + 1):
            start = time.process_time()
            preparer.prepare(Unit("tar", str(tar)), epath.Path(folder / f"{resize}{repeat}"))
            between = time.process_time()
            read_plainly(tar)
            if repeat:
                ours.append(between - start)
                plain.append(time.process_time() - between)
        seconds = statistics.median(ours)
        print_figure(f"preparation_rate_{resize}", pairs / seconds, "images/s/core", None)
        print_figure(f"preparation_bandwidth_{resize}", megabytes / seconds, "MB/s/core", None)
        ratio = statistics.median(plain) / seconds
        print_figure(f"preparation_against_plain_reading_{resize}", ratio, "ratio", 0.5)


def whole_runs(folder: pathlib.Path, gallery: Gallery, pairs: int, workers: int) -> None:
    """Rate with start and end, disk, and memory of all processes, in both orders."""
    pictures = _pictures((256, 192))
    for number, first in enumerate(range(0, pairs, _TAR_PAIRS)):
        count = min(_TAR_PAIRS, pairs - first)
        write_tar(folder / f"{number:05d}.tar", pictures, first, count, gallery)
    tars = sum(tar.stat().st_size for tar in folder.glob("0*.tar"))
    print_figure("preparation_whole_run_pairs", pairs, "pairs", None)
    for name, seed in (("whole_run", None), ("shuffled_run", 0)):
        preparation = Preparation(
            recipe=Recipe(ImageRecipe(), gallery, shuffle_seed=seed),
            sources=(f"{folder}/0*.tar",),
            workers=Workers(workers),
        )
        start = time.perf_counter()
        with PeakMemory() as peak:
            directory = prepare_image_text("benchmark", preparation, str(folder / "tfds"))
        seconds = time.perf_counter() - start
        made = sum(file.stat().st_size for file in pathlib.Path(directory).iterdir())
        shutil.rmtree(folder / "tfds")
        print_figure(f"preparation_{name}_rate", pairs / seconds, "pairs/s", None)
        print_figure(f"preparation_{name}_disk", made / tars, "of the tars", None, better="lower")
        print_figure(f"preparation_{name}_memory", peak.gigabytes, "GB", 4.0, better="lower")


def cluster_run(folder: pathlib.Path, gallery: Gallery) -> None:
    """Four worker processes, of which one is killed; and whether the bytes are those of one."""
    (folder / "raw").mkdir(parents=True)
    pictures = _pictures((256, 192))
    for number in range(_CLUSTER_TARS):
        first = number * _CLUSTER_TAR_PAIRS
        tar = folder / "raw" / f"{number:02d}.tar"
        write_tar(tar, pictures, first, _CLUSTER_TAR_PAIRS, gallery)
    sources = f"{folder}/raw/*.tar"
    recipe = Recipe(ImageRecipe(), gallery, shuffle_seed=0)
    one = Preparation(recipe=recipe, sources=(sources,))
    prepare_image_text("custom", one, str(folder / "one"))
    with dask_cluster(folder, _CLUSTER_WORKERS) as cluster:
        cluster.wait_for_workers()
        start = time.perf_counter()
        client = cluster.prepare("custom", "--sources", sources, f"--data_dir={folder}/many")
        scratch = folder / "many/image_text/custom.unfinished"
        while client.poll() is None and len(list(scratch.glob("unit-*.json"))) < _CLUSTER_TARS // 4:
            time.sleep(0.02)
        cluster.workers[0].kill()
        _, messages = client.communicate()
        seconds = time.perf_counter() - start
        if client.returncode:
            raise RuntimeError(messages)
    pairs = _CLUSTER_TARS * _CLUSTER_TAR_PAIRS
    print_figure("preparation_cluster_rate_with_a_killed_worker", pairs / seconds, "pairs/s", None)
    same = _contents(folder / "many") == _contents(folder / "one")
    print_figure("preparation_cluster_bytes_as_on_one_machine", same, "of 1", 1)


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_tar(
    path: pathlib.Path, pictures: list[bytes], first: int, count: int, gallery: Gallery
) -> None:
    """A WebDataset tar of `count` pairs with keys from `first` on."""
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            concept = gallery.concepts[number % len(gallery.concepts)]
            caption = f"a photo of a {concept} near the old house, taken in summer {number}"
            parts = {"jpg": pictures[number % len(pictures)], "txt": caption.encode()}
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_plainly(tar: pathlib.Path) -> int:
    """What a data loader does at the least: every member read, every image decoded."""
    letters = 0
    with tarfile.open(tar) as members:
        for member in members:
            content = members.extractfile(member).read()
            if member.name.endswith(".jpg"):
                Image.open(io.BytesIO(content)).convert("RGB")
            else:
                letters += len(content.decode())
    return letters


def _pictures(size: tuple[int, int]) -> list[bytes]:
    """JPEG files of about the entropy of photographs: smooth noise with fine grain."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(_PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        encoded.append(file.getvalue())
    return encoded


if __name__ == "__main__":
    main()
