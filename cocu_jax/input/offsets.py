"""Byte offsets of the records of a corpus, so that reading can start at any record.

TFRecord files have no index. One is built when a corpus is first read, from the length of every
record, and stored beside the shards, or in the cache directory if the corpus is read-only. Several
processes share the work: each starts with a different shard and skips those already indexed.
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

GRID = 4  # every GRID-th record is indexed; readers skip the records in between

_DIRECTORY = "offsets"
_CACHE = "~/.cache/cocu_jax/offsets"
_THREADS = 16
_FRAME = 16  # bytes around a record's data: its length, and checksums of the length and the data


@dataclasses.dataclass(frozen=True)
class Offsets:
    """Offsets of the records of all shards of a corpus.

    They are tensors, which the functions of a dataset share instead of holding copies.

    Attributes:
        bytes: byte offsets of records 0, GRID, 2 GRID … of every shard, concatenated.
        first: index in `bytes` of the first record of each shard.
    """

    bytes: Int[tf.Tensor, "places"]
    first: Int[tf.Tensor, "shards"]


def open_offsets(corpus: Corpus, process_index: int = 0, process_count: int = 1) -> Offsets:
    """Reads the offsets of a corpus's records, or finds and stores them.

    Args:
        corpus: the corpus.
        process_index: index of this process.
        process_count: number of processes that open the corpus at the same time.

    Raises:
        UserError: a shard is damaged, or its number of records differs from the corpus's metadata.
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
                continue  # damaged; it is built again
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
            logging.info("the index of record offsets cannot be stored: %s", error)
    return known[:-1]


def _scan(file: str, count: int) -> Int[np.ndarray, "places"]:
    """Byte offsets of every GRID-th record and of the end of the file."""
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
