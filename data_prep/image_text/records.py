"""TFRecord files with an index beside them, by which records are copied without being parsed."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from etils import epath
from jaxtyping import Int

from cocu_jax.files import temporary_name

# Of every record of a unit, in the order of the file: hash of the key, bytes of the serialised
# example, number of its captions.
INDEX = np.dtype([("key", np.uint64), ("length", np.uint32), ("captions", np.uint32)])

_BEFORE, _BEHIND = 12, 4  # bytes around a record: its length and two checksums


def unit_target(scratch: epath.Path, number: int) -> epath.Path:
    """Where the files of a unit go, without their endings."""
    return scratch / f"unit-{number:05d}"


def unit_files(target: epath.Path) -> tuple[epath.Path, epath.Path, epath.Path]:
    """Files of a unit: examples, their index, report."""
    return tuple(target.parent / f"{target.name}.{end}" for end in ("tfrecord", "npy", "json"))


def hash_key(key: str, seed: int = 0) -> int:
    """64 bits of a key: the chance that any two of 15 million keys meet is one in 160,000."""
    salt = seed.to_bytes(hashlib.blake2b.SALT_SIZE, "little")
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "little")


def framed_sizes(lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Bytes that records of these lengths take in a file."""
    return lengths.astype(np.int64) + _BEFORE + _BEHIND


def starts_of(sizes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Where each record begins in a file of all of them."""
    return np.cumsum(sizes) - sizes


def key_at(file: BinaryIO, start: int, length: int) -> str:
    """The key of the example of `length` bytes whose record begins at `start`."""
    file.seek(start + _BEFORE)
    example = tf.train.Example.FromString(file.read(length))
    return example.features.feature["key"].bytes_list.value[0].decode()


def copy_records(
    source: BinaryIO,
    target: BinaryIO,
    starts: Int[np.ndarray, " n"],
    sizes: Int[np.ndarray, " n"],
) -> None:
    """Copies records in the given order, in the memory of one."""
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        source.seek(start)
        target.write(source.read(size))


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[BinaryIO]:
    """A file that is at `path` only when it is whole, local or in a bucket; for large contents."""
    with local_file(path) as aside:
        with open(aside, "wb") as file:
            yield file
        bring(aside, path)


@contextlib.contextmanager
def local_file(path: epath.Path) -> Iterator[str]:
    """Name of a local file that is to become `path`, beside it if that is local.

    The file is removed at the end if it is still there.
    """
    if "://" in str(path):
        with tempfile.TemporaryDirectory() as folder:
            yield os.path.join(folder, path.name)
        return
    aside = temporary_name(os.fspath(path))
    try:
        yield aside
    finally:
        if os.path.exists(aside):
            os.remove(aside)


def bring(aside: str, path: epath.Path) -> None:
    """Brings what is whole in a `local_file` to `path`."""
    if "://" not in str(path):
        os.replace(aside, path)
        return
    with open(aside, "rb") as local, path.open("wb") as remote:
        shutil.copyfileobj(local, remote)
