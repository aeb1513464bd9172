"""Units that have all been prepared, as the records that are to be kept of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt

from data_prep.image_text.records import INDEX, framed_sizes, key_at, starts_of, unit_files


@dataclasses.dataclass(frozen=True)
class FinishedUnits:
    """Finished units, in order: the first with a key keeps it.

    Attributes:
        targets: their files without endings.
        counts: number of records of each unit.
        lengths: bytes of every record, of all units one after the other.
        captions: number of captions of every record.
        kept: numbers of the records that stay, in the order of their keys' hashes.
    """

    targets: Sequence[epath.Path]
    counts: Int[np.ndarray, " units"]
    lengths: UInt[np.ndarray, " records"]
    captions: UInt[np.ndarray, " records"]
    kept: Int[np.ndarray, " kept"]

    @classmethod
    def load(cls, targets: Sequence[epath.Path]) -> "FinishedUnits":
        """Reads the indices: 16 bytes a record, and some copies."""
        indices = []
        for target in targets:
            with unit_files(target)[1].open("rb") as file:
                indices.append(np.load(file))
        counts = np.array([len(index) for index in indices], np.int64)
        columns = (np.concatenate([index[name] for index in indices]) for name in INDEX.names)
        keys, lengths, captions = columns
        indices.clear()  # before the largest copies
        return cls(targets, counts, lengths, captions, np.unique(keys, return_index=True)[1])

    def is_repeated(self) -> list[Bool[np.ndarray, " records"]]:
        """For every unit, which of its records have a key that came before."""
        repeated = np.ones(len(self.lengths), bool)
        repeated[self.kept] = False
        return self.of_each(repeated)

    def of_each(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all records, unit by unit."""
        return np.split(values, np.cumsum(self.counts)[:-1])

    def first_repeated_key(self) -> str:
        """The key of the first record whose key came before; "" if there is none.

        All units must still be at their targets.
        """
        columns = self.is_repeated(), self.of_each(self.lengths)
        for target, repeated, lengths in zip(self.targets, *columns, strict=True):
            if repeated.any():
                position = int(repeated.argmax())
                start = int(starts_of(framed_sizes(lengths))[position])
                with unit_files(target)[0].open("rb") as file:
                    return key_at(file, start, int(lengths[position]))
        return ""
