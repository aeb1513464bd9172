"""A segmentation data set of one's own: a folder of images, one of masks, a list of classes."""

import dataclasses
import functools
import hashlib
import itertools
import re

import numpy as np
from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.folders import walk
from data_prep.image_text.formats import IMAGE_ENDINGS
from data_prep.segmentation.files import Sample
from data_prep.segmentation.ids import IGNORE, UNKNOWN, Table
from data_prep.segmentation.masks import read_ids
from eval.class_names import read_lines

_NUMBERED = re.compile(r"\s*\d+\s*[ ,;:|]\s*\D")
_LARGEST_ID = 65535  # of a 16-bit mask


@dataclasses.dataclass(frozen=True)
class OwnFiles:
    """Where the files are and what the masks hold.

    Attributes:
        images: folder of the images, also below it.
        masks: folder of the masks: PNGs with the images' names, palette or grey, 8 or 16 bits.
        classes: text file with a class a line; the first has id 0, or `ID`, tab, `NAME`.
        ignore: id of pixels that are not evaluated.
    """

    images: str
    masks: str
    classes: str
    ignore: int = 255


def read_classes(files: OwnFiles) -> tuple[tuple[str, ...], Table]:
    """Class names in label order, and the table from ids to classes.

    Raises:
        UserError: the file cannot be read, or an id or a name is wrong or there twice.
    """
    path = files.classes
    lines = read_lines(path)
    if len(lines) > 1 and all(map(_NUMBERED.match, lines)):
        raise UserError(f"{path}: its lines begin with numbers; put a tab between id and name")
    names: dict[str, int] = {}
    for line in lines:
        number, tab, name = line.rpartition("\t")
        name, own = name.strip(), number.strip() if tab else str(len(names))
        if not own.isdecimal() or int(own) > _LARGEST_ID:
            raise UserError(f"{path}: {own!r} cannot be the id of class {name!r}; correct the line")
        if int(own) == files.ignore:
            raise UserError(
                f"{path}: {own} is the id of class {name!r} and that of ignored pixels; give "
                f"another with --ignore, such as {_LARGEST_ID}, or correct the line"
            )
        if name in names or int(own) in names.values():
            raise UserError(f"{path}: class {name!r} or its id {own} is there twice; keep one")
        names[name] = int(own)
    table = np.full(max(*names.values(), files.ignore, 255) + 1, UNKNOWN, np.int32)
    table[files.ignore] = IGNORE
    table[list(names.values())] = np.arange(len(names))
    return tuple(names), table


def find_own_samples(files: OwnFiles) -> list[Sample]:
    """Every image with its mask, sorted by name; the name without its ending is the key.

    Raises:
        UserError: a folder is not there or empty, or an image or a mask lacks the other.
    """
    _, table = read_classes(files)
    images, masks = _by_key(files.images, IMAGE_ENDINGS), _by_key(files.masks, ("png",))
    for lacking, having, kind in ((masks, images, "mask"), (images, masks, "image")):
        if alone := sorted(having.keys() - lacking.keys()):
            folder = files.masks if kind == "mask" else files.images
            raise UserError(
                f"{having[alone[0]]}: no {kind} of that name in {folder} ({len(alone)} such "
                "files); names must be the same but for the ending"
            )
    return [
        Sample(key, image, str(masks[key]), functools.partial(read_ids, masks[key]), table)
        for key, image in sorted(images.items())
    ]


def content_of(files: OwnFiles) -> str:
    """Hash of keys, ids, masks, and the images' lengths: other files have another one.

    Raises:
        UserError: see `find_own_samples`.
    """
    samples = find_own_samples(files)
    digest = hashlib.sha256(samples[0].table.tobytes())
    for sample in samples:
        length = sample.image.stat().length
        digest.update(f"{sample.key}\0{length}\0".encode(errors="surrogateescape"))
        digest.update(epath.Path(sample.mask).read_bytes())
    return digest.hexdigest()[:16]


def _by_key(folder: str, endings: tuple[str, ...]) -> dict[str, epath.Path]:
    root = epath.Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; check --images and --masks")
    found: dict[str, epath.Path] = {}
    for path in itertools.chain.from_iterable(files for _, files in walk(root, endings)):
        stem, _, ending = path.name.rpartition(".")
        if ending.lower() not in endings or not stem or stem.startswith("."):
            continue
        key = (path.parent.relative_to(root) / stem).as_posix()
        if key in found:
            raise UserError(f"{path}: {found[key].name} has the same name; keep one of them")
        found[key] = path
    if not found:
        raise UserError(f"{folder}: no {'masks (.png)' if endings == ('png',) else 'images'} there")
    return found
