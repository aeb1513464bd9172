"""Files that exist only when they are complete: written aside, synced, renamed, with a checksum.

Arrays are stored as safetensors (a JSON header, then the raw arrays), which memory-maps. The header
has one metadata field, since several come in random order: JSON with what the arrays were computed
from and the SHA-256 of all else in the file.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np
import safetensors.numpy
from etils import epath

from cocu_jax.files import write_file

_CHUNK = 1 << 22
_LONGEST_HEADER = 100_000_000  # the format's own limit
_METADATA, _PROVENANCE = "__metadata__", "provenance"
_DTYPES = {
    "F16": np.float16,
    "F32": np.float32,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def write_arrays(
    path: epath.Path, arrays: Mapping[str, np.ndarray], identity: Mapping[str, str]
) -> None:
    """Writes arrays with a checksum; `identity` says what they were computed from."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = safetensors.numpy.save(arrays)
    header, start = _header(io.BytesIO(content))
    provenance = _provenance(identity, header, [memoryview(content)[start:]])
    write_file(path, safetensors.numpy.save(arrays, {_PROVENANCE: provenance}))


def is_complete(path: epath.Path, identity: Mapping[str, str]) -> bool:
    """Whether the file is there, was computed from `identity`, and its bytes are undamaged."""
    try:
        with path.open("rb") as file:
            header, _ = _header(file)
            metadata = header.pop(_METADATA)
            provenance = _provenance(identity, header, iter(lambda: file.read(_CHUNK), b""))
    except _UNREADABLE:
        return False
    return metadata == {_PROVENANCE: provenance}


def has_its_size(path: epath.Path, identity: Mapping[str, str]) -> bool:
    """Whether the file is there, was computed from `identity`, and is as long as its header says.

    That is all a process asks of another's files, which their owner verifies by `is_complete`.
    """
    try:
        with path.open("rb") as file:
            header, start = _header(file)
        made_from = json.loads(header.pop(_METADATA)[_PROVENANCE])
        end = start + max(entry["data_offsets"][1] for entry in header.values())
        del made_from["sha256"]
        return made_from == dict(identity) and path.stat().length == end
    except _UNREADABLE:
        return False


def open_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """A local file's arrays, memory-mapped, read-only; the mapping ends with the last of them."""
    content = np.memmap(path, np.uint8, mode="r")
    with open(path, "rb") as file:
        header, start = _header(file)
    header.pop(_METADATA)
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


def _header(file: BinaryIO) -> tuple[dict, int]:
    """What a safetensors file says of its arrays, and where these begin."""
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError("not a safetensors file")
    return json.loads(file.read(length)), 8 + length


def _provenance(identity: Mapping[str, str], header: Mapping, chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for chunk in chunks:
        digest.update(chunk)
    return json.dumps({**identity, "sha256": digest.hexdigest()}, sort_keys=True)
