"""Files that exist only when they are complete: written aside, synced, renamed, with a checksum.

Arrays are stored as safetensors (a JSON header, then the raw arrays), which memory-maps, with the
SHA-256 of the arrays in the header's metadata.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from etils import epath

from cocu_jax.errors import UserError

_CHUNK = 1 << 22
_DTYPES = {
    "F16": np.float16,
    "F32": np.float32,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def write_file(path: epath.Path, content: bytes) -> None:
    """Writes a whole file or nothing; an interrupted write leaves at most a `.tmp` beside it.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if "://" in str(path):
            path.write_bytes(content)  # object stores show an object when it is complete
        else:
            _write_local(os.fspath(path), content)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "make it writable or choose another directory"
        raise UserError(
            f"{path}: cannot write ({error.strerror or error}); {remedy}, "
            "then run the same command to go on"
        ) from None


def _write_local(path: str, content: bytes) -> None:
    aside = f"{path}.tmp"
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        if os.path.exists(aside):
            os.remove(aside)
        raise


def write_arrays(
    path: epath.Path, arrays: Mapping[str, np.ndarray], identity: Mapping[str, str]
) -> None:
    """Writes arrays with a checksum; `identity` says what they were computed from."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = safetensors.numpy.save(arrays)
    checksum = hashlib.sha256(memoryview(content)[_data_start(content[:8]) :]).hexdigest()
    write_file(path, safetensors.numpy.save(arrays, {**identity, "sha256": checksum}))


def is_complete(path: epath.Path, identity: Mapping[str, str]) -> bool:
    """Whether the file is there, was computed from `identity`, and its bytes are undamaged."""
    try:
        with open(path, "rb") as file:
            start = _data_start(file.read(8))
            metadata = json.loads(file.read(start - 8))["__metadata__"]
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except (OSError, ValueError, KeyError):
        return False
    return metadata == {**identity, "sha256": digest.hexdigest()}


def open_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """The file's arrays, memory-mapped and read-only; the mapping ends with the last of them."""
    content = np.memmap(path, np.uint8, mode="r")
    start = _data_start(content[:8].tobytes())
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = content[start + first : start + last].view(_DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def checksum_of(path: epath.Path) -> str | None:
    """SHA-256 of a file, or None where there is none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def _data_start(first_bytes: bytes) -> int:
    """Where the arrays begin, from the first eight bytes of a safetensors file."""
    return 8 + int.from_bytes(first_bytes, "little")
