"""A tensor in a checkpoint file: its shape is known at once, its values are read when asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        file: where it lies, for messages.
        shape: its shape.
        dtype: name of its type, e.g. `"float32"` or `"bfloat16"`.
        read: reads the values; raises `UserError` if the file is damaged.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
