"""Where the official segmentation benchmarks keep their validation images and masks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int

from cocu_jax.errors import UserError
from data_prep.segmentation import ids
from data_prep.segmentation.context import read_context_json
from data_prep.segmentation.masks import read_colour_ids, read_ids
from eval.benchmarks import get_benchmark


class Sample(NamedTuple):
    """An image and its mask, not read yet.

    Attributes:
        key: unique name.
        image: file of the image.
        mask: name of the mask, for messages.
        read_mask: reads the mask's raw ids.
        table: raw id -> class, see `data_prep.segmentation.ids`.
    """

    key: str
    image: epath.Path
    mask: str
    read_mask: Callable[[], Int[np.ndarray, "h w"]]
    table: Int[np.ndarray, "n"]


def find_samples(benchmark: str, root: str) -> list[Sample]:
    """The validation split of a benchmark, in a fixed order.

    Args:
        benchmark: name of a benchmark with files of its own.
        root: the official layout's top directory, or the one above it.

    Raises:
        UserError: a directory, the split file, an image or a mask is not there.
    """
    find = {
        "voc": _voc,
        "context": _context,
        "coco_object": _coco_object,
        "imagenet_s_50": _imagenet_s,
        "imagenet_s_300": _imagenet_s,
        "imagenet_s_919": _imagenet_s,
        "cityscapes": _cityscapes,
        "ade20k": _ade20k,
        "coco_stuff": _coco_stuff,
    }[benchmark]
    samples = find(benchmark, epath.Path(root))
    if not samples:
        raise UserError(f"{benchmark}: no images under {root}; {_expected(benchmark)}")
    return samples


def _voc(name: str, root: epath.Path) -> list[Sample]:
    base = _below(name, root, ("VOCdevkit/VOC2012", "VOC2012", ""), "JPEGImages")
    keys = _read_split(name, base / "ImageSets/Segmentation/val.txt")
    masks = _present(name, base / "SegmentationClass")
    table = ids.plain(21)
    return [_png(key, base / f"JPEGImages/{key}.jpg", masks / f"{key}.png", table) for key in keys]


def _context(name: str, root: epath.Path) -> list[Sample]:
    base = _below(name, root, ("VOCdevkit/VOC2010", "VOC2010", ""), "JPEGImages")
    masks, annotations = base / "SegmentationClassContext", base / "trainval_merged.json"
    if not masks.exists() and annotations.exists():
        table = ids.context()
        return [
            Sample(key, base / f"JPEGImages/{key}.jpg", f"{annotations} ({key})", read, table)
            for key, read in read_context_json(annotations)
        ]
    if not masks.exists():
        raise UserError(f"{name}: neither {masks} nor {annotations}; {_expected(name)}")
    keys = _read_split(name, base / "ImageSets/SegmentationContext/val.txt")
    table = ids.plain(60)
    return [_png(key, base / f"JPEGImages/{key}.jpg", masks / f"{key}.png", table) for key in keys]


def _coco_object(name: str, root: epath.Path) -> list[Sample]:
    images, masks = _coco(name, root)
    made, raw = ids.coco_object_made(), ids.coco_object_raw()
    samples = []
    for image in images:
        mask = masks / f"{image.stem}_instanceTrainIds.png"
        if mask.exists():
            samples.append(_png(image.stem, image, mask, made))
        else:
            samples.append(_png(image.stem, image, masks / f"{image.stem}.png", raw))
    return samples


def _coco_stuff(name: str, root: epath.Path) -> list[Sample]:
    images, masks = _coco(name, root)
    table = ids.coco_stuff()
    return [_png(image.stem, image, masks / f"{image.stem}.png", table) for image in images]


def _coco(name: str, root: epath.Path) -> tuple[list[epath.Path], epath.Path]:
    tops = ("", "coco", "coco_stuff164k")
    base = _below(name, root, tops, "images/val2017")
    for folder in ("annotations/val2017", "stuffthingmaps/val2017"):
        if (base / folder).exists():
            return sorted((base / "images/val2017").glob("*.jpg")), base / folder
    raise UserError(
        f"{name}: no {base}/annotations/val2017; unpack stuffthingmaps_trainval2017.zip of "
        "COCO-Stuff 164k there"
    )


def _imagenet_s(name: str, root: epath.Path) -> list[Sample]:
    benchmark = get_benchmark(name)
    classes = len(benchmark.classes)
    tops = ("", f"ImageNetS{classes - 1}")
    base = _below(name, root, tops, "validation")
    masks = _present(name, base / "validation-segmentation")
    table = ids.imagenet_s(classes)
    images = sorted((base / "validation").glob("*/*.JPEG"))
    if wrong := sorted({image.parent.name for image in images} - set(benchmark.wnids)):
        raise UserError(
            f"{base / 'validation' / wrong[0]}: no class of {benchmark.title} ({len(wrong)} such "
            "folders); give the --root of this split"
        )
    return [
        Sample(image.stem, image, str(mask), _reader(read_colour_ids, mask), table)
        for image in images
        for mask in [masks / image.parent.name / f"{image.stem}.png"]
    ]


def _cityscapes(name: str, root: epath.Path) -> list[Sample]:
    base = _below(name, root, ("", "cityscapes"), "leftImg8bit/val")
    masks = _present(name, base / "gtFine/val")
    samples = []
    for image in sorted((base / "leftImg8bit/val").glob("*/*_leftImg8bit.png")):
        key = image.name.removesuffix("_leftImg8bit.png")
        own, train = (
            masks / image.parent.name / f"{key}_gtFine_{kind}.png"
            for kind in ("labelIds", "labelTrainIds")
        )
        if own.exists() or not train.exists():
            samples.append(_png(key, image, own, ids.cityscapes()))
        else:
            samples.append(_png(key, image, train, ids.plain(19)))
    return samples


def _ade20k(name: str, root: epath.Path) -> list[Sample]:
    base = _below(name, root, ("", "ADEChallengeData2016"), "images/validation")
    masks = _present(name, base / "annotations/validation")
    table = ids.ade20k()
    images = sorted((base / "images/validation").glob("*.jpg"))
    return [_png(image.stem, image, masks / f"{image.stem}.png", table) for image in images]


def _png(key: str, image: epath.Path, mask: epath.Path, table: np.ndarray) -> Sample:
    return Sample(key, image, str(mask), _reader(read_ids, mask), table)


def _reader(read: Callable[[epath.Path], np.ndarray], path: epath.Path) -> Callable[[], np.ndarray]:
    return lambda: read(path)


def _below(name: str, root: epath.Path, tops: tuple[str, ...], folder: str) -> epath.Path:
    """The first of `root/top` that has `folder`."""
    for top in tops:
        if (root / top / folder).exists():
            return root / top
    raise UserError(f"{name}: no {folder} under {root}; {_expected(name)}")


def _present(name: str, path: epath.Path) -> epath.Path:
    if not path.exists():
        raise UserError(f"{name}: no {path}; {_expected(name)}")
    return path


def _read_split(name: str, path: epath.Path) -> list[str]:
    """Keys of a split file, one a line."""
    return [line.strip() for line in _present(name, path).read_text().splitlines() if line.strip()]


def _expected(name: str) -> str:
    return f"--root must hold {get_benchmark(name).layout}"
