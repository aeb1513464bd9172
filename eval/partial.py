"""Intermediate counts of a benchmark, so that an interrupted run loses at most a minute."""

import dataclasses
import io
import json
import time
import zipfile

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from cocu_jax.files import write_file


@dataclasses.dataclass
class PartialCounts:
    """A file with the counts of one process.

    Attributes:
        file: the file.
        identity: what the counts depend on; counts with another identity are not loaded.
        seconds: shortest time between two writes.
    """

    file: epath.Path
    identity: dict
    seconds: float = 60.0

    def __post_init__(self) -> None:
        self._written = time.monotonic()

    def load(
        self, shape: tuple[int, ...], images: int
    ) -> tuple[Int[np.ndarray, "*shape"], Bool[np.ndarray, "n"]]:
        """The stored counts, and a mask of the images that they include; otherwise zeros."""
        try:
            with np.load(io.BytesIO(self.file.read_bytes()), allow_pickle=False) as arrays:
                counts, done = arrays["counts"], arrays["done"]
                same = json.loads(str(arrays["identity"])) == self.identity
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            same = False
        if not same or counts.shape != shape or done.shape != (images,):
            return np.zeros(shape, np.int64), np.zeros(images, bool)
        return counts, done

    def save(
        self,
        counts: Int[np.ndarray, "*shape"],
        done: Bool[np.ndarray, "n"],
        at_once: bool = False,
    ) -> None:
        """Writes the file, if the last write was at least `seconds` ago or with `at_once`."""
        if not at_once and time.monotonic() - self._written < self.seconds:
            return
        buffer = io.BytesIO()
        np.savez_compressed(buffer, counts=counts, done=done, identity=json.dumps(self.identity))
        write_file(self.file, buffer.getvalue())
        self._written = time.monotonic()

    def remove(self) -> None:
        """Removes the file, after the result of the benchmark has been written."""
        self.file.unlink(missing_ok=True)
