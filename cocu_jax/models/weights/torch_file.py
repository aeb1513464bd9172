"""Reads and writes torch's checkpoint files, zips of a pickle and raw buffers, without torch."""

import functools
import math
import os
import pathlib
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401, teaches NumPy the name "bfloat16"
import numpy as np

from cocu_jax.errors import UserError
from cocu_jax.models.weights.inert_pickle import ScriptModule, TensorRecord, read_pickle
from cocu_jax.models.weights.safetensors_file import StoredTensor

# Exceptions of zipfile and NumPy for damaged files.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
)


def open_torch(file: pathlib.Path) -> Any:
    """The content of a torch file, with `StoredTensor` for tensors; no code in it is executed.

    Every size in the file is checked against the size of the file before memory is allocated.

    Args:
        file: written by `torch.save` in the zip format (torch 1.6 and later), or by
            `torch.jit.save`.

    Returns:
        The pickled object; for a TorchScript archive, its tensors by dotted name and the plain
        values of the outermost module. Objects that are neither data nor tensors become `Inert`.

    Raises:
        UserError: the file is damaged, or it has the format of torch before 1.6 and torch, which is
            needed to read it, is not installed.
    """
    if not file.is_file():
        raise UserError(f"{file}: {'is a folder, not a' if file.exists() else 'no such'} file")
    if not zipfile.is_zipfile(file) and _is_bare_pickle(file):
        return _with_tensors(_load_with_torch(file), file)
    try:
        archive = zipfile.ZipFile(file)
        pickled = next((n for n in archive.namelist() if n.endswith("/data.pkl")), "no data.pkl")
        if archive.getinfo(pickled).file_size > file.stat().st_size:
            raise ValueError("data.pkl is larger than the file")
        content = read_pickle(archive.read(pickled))
        content = content.values() if isinstance(content, ScriptModule) else content
    except _DAMAGE as error:
        raise UserError(
            f"{file}: truncated or not a torch checkpoint ({error}); fetch it again"
        ) from None
    root = pickled.removesuffix("data.pkl")

    def stored(name: str, record: Any) -> Any:
        if not isinstance(record, TensorRecord):
            return record
        _check(archive, root, record, file, name)
        read = functools.partial(_read, archive, root, record, file, name)
        return StoredTensor(str(file), record.shape, record.storage.dtype, read)

    return _replaced(content, stored)


def tensors_in(
    content: Any, file: pathlib.Path, entry: str | None = None
) -> dict[str, StoredTensor]:
    """The tensors of an opened file, by name.

    Args:
        content: from `open_torch`.
        file: its name, for messages.
        entry: key of the dictionary of tensors in the content; None: the content itself.

    Raises:
        UserError: there is no such dictionary.
    """
    weights = content.get(entry) if entry and isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping):
        missing = f" under {entry!r}" if entry else ""
        raise UserError(f"{file}: contains no dictionary of tensors{missing}; is it a checkpoint?")
    return {name: value for name, value in weights.items() if isinstance(value, StoredTensor)}


