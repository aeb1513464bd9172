"""The elements of the page for one segmented photo: regions with names, a legend, and files.

A picture of regions consists of three images on top of one another. The page can therefore change
the strength of the colours, and name the region under the pointer, without another request.
"""

import base64
import html
import io
import json
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.files import safe_name, write_file
from cocu_jax.input.images import UnreadableImage, decode_image
from cocu_jax.segment import coco_masks
from cocu_jax.segmentation import Segmentation
from eval.palettes import distinct_colours
from eval.pictures import overlay_layers, renumber
from eval.submission import write_prediction

MAX_BYTES = 64_000_000  # of an upload; `images.MAX_PIXELS` bounds the decoded image
_LONG_SIDE, _GROUPS_LONG_SIDE = 960, 640


def read_upload(path: str | None) -> UInt8[np.ndarray, "h w 3"]:
    """Reads the pixels of an uploaded file, rotated upright.

    Raises:
        UserError: nothing was uploaded, or the file is not a readable image.
    """
    if not path:
        raise UserError("There is no photo yet; drop one first")
    try:
        with open(path, "rb") as file:
            encoded = file.read(MAX_BYTES + 1)
    except OSError:
        raise UserError("The photo has been removed from the server; drop it again") from None
    if len(encoded) > MAX_BYTES:
        raise UserError(f"The file is larger than {MAX_BYTES // 1_000_000} MB; drop a smaller one")
    try:
        return decode_image(encoded)
    except UnreadableImage as error:
        raise UserError(f"The file cannot be read: {error}; drop a JPEG or PNG photo") from None


def classes_figure(result: Segmentation) -> str:
    """The classes in colour over the photo, as HTML."""
    return _figure(result.picture, result.labels, result.colours, result.classes, _LONG_SIDE)


def groups_figures(result: Segmentation) -> str:
    """The groups of each stage over the photo, as HTML; empty for a model without groups."""
    figures = []
    stages = (result.prediction.first_groups, result.prediction.groups)
    for groups, title in zip(stages, ("First stage", "Last stage"), strict=True):
        if groups is None:
            continue
        groups = renumber(groups)
        count = int(groups.max()) + 1
        names = [f"group {number + 1} of {count}" for number in range(count)]
        colours = distinct_colours(count, start=0.1)
        figure = _figure(result.picture, groups, colours, names, _GROUPS_LONG_SIDE, title)
        figures.append(figure)
    return f'<div class="groups">{"".join(figures)}</div>' if figures else ""


def legend(result: Segmentation) -> str:
    """Names and shares of the classes, most frequent first, as HTML."""
    rows = []
    for label in np.argsort(result.shares, kind="stable")[::-1].tolist():
        colour = "#" + bytes(result.colours[label].tolist()).hex()
        name, share = html.escape(result.classes[label]), 100 * result.shares[label]
        rows.append(f'<li><span style="background:{colour}"></span>{name}<b>{share:.1f} %</b></li>')
    return f'<ul class="legend">{"".join(rows)}</ul>'


def write_downloads(result: Segmentation, folder: pathlib.Path) -> tuple[str, str]:
    """Writes the label map (PNG) and the masks (RLE in JSON) to a new directory in `folder`.

    Returns:
        The paths of both files.
    """
    target = epath.Path(tempfile.mkdtemp(dir=folder))
    stem = safe_name(pathlib.PurePath(result.name).stem)
    write_prediction(
        target, f"{stem}_labels", result.labels, range(len(result.classes)), result.colours
    )
    masks = target / f"{stem}_masks.json"
    write_file(masks, json.dumps(coco_masks(result)))
    return str(target / f"{stem}_labels.png"), str(masks)


def _figure(
    photo: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "lh lw"],
    colours: UInt8[np.ndarray, "c 3"],
    names: Sequence[str],
    long_side: int,
    title: str = "",
) -> str:
    """Layers of the photo, its regions and their outlines; `page.js` finds names by colour."""
    layers = overlay_layers(photo, labels, long_side)
    base = Image.fromarray(layers.base.round().clip(0, 255).astype(np.uint8))
    by_colour = {bytes(c.tolist()).hex(): n for c, n in zip(colours, names, strict=True)}
    sources = {
        "photo": _data_url(base, "JPEG", quality=90),
        "colours": _data_url(_indexed(layers.labels, colours), "PNG"),
        "outlines": _data_url(_outlines(layers.outlines), "PNG", transparency=0),
    }
    images = "".join(f'<img class="{n}" src="{url}" alt="">' for n, url in sources.items())
    names = html.escape(json.dumps(by_colour))
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    return (
        f'<figure class="regions"><div class="layers" data-names="{names}">{images}'
        f'<output class="name"></output></div>{caption}</figure>'
    )


def _indexed(labels: Int[np.ndarray, "h w"], colours: UInt8[np.ndarray, "c 3"]) -> Image.Image:
    if len(colours) > 256:
        return Image.fromarray(colours[labels])
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette(colours.tobytes())
    return picture


def _outlines(outlines: Bool[np.ndarray, "h w"]) -> Image.Image:
    picture = Image.fromarray(outlines.astype(np.uint8), "P")
    picture.putpalette(bytes([0, 0, 0, 255, 255, 255]))
    return picture


def _data_url(picture: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"
