"""Label maps and group maps drawn over the image, with a legend."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image, ImageDraw

from eval.fonts import choose_font
from eval.geometry import nearest

_INK, _PAPER = (38, 42, 48), (255, 255, 255)


def draw_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "lh lw"],
    colours: UInt8[np.ndarray, "c 3"],
    long_side: int = 960,
    strength: float = 0.55,
) -> Image.Image:
    """Draws the regions of a label map in colour, with outlines, over the greyed image.

    Args:
        image: pixels of any size.
        labels: colour index of each pixel; any size with the same aspect ratio.
        colours: the colours.
        long_side: long side of the picture; small images are enlarged so that outlines stay thin.
        strength: opacity of the colours, 0..1.
    """
    layers = overlay_layers(image, labels, long_side)
    mixed = (1 - strength) * layers.base + strength * colours[layers.labels]
    mixed[layers.outlines] = 255
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


class Layers(NamedTuple):
    """The layers of an overlay, all of the same size.

    Attributes:
        base: the greyed image, 0..255; cubic interpolation may overshoot slightly.
        labels: colour index of each pixel.
        outlines: pixels on both sides of every border between regions.
    """

    base: Float32[np.ndarray, "h w 3"]
    labels: Int[np.ndarray, "h w"]
    outlines: Bool[np.ndarray, "h w"]


def overlay_layers(
    image: UInt8[np.ndarray, "h w 3"], labels: Int[np.ndarray, "lh lw"], long_side: int
) -> Layers:
    """The layers of `draw_overlay`; the arguments are the same."""
    picture = Image.fromarray(image)
    scale = long_side / max(labels.shape)
    size = [max(round(side * scale), 1) for side in labels.shape[::-1]]
    base = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    grey = base.mean(-1, keepdims=True)
    base = 0.35 * base + 0.65 * grey  # so that colours of the image do not look like classes
    columns, rows = (nearest(*sides) for sides in zip(labels.shape[::-1], size, strict=True))
    chosen = labels[rows][:, columns]
    return Layers(base, chosen, _outlines(chosen))


def add_legend(
    picture: Image.Image,
    names: Sequence[str],
    colours: UInt8[np.ndarray, "c 3"],
    shares: Sequence[float],
) -> Image.Image:
    """Adds a legend below the picture: classes that have pixels, most frequent first.

    If no available font has the characters of a name, the class number is written instead.

    Args:
        picture: the picture.
        names: class names.
        colours: colours of the classes.
        shares: shares of the pixels, 0..1.
    """
    unit = min(max(picture.width // 60, 10), 16)
    shown = [index for index in np.argsort(shares)[::-1] if shares[index] > 0]
    entries, x, y = [], unit, unit
    for index in shown:
        text, font = choose_font(names[index], 1.15 * unit)
        text = text or f"class {index}"
        text = f"{text}  {100 * shares[index]:.0f}%"
        width = round(font.getlength(text)) + 3 * unit
        if x > unit and x + width > picture.width - unit:
            x, y = unit, y + 2 * unit
        entries.append((x, y, index, text, font))
        x += width + unit
    sheet = Image.new("RGB", (picture.width, picture.height + y + 2 * unit + unit // 2), _PAPER)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for x, y, index, text, font in entries:
        top = picture.height + y
        box = (x, top, x + 1.8 * unit, top + 1.3 * unit)
        draw.rounded_rectangle(box, radius=0.4 * unit, fill=tuple(colours[index].tolist()))
        draw.text((x + 2.4 * unit, top + 0.65 * unit), text, fill=_INK, font=font, anchor="lm")
    return sheet


def side_by_side(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Puts pictures of the same height in a row, each below its title."""
    unit = min(max(pictures[0].width // 40, 10), 16)
    _, font = choose_font("".join(titles), 1.2 * unit)
    width = sum(picture.width for picture in pictures) + unit * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures) + 4 * unit), _PAPER)
    draw = ImageDraw.Draw(sheet)
    x = unit
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((x, 1.5 * unit), title, fill=_INK, font=font, anchor="lm")
        sheet.paste(picture, (x, 3 * unit))
        x += picture.width + unit
    return sheet


def renumber(groups: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Renumbers groups by size without gaps, from 0 for the largest."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse.reshape(groups.shape)]


def _outlines(labels: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels on both sides of every border between regions."""
    edge = np.zeros(labels.shape, bool)
    across, down = labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
    edge[:, :-1] |= across
    edge[:, 1:] |= across
    edge[:-1] |= down
    edge[1:] |= down
    return edge
