"""Label maps as the PNG files that benchmark servers take."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image


def write_prediction(
    folder: epath.Path,
    key: str,
    labels: Int[np.ndarray, "h w"],
    ids: Sequence[int],
    colours: UInt8[np.ndarray, "c 3"],
) -> None:
    """Writes `folder/key.png`: an indexed PNG, or, where ids pass 255, red + 256 * green.

    Args:
        folder: an existing directory.
        key: of the image.
        labels: class of every pixel.
        ids: what the benchmark's own files call each class (Cityscapes label ids, ADE 1..150 ...).
        colours: of the classes, for the palette.
    """
    ids = np.array(ids)
    raw = ids[labels]
    if ids.max() > 255:
        packed = np.stack([raw % 256, raw // 256, np.zeros_like(raw)], -1)
        image = Image.fromarray(packed.astype(np.uint8))
    else:
        palette = np.zeros((256, 3), np.uint8)
        palette[ids] = colours
        image = Image.frombytes("P", raw.shape[::-1], raw.astype(np.uint8).tobytes())
        image.putpalette(palette.reshape(-1).tolist())
    with (folder / f"{key}.png").open("wb") as file:
        image.save(file, "PNG", optimize=True)
