"""Tensors of checkpoint files, and the reader of safetensors files, single or sharded."""

import functools
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, safe_open

from cocu_jax.errors import UserError

# Types by their name in the header; others (8-bit floats, packed types) are not supported.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint file; its values are read only on request.

    Attributes:
        file: the file that contains it, for messages.
        shape: its shape.
        dtype: name of its type, e.g. `"float32"` or `"bfloat16"`.
        read: reads the values; raises `UserError` if the file is damaged.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def open_safetensors(file: pathlib.Path) -> dict[str, StoredTensor]:
    """Names and shapes of the tensors in one file.

    Raises:
        UserError: it is not a safetensors file, or part of it is missing.
    """
    try:
        reader = safe_open(file, framework="numpy")
        views = {name: reader.get_slice(name) for name in reader.keys()}
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from None
    return {
        name: StoredTensor(
            str(file),
            tuple(view.get_shape()),
            _DTYPES.get(view.get_dtype(), view.get_dtype()),
            functools.partial(_read, reader, name, file),
        )
        for name, view in views.items()
    }


def open_index(index: pathlib.Path, open_shard=open_safetensors) -> dict[str, StoredTensor]:
    """Names and shapes of the tensors in the shards that an index file lists.

    Args:
        index: a `*.index.json`, in the folder of its shards.
        open_shard: the function that reads one shard.

    Raises:
        UserError: the index or a shard is damaged or missing, or they contradict each other.
    """
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        files = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not a readable index of shards; fetch it again") from None
    tensors = {}
    for name in files:
        shard = index.parent / name
        if not shard.is_file():
            raise UserError(f"{shard}: missing, though {index.name} lists it; fetch it again")
        tensors |= open_shard(shard)
    if wrong := tensors.keys() ^ shard_of.keys():
        raise UserError(
            f"{index}: does not list the same tensors as its shards contain, e.g. {min(wrong)}"
        )
    return tensors


def _read(reader, name: str, file: pathlib.Path) -> np.ndarray:
    try:
        return reader.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from None


def _damaged(file: pathlib.Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(f"{file}: truncated or not a safetensors file ({reason}); fetch it again")
