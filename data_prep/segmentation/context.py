"""PASCAL Context masks from the official `trainval_merged.json` (PASCAL in Detail)."""

import collections
import json
from collections.abc import Callable

import numpy as np
from etils import epath
from jaxtyping import Int
from pycocotools import mask as run_lengths

from cocu_jax.errors import UserError


def read_context_json(
    path: epath.Path,
) -> list[tuple[str, Callable[[], Int[np.ndarray, "h w"]]]]:
    """Keys of the validation images, each with a function that draws its mask of raw categories.

    Regions are drawn in the file's order, later ones over earlier ones; the rest is 0.

    Raises:
        UserError: the file is not that JSON.
    """
    try:
        content = json.loads(path.read_text())
        images = [image for image in content["images"] if image["phase"] == "val"]
        regions = collections.defaultdict(list)
        for region in content["annos_segmentation"]:
            regions[region["image_id"]].append((region["category_id"], region["segmentation"]))
        return [
            (
                epath.Path(image["file_name"]).stem,
                _drawing(image["height"], image["width"], regions[image["image_id"]]),
            )
            for image in images
        ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not PASCAL in Detail's trainval_merged.json ({error!r}); fetch it again"
        ) from None


def _drawing(height: int, width: int, regions: list) -> Callable[[], Int[np.ndarray, "h w"]]:
    def draw() -> Int[np.ndarray, "h w"]:
        mask = np.zeros((height, width), np.int32)
        for category, region in regions:
            mask[run_lengths.decode(region).astype(bool)] = category
        return mask

    return draw
