"""Lists of different lengths, stored one after the other."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Shaped


@dataclasses.dataclass(frozen=True)
class Ragged:
    """List i is `values[starts[i] : starts[i + 1]]`; any leading layout of `values` rows.

    Attributes:
        values: all items of all lists.
        starts: where each list starts, plus the total at the end.
    """

    values: Shaped[np.ndarray, "items"]
    starts: Int[np.ndarray, "lists1"]

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence], dtype) -> "Ragged":
        """Joins Python sequences or arrays."""
        starts = starts_of([len(items) for items in lists])
        joined = np.empty(starts[-1], dtype)
        for items, start in zip(lists, starts, strict=False):
            joined[start : start + len(items)] = items
        return cls(joined, starts)

    @classmethod
    def from_bytes(cls, texts: Iterable[bytes]) -> "Ragged":
        """Byte strings as lists of uint8."""
        texts = list(texts)
        values = np.frombuffer(b"".join(texts), np.uint8)
        return cls(values, starts_of([len(text) for text in texts]))

    @classmethod
    def join(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The lists of the first part, then those of the second, …."""
        values = np.concatenate([part.values for part in parts])
        return cls(values, starts_of(np.concatenate([part.lengths for part in parts])))

    @property
    def lengths(self) -> Int[np.ndarray, "lists"]:
        """Number of items of each list."""
        return np.diff(self.starts)

    def take(self, rows: Int[np.ndarray, "rows"]) -> "Ragged":
        """Any lists, in the order given."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        return Ragged(self.values[item_positions(self.starts[rows], lengths)], starts_of(lengths))

    def between(self, first: int, last: int) -> "Ragged":
        """Lists first to last, the last excluded; a view."""
        starts = self.starts[first : last + 1]
        return Ragged(self.values[starts[0] : starts[-1]], starts - starts[0])

    def bytes(self, i: int) -> bytes:
        """List i of uint8 values as a byte string."""
        return self.values[self.starts[i] : self.starts[i + 1]].tobytes()


def starts_of(lengths) -> Int[np.ndarray, "lists1"]:
    """Where lists of these lengths start, plus the total at the end."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def item_positions(
    starts: Int[np.ndarray, "lists"], lengths: Int[np.ndarray, "lists"]
) -> Int[np.ndarray, "items"]:
    """Positions of the items of some lists, list after list."""
    first_of_list = np.repeat(starts - starts_of(lengths)[:-1], lengths)
    return first_of_list + np.arange(len(first_of_list))
