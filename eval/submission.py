"""Label maps as PNG files for the servers of the benchmarks."""

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from cocu_jax.files import write_file

_LARGE = 4_000_000  # pixels; optimising the compression of larger files would take seconds


def write_prediction(
    folder: epath.Path,
    name: str,
    labels: Int[np.ndarray, "h w"],
    ids: Sequence[int],
    colours: UInt8[np.ndarray, "c 3"],
) -> None:
    """Writes `folder/name.png`: an indexed PNG, or red + 256 * green if an id exceeds 255.

    Args:
        folder: directory, which is created if it does not exist.
        name: file name without extension, see `files.safe_name`.
        labels: class of every pixel.
        ids: ids of the classes in the benchmark's own files (Cityscapes label ids, ADE 1..150 ...).
        colours: colours of the classes, for the palette.

    Raises:
        UserError: the file cannot be written.
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
