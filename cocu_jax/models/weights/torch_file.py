"""torch's checkpoint files, a zip of one pickle and raw buffers, in and out without torch."""

import functools
import math
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401, teaches NumPy the name "bfloat16"
import numpy as np

from cocu_jax.errors import UserError
from cocu_jax.models.weights.inert_pickle import TensorRecord, read_pickle
from cocu_jax.models.weights.stored import StoredTensor

# What zipfile and NumPy raise over bytes that are not what they should be.
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


def open_torch(file: pathlib.Path, entry: str | None = None) -> tuple[dict[str, StoredTensor], Any]:
    """Names and shapes of the tensors in a `.pth` or `.bin`; nothing it contains is executed.

    Args:
        file: written by `torch.save`, in the zip format (torch 1.6 and later).
        entry: key of the dictionary of tensors inside the pickled one; None: the outermost.

    Returns:
        The tensors, and the pickled object they were in, inert.

    Raises:
        UserError: the file is damaged or has no such dictionary, or is in the format of torch
            before 1.6 while torch is not installed to read it.
    """
    if not zipfile.is_zipfile(file) and _is_bare_pickle(file):
        content = _load_with_torch(file)
        return _loaded(_entry(content, entry, file), file), content
    try:
        archive = zipfile.ZipFile(file)
        pickled = next((n for n in archive.namelist() if n.endswith("/data.pkl")), "no data.pkl")
        content = read_pickle(archive.read(pickled))
    except _DAMAGE as error:
        raise UserError(
            f"{file}: truncated or no torch checkpoint ({error}); fetch it again"
        ) from None
    root = pickled.removesuffix("data.pkl")
    tensors = {
        name: StoredTensor(
            str(file),
            record.shape,
            record.storage.dtype,
            functools.partial(_read, archive, root, record, file, name),
        )
        for name, record in _entry(content, entry, file).items()
        if isinstance(record, TensorRecord)
    }
    return tensors, content


def _read(
    archive: zipfile.ZipFile, root: str, record: TensorRecord, file: pathlib.Path, name: str
) -> np.ndarray:
    """Copies one tensor out of the archive, whose checksum covers it."""
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
        raise UserError(f"{file}: written by a big-endian machine; save it again on a common one")
    reach = sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
    if math.prod(record.shape) and not (
        record.offset >= 0
        and min(record.shape + record.strides + (0,)) >= 0
        and record.offset + reach < elements.size
    ):
        raise UserError(f"{file}: tensor {name} reaches past its buffer; fetch the file again")
    strides = tuple(stride * elements.itemsize for stride in record.strides)
    return np.lib.stride_tricks.as_strided(
        elements[record.offset :], record.shape, strides, writeable=False
    )


def _entry(content: Any, entry: str | None, file: pathlib.Path) -> Mapping:
    weights = content.get(entry) if entry and isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping):
        missing = f" under {entry!r}" if entry else ""
        raise UserError(f"{file}: holds no dictionary of tensors{missing}; is it a checkpoint?")
    return weights


def _is_bare_pickle(file: pathlib.Path) -> bool:
    """Whether the file starts as torch's did before 1.6."""
    with open(file, "rb") as start:
        return start.read(2) == b"\x80\x02"


def _load_with_torch(file: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: in the format of torch before 1.6, which only torch reads: pip install torch"
        ) from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's own unpickler makes of a damaged file
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: torch cannot read it safely ({reason}); fetch it again") from None


def _loaded(weights: Mapping, file: pathlib.Path) -> dict[str, StoredTensor]:
    """The torch tensors of a dictionary."""

    def read(tensor) -> np.ndarray:
        return tensor.detach().float().numpy()

    return {
        name: StoredTensor(
            str(file),
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            functools.partial(read, tensor),
        )
        for name, tensor in weights.items()
        if hasattr(tensor, "detach")
    }


def write_torch(
    file: str | os.PathLike, tensors: Mapping[str, np.ndarray], entry: str, notes: Mapping[str, str]
) -> None:
    """Writes a file that `torch.load(file, weights_only=True)` reads.

    Args:
        file: where to.
        tensors: float32 and int64 arrays, by name; stored under `entry`.
        entry: key of the tensors in the saved dictionary.
        notes: further entries of that dictionary.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            # Without a date, so that equal models are equal files.
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
