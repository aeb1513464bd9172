"""The segmentation benchmarks as TFDS datasets, from their official files, and one's own.

    python -m data_prep segmentation --benchmark voc --root /data/VOCdevkit --data_dir ~/datasets
    python -m data_prep segmentation --benchmark custom --name streets --images photos \\
        --masks labels --classes classes.txt --data_dir ~/datasets

Images keep their bytes; masks become PNGs of classes (255, or 65535 in 16 bits, is ignored).
"""

import argparse
import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest
from data_prep.dataset_names import check_name
from data_prep.generation import generate, quiet_tfds
from data_prep.place_errors import place_error
from data_prep.segmentation.files import Sample, find_samples
from data_prep.segmentation.ids import IGNORE
from data_prep.segmentation.masks import open_image, require_same_size, to_classes
from data_prep.segmentation.own_files import (
    OwnFiles,
    content_of,
    find_own_samples,
    read_classes,
)
from eval.benchmarks import get_benchmark, prepared_benchmarks


@dataclasses.dataclass(eq=False, kw_only=True)
class SegmentationConfig(tfds.core.BuilderConfig):
    """One benchmark, or one's own data set.

    Attributes:
        classes: names in label order.
        has_background: class 0 is background.
        files: of one's own data set; None for the official files of a benchmark.
        content: hash of one's own files, by which a dataset made of others is known.
    """

    classes: tuple[str, ...]
    has_background: bool
    files: OwnFiles | None = None
    content: str = ""

    @property
    def ignore_label(self) -> int:
        """Value of ignored pixels in the stored masks: the largest of the smallest type."""
        return 255 if len(self.classes) <= 255 else IGNORE


class Segmentation(tfds.core.GeneratorBasedBuilder):
    """Validation split of a benchmark: key, image, segmentation."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        SegmentationConfig(
            name=name,
            description=benchmark.title,
            classes=benchmark.classes,
            has_background=benchmark.protocol.has_background,
            # Before 1.1.0, large images of ImageNet-S were shrunk here, and masks with them.
            version="1.1.0" if name.startswith("imagenet_s") else "1.0.0",
        )
        for name, benchmark in prepared_benchmarks().items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The official files: python -m data_prep segmentation --help"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        config = self.builder_config
        ignore = config.ignore_label
        return tfds.core.DatasetInfo(
            builder=self,
            description=config.description,
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
                classes=list(config.classes),
                has_background=config.has_background,
                ignore_label=ignore,
                **({"content": config.content} if config.content else {}),
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"validation": self._generate_examples(str(dl_manager.manual_dir))}

    def _generate_examples(self, root: str):
        name, ignore = self.builder_config.name, self.builder_config.ignore_label
        own = self.builder_config.files
        samples = find_own_samples(own) if own else find_samples(name, root)
        with StopRequest() as stop, progress_bar(f"Masks: {name}", len(samples), "images") as bar:
            for index, sample in enumerate(samples):
                if stop.requested:
                    raise Stopped("stopped; nothing was kept, the same command starts again")
                image, mask = read_sample(sample)
                mask = np.where(mask == IGNORE, ignore, mask)
                mask = mask.astype(self.info.features["segmentation"].np_dtype)[..., None]
                yield index, {"key": sample.key, "image": image, "segmentation": mask}
                bar.update()


def read_sample(sample: Sample) -> tuple[bytes, np.ndarray]:
    """The image's bytes and its classes, `IGNORE` included.

    Raises:
        UserError: a file is missing, damaged, or does not fit the other.
    """
    content, image = open_image(sample.image)
    mask = to_classes(sample.read_mask(), sample.table, sample.mask)
    require_same_size(image, sample.image, mask, sample.mask)
    return content, mask


def prepare_segmentation(benchmark: str, root: str, data_dir: str) -> str:
    """Writes a benchmark as a TFDS dataset, unless it is there already.

    Args:
        benchmark: name of a benchmark with files of its own.
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
    return _prepare(benchmark, root, data_dir)


