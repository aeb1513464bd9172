"""The eight segmentation benchmarks as TFDS datasets, from their official files.

    python -m data_prep segmentation --benchmark voc --root /data/VOCdevkit --data_dir ~/datasets

Images keep their bytes; masks become PNGs of classes (255, or 65535 in 16 bits, is ignored).
"""

import argparse
import contextlib
import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest
from data_prep.segmentation.files import Sample, find_samples
from data_prep.segmentation.ids import IGNORE
from data_prep.segmentation.masks import open_image, require_same_size, to_classes
from eval.benchmarks import benchmarks, get_benchmark

_LARGE_PIXELS, _LARGE_SIDE = 1_000_000, 1000  # ImageNet-S: larger images are shrunk


@dataclasses.dataclass(eq=False, kw_only=True)
class SegmentationConfig(tfds.core.BuilderConfig):
    """One benchmark."""

    @property
    def ignore_label(self) -> int:
        """Value of ignored pixels in the stored masks: the largest of the smallest type."""
        return 255 if len(get_benchmark(self.name).classes) <= 255 else IGNORE


class Segmentation(tfds.core.GeneratorBasedBuilder):
    """Validation split of a benchmark: key, image, segmentation."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        SegmentationConfig(name=name, description=benchmark.title)
        for name, benchmark in benchmarks().items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The official files: python -m data_prep segmentation --help"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        benchmark = get_benchmark(self.builder_config.name)
        ignore = self.builder_config.ignore_label
        return tfds.core.DatasetInfo(
            builder=self,
            description=benchmark.title,
            features=features.FeaturesDict(
                {
                    "key": features.Text(),
                    "image": features.Image(encoding_format="png"),
                    "segmentation": features.Image(
                        shape=(None, None, 1),
                        dtype=np.uint8 if ignore == 255 else np.uint16,
                        encoding_format="png",
                    ),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                classes=list(benchmark.classes),
                has_background=benchmark.protocol.has_background,
                ignore_label=ignore,
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"validation": self._generate_examples(str(dl_manager.manual_dir))}

    def _generate_examples(self, root: str):
        name, ignore = self.builder_config.name, self.builder_config.ignore_label
        samples = find_samples(name, root)
        with StopRequest() as stop, progress_bar(f"Masks: {name}", len(samples), "images") as bar:
            for index, sample in enumerate(samples):
                if stop.requested:
                    raise Stopped("stopped; nothing was kept, the same command starts again")
                image, mask = read_sample(sample, shrink=name.startswith("imagenet_s"))
                mask = np.where(mask == IGNORE, ignore, mask)
                mask = mask.astype(self.info.features["segmentation"].np_dtype)[..., None]
                yield index, {"key": sample.key, "image": image, "segmentation": mask}
                bar.update()


def read_sample(sample: Sample, shrink: bool = False) -> tuple[bytes | np.ndarray, np.ndarray]:
    """The image (its bytes, or pixels if it had to be shrunk) and its classes, `IGNORE` included.

    Args:
        sample: where they are.
        shrink: images of over a million pixels get a longer side of 1000 (ImageNet-S).

    Raises:
        UserError: a file is missing, damaged, or does not fit the other.
    """
    content, image = open_image(sample.image)
    mask = to_classes(sample.read_mask(), sample.table, sample.mask)
    require_same_size(image, sample.image, mask, sample.mask)
    if not shrink or image.width * image.height <= _LARGE_PIXELS:
        return content, mask
    scale = _LARGE_SIDE / max(image.size)
    size = int(image.width * scale), int(image.height * scale)
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    return pixels, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def prepare_segmentation(benchmark: str, root: str, data_dir: str) -> str:
    """Writes a benchmark as a TFDS dataset, unless it is there already.

    Args:
        benchmark: name of one of the eight.
        root: directory of the official files.
        data_dir: where TFDS datasets are kept.

    Returns:
        The dataset's versioned directory.

    Raises:
        UserError: files are missing or wrong, or `data_dir` cannot be written.
        Stopped: an interrupt was requested; nothing is left behind.
    """
    get_benchmark(benchmark)
    if not epath.Path(root).is_dir():
        raise UserError(f"{benchmark}: no directory {root}; give --root the official files")
    try:
        epath.Path(data_dir).mkdir(parents=True, exist_ok=True)
        builder = Segmentation(data_dir=data_dir, config=benchmark)
        tfds.disable_progress_bar()  # ours shows the total and the time left
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download here
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=root)
            )
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{data_dir}: cannot write there ({reason}); choose another") from None
    return str(builder.data_path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    layouts = "\n".join(f"  {name:<16}{b.layout}" for name, b in benchmarks().items())
    parser.epilog = f"official files that --root must hold:\n{layouts}"
    parser.add_argument("--benchmark", required=True, choices=benchmarks(), metavar="NAME")
    parser.add_argument("--root", required=True, help="directory of the official files")
    parser.add_argument("--data_dir", required=True, help="where TFDS datasets are kept")


def run(arguments: argparse.Namespace) -> None:
    """Prepares the benchmark, prints where it is, and whether images are missing."""
    directory = prepare_segmentation(arguments.benchmark, arguments.root, arguments.data_dir)
    found = tfds.builder_from_directory(directory).info.splits["validation"].num_examples
    official = get_benchmark(arguments.benchmark).split_size
    note = (
        "" if found == official else f"; the official split has {official:,}, is --root complete?"
    )
    print(f"{directory}\n{found:,} images{note}")
