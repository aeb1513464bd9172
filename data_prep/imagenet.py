"""ImageNet-1k validation as a TFDS dataset, for zero-shot classification.

    python -m data_prep imagenet --root /data/imagenet --data_dir ~/datasets

--root holds the 50,000 images in one of the usual ways:

    val/n01440764/*.JPEG                   one folder per class
    ILSVRC/Data/CLS-LOC/val/*.JPEG         with LOC_val_solution.csv (Kaggle)
    ILSVRC2012_img_val.tar, or val/*.JPEG  with ILSVRC2012_devkit_t12 (image-net.org)
"""

import argparse
import csv
import io
import pathlib
import tarfile
from collections.abc import Iterator

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest
from data_prep.generation import generate, quiet_tfds
from data_prep.place_errors import place_error

_CLASSES_FILE = pathlib.Path(__file__).with_name("imagenet_classes.txt")
_FOLDERS = ("val", "validation", "ILSVRC/Data/CLS-LOC/val", "")
_ARCHIVE = "ILSVRC2012_img_val.tar"
_KAGGLE_LABELS = "LOC_val_solution.csv"
_DEVKIT = "ILSVRC2012_devkit_t12/data"


class ImagenetValidation(tfds.core.GeneratorBasedBuilder):
    """Validation split: key, image, label."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The official files: python -m data_prep imagenet --help"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            description="ImageNet-1k validation",
            features=features.FeaturesDict(
                {
                    "key": features.Text(),
                    "image": features.Image(encoding_format="jpeg"),
                    "label": features.Scalar(np.int32),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(classes=list(imagenet_classes().values())),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"validation": self._generate_examples(epath.Path(dl_manager.manual_dir))}

    def _generate_examples(self, root: epath.Path):
        total, images = find_images(root)
        labels = {wnid: label for label, wnid in enumerate(imagenet_classes())}
        with StopRequest() as stop, progress_bar("ImageNet-1k validation", total, "images") as bar:
            for index, (key, wnid, content) in enumerate(images):
                if stop.requested:
                    raise Stopped("stopped; nothing was kept, the same command starts again")
                if wnid not in labels:
                    raise UserError(f"{root}: {key} is of class {wnid}, which ImageNet-1k lacks")
                if not content:
                    raise UserError(f"{root}: the file of {key} is empty; unpack it again")
                yield index, {"key": key, "image": content, "label": labels[wnid]}
                bar.update()


def imagenet_classes() -> dict[str, str]:
    """WordNet id -> class name, in label order."""
    lines = [x for x in _CLASSES_FILE.read_text().splitlines() if not x.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def find_images(root: epath.Path) -> tuple[int, Iterator[tuple[str, str, bytes]]]:
    """Number of images, and for each its key, its WordNet id and its bytes.

    Raises:
        UserError: there are no images, or no file with their classes.
    """
    for folder in _FOLDERS:
        if by_class := sorted((root / folder).glob("n*/*.JPEG")):
            return len(by_class), ((p.stem, p.parent.name, p.read_bytes()) for p in by_class)
    for folder in _FOLDERS:
        if flat := sorted((root / folder).glob("ILSVRC2012_val_*.JPEG")):
            truth = _read_labels(root)
            return len(flat), ((p.stem, _label(truth, p.stem), p.read_bytes()) for p in flat)
    if (root / _ARCHIVE).exists():
        truth = _read_labels(root)
        return len(truth), _read_archive(root / _ARCHIVE, truth)
    raise UserError(f"{root}: no ImageNet validation images; see python -m data_prep imagenet -h")


def _read_archive(path: epath.Path, truth: dict[str, str]) -> Iterator[tuple[str, str, bytes]]:
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if member.name.endswith(".JPEG"):
                key = pathlib.PurePath(member.name).stem
                yield key, _label(truth, key), archive.extractfile(member).read()


def _read_labels(root: epath.Path) -> dict[str, str]:
    """Image name -> WordNet id, from Kaggle's table or the devkit."""
    if (root / _KAGGLE_LABELS).exists():
        rows = csv.DictReader(io.StringIO((root / _KAGGLE_LABELS).read_text()))
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    devkit = root / _DEVKIT
    truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.exists() or not (devkit / "meta.mat").exists():
        raise UserError(
            f"{root}: images are not in class folders, and neither {_KAGGLE_LABELS} nor {_DEVKIT} "
            "says what they are; unpack ILSVRC2012_devkit_t12.tar.gz there"
        )
    meta = scipy.io.loadmat(io.BytesIO((devkit / "meta.mat").read_bytes()), squeeze_me=True)
    synsets = meta["synsets"]  # numbered in an order of their own, not that of the labels
    wnids = dict(zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True))
    numbers = map(int, truth.read_text().split())
    return {f"ILSVRC2012_val_{i:08d}": wnids[number] for i, number in enumerate(numbers, start=1)}


def _label(truth: dict[str, str], key: str) -> str:
    if key not in truth:
        raise UserError(f"{key}.JPEG: no label for it; is this the ILSVRC 2012 validation split?")
    return truth[key]


def prepare_imagenet(root: str, data_dir: str) -> str:
    """Writes the dataset, unless it is there already; returns its versioned directory.

    Raises:
        UserError: files are missing, or `data_dir` cannot be written.
        Stopped: an interrupt was requested; no partial files remain.
    """
    if not epath.Path(root).is_dir():
        raise UserError(f"no directory {root}; give --root ImageNet's validation images")
    try:
        epath.Path(data_dir).mkdir(parents=True, exist_ok=True)
        with quiet_tfds():
            builder = ImagenetValidation(data_dir=data_dir)
            generate(builder, manual_dir=root)
    except OSError as error:
        raise place_error(error, data_dir) from None
    return str(builder.data_path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", required=True, help="directory of the official files")
    parser.add_argument("--data_dir", required=True, help="where TFDS datasets are kept")


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset and prints where it is."""
    print(prepare_imagenet(arguments.root, arguments.data_dir))
