"""Where records begin in the files of a corpus, so that reading can start at any of them.

TFRecord files have no table of contents. One is made when a corpus is first read, by looking at the
length of every record, and kept beside the shards (or in the cache directory, where that place
cannot be written). Several processes share the work: each begins with other shards and skips those
that are finished.
"""

import concurrent.futures
import dataclasses
import io
import os

import numpy as np
import tensorflow as tf
from absl import logging
from etils import epath
from jaxtyping import Int

from cocu_jax.errors import UserError
from cocu_jax.files import write_file
from cocu_jax.input.corpus import Corpus

GRID = 4  # the place of every so many records is kept; those between are passed over

_DIRECTORY = "offsets"
_CACHE = "~/.cache/cocu_jax/offsets"
_THREADS = 16
_FRAME = 16  # bytes around a record's data: its length, and checksums of the length and the data


@dataclasses.dataclass(frozen=True)
class Offsets:
    """Places of the records of all shards of a corpus.

    Tensors, so that the functions of a dataset share them instead of holding copies.

    Attributes:
        bytes: byte at which records 0, GRID, 2 GRID … of a shard begin, shard after shard.
        first: where in `bytes` the places of each shard begin.
    """

    bytes: Int[tf.Tensor, "places"]
    first: Int[tf.Tensor, "shards"]


def open_offsets(corpus: Corpus, process_index: int = 0, process_count: int = 1) -> Offsets:
    """Reads the places of a corpus's records, after finding them if nobody has yet.

    Args:
        corpus: the corpus.
        process_index: this process.
        process_count: processes that open the corpus at the same time.

    Raises:
        UserError: a shard is damaged, or has not as many records as the corpus says.
    """
    start = process_index * corpus.num_shards // process_count
    turn = [(start + i) % corpus.num_shards for i in range(corpus.num_shards)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(turn, pool.map(lambda shard: _of_shard(corpus, shard), turn), strict=True))
    places = [found[shard] for shard in range(corpus.num_shards)]
    first = np.cumsum([0, *map(len, places)], dtype=np.int64)[:-1]
    return Offsets(tf.constant(np.concatenate(places)), tf.constant(first))


def _of_shard(corpus: Corpus, shard: int) -> Int[np.ndarray, "places"]:
    file, count = corpus.shard_files[shard], corpus.shard_lengths[shard]
    name = f"{epath.Path(file).name}.npy"
    beside = epath.Path(corpus.directory) / _DIRECTORY / name
    cached = epath.Path(os.path.expanduser(_CACHE)) / corpus.fingerprint / name
    for place in (beside, cached):
        if place.exists():
            try:
                known = np.load(io.BytesIO(place.read_bytes()))
            except (ValueError, EOFError, OSError):
                continue  # damaged: it is made again
            if len(known) == -(-count // GRID) + 1 and known[-1] == _size(file):
                return known[:-1]
    known = _scan(file, count)
    buffer = io.BytesIO()
    np.save(buffer, known)
    for place in (beside, cached):
        try:
            write_file(place, buffer.getvalue())
            break
        except UserError as error:
            logging.info("places of records are not kept there: %s", error)
    return known[:-1]


def _scan(file: str, count: int) -> Int[np.ndarray, "places"]:
    """Byte of every GRID-th record, and of the end."""
    size, place, places = _size(file), 0, []
    with epath.Path(file).open("rb") as stream:
        for record in range(count):
            if record % GRID == 0:
                places.append(place)
            stream.seek(place)
            place += int.from_bytes(stream.read(8), "little") + _FRAME
            if place > size:
                raise UserError(
                    f"{file}: damaged, or has fewer than the {count} records of dataset_info.json; "
                    "copy or prepare the corpus again"
                )
    if place != size:
        raise UserError(
            f"{file}: has more than the {count} records of dataset_info.json; "
            "copy or prepare the corpus again"
        )
    return np.array([*places, size], np.int64)


def _size(file: str) -> int:
    return epath.Path(file).stat().length
