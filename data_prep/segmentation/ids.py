"""Raw mask ids -> classes, as lookup tables.

A table has one entry per raw id. Ids that an official mask cannot hold are `UNKNOWN`, so that a
wrong file is noticed and not evaluated.
"""

import numpy as np
from jaxtyping import Int

IGNORE = 65535
UNKNOWN = -1

Table = Int[np.ndarray, "n"]

# Cityscapes label id of each of the 19 train ids (cityscapesScripts, labels.py).
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_LABELS = 34

# COCO category ids, minus 1, that no object has.
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_COCO_THINGS, _COCO_RAW = 91, 182  # raw ids 0..90 are things, 91..181 stuff

# PASCAL in Detail category ids of the 59 Context classes, in class order (0 is background).
_CONTEXT = (
    *(0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105),
    *(113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308),
    *(324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454),
    458,
)

_IMAGENET_S_IGNORE = 1000


def plain(classes: int) -> Table:
    """Ids that are classes already; 255 is ignored."""
    table = np.full(256, UNKNOWN, np.int32)
    table[:classes] = np.arange(classes)
    table[255] = IGNORE
    return table


def context() -> Table:
    """PASCAL in Detail categories -> 59 classes, background; official masks hold no other."""
    table = np.full(max(_CONTEXT) + 1, UNKNOWN, np.int32)
    table[list(_CONTEXT)] = np.arange(len(_CONTEXT))
    return table


def coco_stuff() -> Table:
    """COCO-Stuff 164k raw ids -> 80 things and 91 stuff classes without gaps; 255 is ignored."""
    raw = [number for number in range(_COCO_RAW) if number not in _COCO_GAPS]
    table = np.full(256, UNKNOWN, np.int32)
    table[raw] = np.arange(len(raw))
    table[255] = IGNORE
    return table


def coco_object_raw() -> Table:
    """COCO-Stuff 164k raw ids -> background and 80 things. Unlabelled pixels are background too."""
    things = [number for number in range(_COCO_THINGS) if number not in _COCO_GAPS]
    table = np.zeros(256, np.int32)
    table[things] = 1 + np.arange(len(things))
    table[_COCO_RAW:255] = UNKNOWN
    return table


def coco_object_made() -> Table:
    """Masks converted by others (`_instanceTrainIds.png`), where 255 means background too."""
    table = plain(81)
    table[255] = 0
    return table


def cityscapes() -> Table:
    """Label ids 0..33 -> 19 train ids; all other labels, and 255 (licence plate), are ignored."""
    table = np.full(256, UNKNOWN, np.int32)
    table[:_CITYSCAPES_LABELS] = IGNORE
    table[255] = IGNORE
    table[list(_CITYSCAPES)] = np.arange(len(_CITYSCAPES))
    return table


def ade20k() -> Table:
    """1..150 -> 0..149; 0 ("other") is ignored."""
    table = np.full(256, UNKNOWN, np.int32)
    table[0] = IGNORE
    table[1:151] = np.arange(150)
    return table


def imagenet_s(classes: int) -> Table:
    """Ids that are classes already, 0 is background; 1000 is ignored."""
    table = np.full(_IMAGENET_S_IGNORE + 1, UNKNOWN, np.int32)
    table[:classes] = np.arange(classes)
    table[_IMAGENET_S_IGNORE] = IGNORE
    return table
