"""What the page shows of one segmented photo: pictures, a legend, files."""

import dataclasses
import html
import json
import pathlib
import tempfile

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8, UInt16
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.files import safe_name, write_file
from cocu_jax.input.images import UnreadableImage, decode_image
from cocu_jax.segment import coco_masks
from cocu_jax.segmentation import Segmentation
from eval.palettes import distinct_colours
from eval.pictures import draw_overlay, renumber
from eval.submission import write_prediction

MAX_BYTES = 64_000_000  # of an upload; `images.MAX_PIXELS` bounds what is decoded from it
_LONG_SIDE = 960


@dataclasses.dataclass(frozen=True)
class View:
    """What is kept of a segmented photo while its page is open: about 5 MB.

    Attributes:
        picture: the photo, not larger than it is shown.
        labels: class of every pixel of what is shown.
        colours: of the classes.
        groups: group maps of the model's stages; none of a model without groups.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    labels: UInt16[np.ndarray, "lh lw"]
    colours: UInt8[np.ndarray, "c 3"]
    groups: tuple[Int[np.ndarray, "gh gw"], ...]

    def overlay(self, strength: float) -> Image.Image:
        """The photo under its classes; `strength` is the share of the colour, 0..1."""
        return draw_overlay(self.picture, self.labels, self.colours, _LONG_SIDE, strength)

    def group_pictures(self, strength: float) -> list[tuple[Image.Image, str]]:
        """The photo under the groups of each stage, with a title."""
        pictures = []
        for groups, title in zip(self.groups, ("First stage", "Last stage"), strict=False):
            tints = distinct_colours(int(groups.max()) + 1, start=0.1)
            picture = draw_overlay(self.picture, groups, tints, _LONG_SIDE, strength)
            pictures.append((picture, title))
        return pictures


def read_upload(path: str | None) -> UInt8[np.ndarray, "h w 3"]:
    """The upright pixels of an uploaded file.

    Raises:
        UserError: nothing was uploaded, or it is no image that can be read.
    """
    if not path:
        raise UserError("There is no photo yet; drop one first")
    try:
        with open(path, "rb") as file:
            encoded = file.read(MAX_BYTES + 1)
    except OSError:
        raise UserError("The photo is not here any more; drop it again") from None
    if len(encoded) > MAX_BYTES:
        raise UserError(f"The file is larger than {MAX_BYTES // 1_000_000} MB; drop a smaller one")
    try:
        return decode_image(encoded)
    except UnreadableImage as error:
        raise UserError(f"The file cannot be read: {error}; drop a JPEG or PNG photo") from None


def view_of(result: Segmentation) -> View:
    """What the page keeps of a result."""
    labels = Image.fromarray(result.labels)
    if (scale := _LONG_SIDE / max(result.labels.shape)) < 1:
        size = [max(round(side * scale), 1) for side in result.labels.shape[::-1]]
        labels = labels.resize(size, Image.Resampling.NEAREST)
    stages = (result.prediction.first_groups, result.prediction.groups)
    groups = tuple(renumber(groups) for groups in stages if groups is not None)
    return View(result.picture, np.asarray(labels).astype(np.uint16), result.colours, groups)


def legend(result: Segmentation) -> str:
    """Names and shares, most frequent first, as HTML."""
    rows = []
    for label in np.argsort(result.shares, kind="stable")[::-1].tolist():
        colour = "#" + bytes(result.colours[label].tolist()).hex()
        name, share = html.escape(result.classes[label]), 100 * result.shares[label]
        rows.append(f'<li><span style="background:{colour}"></span>{name}<b>{share:.1f} %</b></li>')
    return f'<ul class="legend">{"".join(rows)}</ul>'


def write_downloads(result: Segmentation, folder: pathlib.Path) -> tuple[str, str]:
    """Writes the label map (PNG) and the masks (RLE in JSON) in a new directory in `folder`."""
    target = epath.Path(tempfile.mkdtemp(dir=folder))
    stem = safe_name(pathlib.PurePath(result.name).stem)
    write_prediction(
        target, f"{stem}_labels", result.labels, range(len(result.classes)), result.colours
    )
    masks = target / f"{stem}_masks.json"
    write_file(masks, json.dumps(coco_masks(result)))
    return str(target / f"{stem}_labels.png"), str(masks)
