"""Converts between models and the tensors of a checkpoint, by a table of names."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cocu_jax.errors import UserError
from cocu_jax.models.keys import Keys
from cocu_jax.models.weights.names import BUFFERS, Place, Table, find
from cocu_jax.models.weights.safetensors_file import StoredTensor

Shape = tuple[int, ...]
_FLOATS = ("float32", "bfloat16", "float16", "float64")


def model_from_tensors(
    build: Callable[[Keys], nnx.Module],
    place_of: Callable[[str], Place | None],
    tensors: Mapping[str, StoredTensor],
    given: Mapping[str, np.ndarray],
    source: str,
    adjust: Callable[[str, np.ndarray], np.ndarray] = lambda path, array: array,
) -> nnx.Module:
    """Builds a model from a checkpoint's tensors, one at a time, without initialising it first.

    Args:
        build: constructs the model; only its shapes are computed.
        place_of: maps one of our paths to its place in the checkpoint, or to None.
        tensors: the checkpoint.
        given: values of our paths that are not in the checkpoint.
        source: the checkpoint's name, for messages.
        adjust: applied to the value of each path.

    Raises:
        UserError: a tensor is missing, superfluous, or of another shape than the model's; or the
            model cannot be built.
    """
    try:
        graph, state = nnx.split(nnx.eval_shape(lambda: build(Keys(0))))
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{source}: its config describes no possible model ({reason})") from None
    variables = {_dotted(path): variable for path, variable in nnx.to_flat_state(state)}
    places = {path: place_of(path) for path in variables if path not in given}
    for path, place in places.items():
        _check(place, variables[path].shape, tensors, source)
    expected = {place.name for place in places.values()}
    extra = sorted(name for name in tensors.keys() - expected if not BUFFERS.fullmatch(name))
    if extra:
        raise UserError(
            f"{source}: tensor {extra[0]} does not belong to the model ({len(extra)} such "
            "tensors); its config describes another architecture"
        )
    for path, variable in variables.items():
        shape = variable.shape
        value = given[path] if path in given else _read(places[path], shape, tensors)
        value = adjust(path, value.astype(np.float32)).reshape(shape)
        variable.set_value(jnp.array(value))
    return nnx.merge(graph, state)


def _check(place: Place, shape: Shape, tensors: Mapping[str, StoredTensor], source: str) -> None:
    stored = tensors.get(place.name)
    if stored is None:
        raise UserError(f"{source}: tensor {place.name} is missing; the checkpoint is incomplete")
    expected = _their_shape(place, shape)
    if stored.shape != expected:
        raise UserError(
            f"{stored.file}: tensor {place.name} has shape {list(stored.shape)}, "
            f"the model needs {list(expected)}; its config describes another architecture"
        )
    if stored.dtype not in _FLOATS:
        raise UserError(
            f"{stored.file}: tensor {place.name} is {stored.dtype}; "
            f"supported are {', '.join(_FLOATS)}"
        )


def _their_shape(place: Place, shape: Shape) -> Shape:
    theirs = place.layout.their_shape(shape)
    return theirs if place.third is None else (3 * theirs[0], *theirs[1:])


def _read(place: Place, shape: Shape, tensors: Mapping[str, StoredTensor]) -> np.ndarray:
    theirs = tensors[place.name].read()
    if place.third is not None:
        theirs = np.split(theirs, 3)[place.third]
    return place.layout.to_ours(theirs, shape)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's arrays by dotted path, on this host, float32."""
    return {
        _dotted(path): np.asarray(variable.get_value(), np.float32)
        for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    }


def tensors_from_arrays(ours: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """A checkpoint's tensors by name, from our arrays by path.

    The counters of torch's batch normalisation are added, with value 0.
    """
    pieces: dict[str, list[np.ndarray]] = {}
    for path, array in ours.items():
        place = find(table, path)
        if place is None:
            continue
        pieces.setdefault(place.name, [array] * (1 if place.third is None else 3))
        pieces[place.name][place.third or 0] = place.layout.to_theirs(array)
    theirs = {
        name: np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts), order="C")
        for name, parts in pieces.items()
    }
    counters = (
        name.replace("running_mean", "num_batches_tracked")
        for name in theirs
        if name.endswith(".running_mean")
    )
    return theirs | {name: np.zeros((), np.int64) for name in counters}


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