def without_wrappers(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors without the prefixes `module.` and `_orig_mod.` of their names.

    They are added by distributed training and by `torch.compile`.
    """
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): x for name, x in tensors.items()}


def _replaced(content: Any, change: Callable[[str, Any], Any]) -> Any:
    """Applies `change` to the values of a dictionary and of the dictionaries in it."""
    if not isinstance(content, Mapping):
        return content
    return {
        key: {name: change(str(name), inner) for name, inner in value.items()}
        if isinstance(value, Mapping)
        else change(str(key), value)
        for key, value in content.items()
    }


def _check(
    archive: zipfile.ZipFile, root: str, record: TensorRecord, file: pathlib.Path, name: str
) -> None:
    """Checks that a tensor lies completely within a buffer of the file.

    Raises:
        UserError: it does not, or the buffer is missing or compressed.
    """
    try:
        entry = archive.getinfo(f"{root}data/{record.storage.key}")
        itemsize = np.dtype(record.storage.dtype).itemsize
    except _DAMAGE as error:
        raise UserError(
            f"{file}: tensor {name} is not readable ({error}); fetch it again"
        ) from None
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > file.stat().st_size:
        raise UserError(f"{file}: tensor {name} is compressed, unlike torch's; fetch it again")
    count = math.prod(record.shape)
    reach = sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
    elements = entry.file_size // itemsize
    sound = min(record.shape + record.strides + (record.offset,)) >= 0
    if count and not (sound and record.offset + reach < elements and count <= elements):
        raise UserError(f"{file}: tensor {name} exceeds its buffer; fetch the file again")


def _read(
    archive: zipfile.ZipFile, root: str, record: TensorRecord, file: pathlib.Path, name: str
) -> np.ndarray:
    """Reads a tensor that was checked; the archive's checksum is verified as well."""
    try:
        names = archive.namelist()
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        buffer = archive.read(f"{root}data/{record.storage.key}")
        elements = np.frombuffer(buffer, np.dtype(record.storage.dtype))
    except _DAMAGE as error:
        raise UserError(
            f"{file}: tensor {name} is not readable ({error}); fetch it again"
        ) from None
    if order == b"big":
        raise UserError(f"{file}: is big-endian; save it again on a little-endian machine")
    strides = tuple(stride * elements.itemsize for stride in record.strides)
    return np.lib.stride_tricks.as_strided(
        elements[record.offset :], record.shape, strides, writeable=False
    )


def _is_bare_pickle(file: pathlib.Path) -> bool:
    """Whether the file is in the format of torch before 1.6."""
    with open(file, "rb") as start:
        return start.read(2) == b"\x80\x02"


def _load_with_torch(file: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: has the format of torch before 1.6, which needs torch: pip install torch"
        ) from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises many types for damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: torch cannot read it safely ({reason}); fetch it again") from None


def _with_tensors(content: Any, file: pathlib.Path) -> Any:
    """The content with `StoredTensor` in place of torch's tensors."""

    def read(tensor) -> np.ndarray:
        return tensor.detach().float().numpy()

    def opened(_: str, value: Any) -> Any:
        if not hasattr(value, "detach"):
            return value
        dtype = str(value.dtype).removeprefix("torch.")
        return StoredTensor(str(file), tuple(value.shape), dtype, functools.partial(read, value))

    return _replaced(content, opened)


def write_torch(
    file: str | os.PathLike, tensors: Mapping[str, np.ndarray], entry: str, notes: Mapping[str, str]
) -> None:
    """Writes a file that `torch.load(file, weights_only=True)` reads.

    Args:
        file: name of the file.
        tensors: float32 and int64 arrays, by name.
        entry: key of the dictionary of tensors in the saved dictionary.
        notes: other entries of the saved dictionary.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            # ZipInfo without a date, so that equal models give identical files.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)

        add("data.pkl", _pickled(tensors, entry, notes))
        add("byteorder", b"little")
        for key, array in enumerate(tensors.values()):
            add(f"data/{key}", array.tobytes())
        add("version", b"3\n")


def _pickled(tensors: Mapping[str, np.ndarray], entry: str, notes: Mapping[str, str]) -> bytes:
    """{entry: {name: tensor}, **notes} as torch pickles it; see `pickletools.dis`."""
    out = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    out += [_text(entry), pickle.EMPTY_DICT, pickle.MARK]
    for key, (name, array) in enumerate(tensors.items()):
        storage = {"float32": "FloatStorage", "int64": "LongStorage"}[array.dtype.name]
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        out += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", pickle.MARK]
        out += [pickle.MARK, _text("storage"), f"ctorch\n{storage}\n".encode(), _text(str(key))]
        out += [_text("cpu"), _number(array.size), pickle.TUPLE, pickle.BINPERSID, _number(0)]
        out += [_numbers(array.shape), _numbers(strides), pickle.NEWFALSE]
        out += [b"ccollections\nOrderedDict\n", pickle.EMPTY_TUPLE, pickle.REDUCE]
        out += [pickle.TUPLE, pickle.REDUCE]
    out += [pickle.SETITEMS]
    for name, note in notes.items():
        out += [_text(name), _text(note)]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)


def _numbers(numbers) -> bytes:
    return pickle.MARK + b"".join(map(_number, numbers)) + pickle.TUPLE
