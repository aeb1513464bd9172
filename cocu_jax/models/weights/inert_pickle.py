"""Reads the content of a torch pickle without executing anything in it.

A pickle contains names of functions and classes, and instructions to call them. Here every name is
replaced by a stand-in: the few names that describe tensors give plain records, and all others
(optimisers, configs and other objects) give `Inert`, which ignores every operation. Nothing is
imported, and no code from the file is called.
"""

import collections
import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


_DEEPEST = 20  # modules within modules


class Inert:
    """Stand-in for an object of any class; it accepts all operations and ignores them."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        """Ignores one item of a list-like object."""

    def extend(self, items):
        """Ignores the items of a list-like object."""

    def add(self, item):
        """Ignores one item of a set-like object."""


@dataclass(frozen=True)
class StorageRecord:
    """A buffer that tensors are views of: its key in the archive, type and number of elements."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as described by the pickle: a strided view of a storage; units are elements."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class ScriptModule:
    """A module of a TorchScript archive: its attributes without its code.

    Attributes:
        attributes: by name; tensors, inner modules and plain values.
    """

    attributes: Mapping[str, Any] = MappingProxyType({})  # unpickling calls no constructor

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise ValueError("a module whose state is no dictionary")
        self.attributes = state

    def values(self) -> dict[str, Any]:
        """All tensors by dotted name, and the module's own plain values.

        Raises:
            ValueError: modules are nested too deep; they may contain themselves.
        """
        plain = (int, float, str, bool)
        own = {name: value for name, value in self.attributes.items() if isinstance(value, plain)}
        return own | dict(_tensors(self, "", 0))


def _tensors(module: ScriptModule, prefix: str, depth: int) -> Iterator[tuple[str, TensorRecord]]:
    if depth > _DEEPEST:
        raise ValueError("modules are nested too deep")
    for name, value in module.attributes.items():
        if isinstance(value, TensorRecord):
            yield f"{prefix}{name}", value
        elif isinstance(value, ScriptModule):
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)


def read_pickle(data: bytes) -> Any:
    """The pickled object, with `TensorRecord` for tensors and `Inert` for other non-plain objects.

    Modules of TorchScript become `ScriptModule`.

    Raises:
        ValueError: the bytes are not a pickle, or describe tensors in an unknown form.
    """
    try:
        _check_sizes(data)
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _check_sizes(data: bytes) -> None:
    """Rejects instructions that would allocate memory of a size given in the file."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "BYTEARRAY8":
            raise ValueError("a pickled byte array")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
            raise ValueError(f"memo {argument} in a pickle of {len(data)} bytes")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module.split(".")[0] == "__torch__":
            return ScriptModule
        stand_ins = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        return stand_ins.get((module, name), Inert)

    def persistent_load(self, pid: Any) -> StorageRecord:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not (isinstance(key, str) and isinstance(size, int)):
            raise ValueError(f"unknown reference {pid!r}")
        return StorageRecord(key, dtype if isinstance(dtype, str) else "unknown", size)


def _tensor(storage, offset, shape, strides, *_) -> TensorRecord:
    if not isinstance(storage, StorageRecord):
        raise ValueError("a tensor without storage")
    return TensorRecord(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(tensor, *_) -> TensorRecord:
    return tensor