def prepare_own(name: str, files: OwnFiles, has_background: bool, data_dir: str) -> str:
    """Writes a data set of one's own as a TFDS dataset, unless it is there already.

    Args:
        name: of the dataset.
        files: images, masks and classes.
        has_background: the first class is background, which has no text of its own.
        data_dir: where TFDS datasets are kept.

    Returns:
        The dataset's versioned directory, which `config.benchmarks` of `configs/evaluate.py` takes.

    Raises:
        UserError: files are missing or wrong, the name cannot be that of a folder, `data_dir`
            cannot be written, or a dataset of this name was made of other files or classes.
        Stopped: an interrupt was requested; nothing is left behind.
    """
    if check_name(name) in prepared_benchmarks():
        raise UserError(f"--name {name}: the name of a benchmark; choose another")
    classes, _ = read_classes(files)
    config = SegmentationConfig(
        name=name,
        description=f"{files.images}, {files.masks}",
        classes=classes,
        has_background=has_background,
        files=files,
        content=content_of(files),
    )
    directory = _prepare(config, None, data_dir)
    stored = tfds.builder_from_directory(directory).info.metadata
    wanted = {name: getattr(config, name) for name in ("has_background", "content")}
    wanted["classes"] = list(classes)
    if other := [name for name, value in wanted.items() if stored.get(name, value) != value]:
        what = "images, masks or ids" if other == ["content"] else "classes"
        raise UserError(
            f"{directory}: is there already, with other {what}; remove it or give another --name"
        )
    return directory


def _prepare(config: str | SegmentationConfig, root: str | None, data_dir: str) -> str:
    try:
        epath.Path(data_dir).mkdir(parents=True, exist_ok=True)
        with quiet_tfds():
            builder = Segmentation(data_dir=data_dir, config=config)
            generate(builder, manual_dir=root or data_dir)
    except OSError as error:
        raise place_error(error, data_dir) from None
    return str(builder.data_path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    layouts = "\n".join(f"  {name:<16}{b.layout}" for name, b in prepared_benchmarks().items())
    parser.epilog = f"official files that --root must hold:\n{layouts}"
    parser.add_argument(
        "--benchmark", required=True, choices=[*prepared_benchmarks(), "custom"], metavar="NAME"
    )
    parser.add_argument("--data_dir", required=True, help="where TFDS datasets are kept")
    parser.add_argument("--root", default="", help="directory of a benchmark's official files")
    own = parser.add_argument_group("with --benchmark custom")
    own.add_argument("--name", default="custom", help="of the dataset (default: custom)")
    own.add_argument("--images", default="", help="folder of images")
    own.add_argument("--masks", default="", help="folder of PNG masks with the images' names")
    own.add_argument(
        "--classes", default="", help="text file: a class a line in order of ids, or ID, tab, NAME"
    )
    own.add_argument("--ignore", type=int, default=255, help="id that is ignored (default: 255)")
    own.add_argument(
        "--has_background", action="store_true", help="the first class is background, without text"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares the data set, prints where it is, and whether images are missing."""
    note = ""
    if arguments.benchmark == "custom":
        if not (arguments.images and arguments.masks and arguments.classes):
            raise UserError("--benchmark custom: give --images, --masks and --classes")
        if not 0 <= arguments.ignore <= IGNORE:
            raise UserError(f"--ignore {arguments.ignore}: give an id from 0 to {IGNORE}")
        files = OwnFiles(arguments.images, arguments.masks, arguments.classes, arguments.ignore)
        directory = prepare_own(arguments.name, files, arguments.has_background, arguments.data_dir)
    elif not arguments.root:
        raise UserError(f"--benchmark {arguments.benchmark}: give its official files with --root")
    else:
        directory = prepare_segmentation(arguments.benchmark, arguments.root, arguments.data_dir)
    found = tfds.builder_from_directory(directory).info.splits["validation"].num_examples
    if arguments.benchmark != "custom":
        official = get_benchmark(arguments.benchmark).split_size
        if found != official:
            note = f"; the official split has {official:,}, is --root complete?"
    print(f"{directory}\n{found:,} images{note}")
