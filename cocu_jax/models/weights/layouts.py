"""How a tensor of ours lies in somebody else's file.

Ours are [in, out] and without axes of length one; theirs are [out, in], as torch has them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A reordering of axes: ours = theirs.transpose(axes), reshaped.

    Attributes:
        their_shape: their shape, from ours.
        axes: order of their axes in ours; empty: the same order.
    """

    their_shape: Callable[[Shape], Shape]
    axes: Shape = ()

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        """Their array as one of ours, of the given shape."""
        return theirs.transpose(self.axes or range(theirs.ndim)).reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Our array as one of theirs."""
        shape = self.their_shape(ours.shape)
        axes = self.axes or range(len(shape))
        transposed = ours.reshape([shape[axis] for axis in axes])
        return transposed.transpose(np.argsort(axes))


def _convolution(shape: Shape) -> Shape:
    side = round((shape[0] / 3) ** 0.5)
    return (shape[1], 3, side, side)


SAME = Layout(lambda shape: shape)
ROW = Layout(lambda shape: (1, *shape))  # a batch axis in front
LINEAR = Layout(lambda shape: shape[::-1], (1, 0))
CONV1D = Layout(lambda shape: (*shape[::-1], 1), (1, 0, 2))  # width one: a linear layer
PATCHES = Layout(_convolution, (2, 3, 1, 0))  # [out, 3, rows, columns]: a linear layer per patch
