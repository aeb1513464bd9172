"""Label maps as the PNG files that benchmark servers take."""

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from cocu_jax.files import write_file

_LARGE = 4_000_000  # pixels; to look for the smallest file would take seconds


def write_prediction(
    folder: epath.Path,
    name: str,
    labels: Int[np.ndarray, "h w"],
    ids: Sequence[int],
    colours: UInt8[np.ndarray, "c 3"],
) -> None:
    """Writes `folder/name.png`: an indexed PNG, or, where ids pass 255, red + 256 * green.

    Args:
        folder: a directory; it is made if it is not there.
        name: of the file, without its ending, see `files.safe_name`.
        labels: class of every pixel.
        ids: what the benchmark's own files call each class (Cityscapes label ids, ADE 1..150 ...).
        colours: of the classes, for the palette.
    """
    ids = np.array(ids)
    if ids.max() > 255:
        table = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], -1).astype(np.uint8)
        image = Image.fromarray(table[labels])
    else:
        palette = np.zeros((256, 3), np.uint8)
        palette[ids] = colours
        raw = ids.astype(np.uint8)[labels]
        image = Image.frombytes("P", raw.shape[::-1], raw.tobytes())
        image.putpalette(palette.reshape(-1).tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=labels.size < _LARGE)
    write_file(folder / f"{name}.png", buffer.getvalue())
