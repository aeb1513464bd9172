"""The compiled programs of evaluation, and how they share the work among devices.

`read_program` (windows -> what the method says of them; the model) sees blocks of windows of one
shape, whatever sizes the images have: it is compiled once. `paint_program` (-> label maps and
confusion matrices) sees one piece of a label map per device, see `eval.pieces`: it is compiled once
for landscape and once for portrait. Neither's results depend on how the work is batched.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from eval.confusion import confusion_matrix
from eval.pieces import PieceShape, Place


@functools.partial(jax.jit, static_argnames=("graphdef", "method", "mesh"))
def read_program(
    state: nnx.State, texts: Any, windows: Array, *, graphdef: nnx.GraphDef, method: Any, mesh: Mesh
) -> Any:
    """What the method says of one block of windows per device."""

    def local(state: nnx.State, texts: Any, windows: Array) -> Any:
        return method.read(nnx.merge(graphdef, state), texts, windows)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P("data"), check_vma=False
    )(state, texts, windows)


@functools.partial(jax.jit, static_argnames=("method", "shape", "num_classes", "mesh"))
def paint_program(
    texts: Any,
    said: Any,
    place: Place,
    truth: Array | None,
    canvas_truth: Array | None,
    *,
    method: Any,
    shape: PieceShape,
    num_classes: int,
    mesh: Mesh,
) -> tuple[Int[Array, "d th tw"], Int[Array, "d k c c"] | None]:
    """Labels and confusion matrices of one piece per device.

    The matrices are the method's own labels' and, of a method that can `rename`, those of the best
    names; None without `truth`.
    """

    def local(texts: Any, *pieces: Any) -> tuple[Array, Array | None]:
        said, place, truth, canvas_truth = jax.tree.map(lambda x: x[0], pieces)
        if truth is None:
            return method.paint(said, texts, place, shape).astype(jnp.uint16)[None], None
        kinds = [said]
        if hasattr(method, "rename"):
            kinds.append(method.rename(said, place, canvas_truth))

        def paint(said: Any) -> tuple[Array, Array]:
            labels = method.paint(said, texts, place, shape).astype(jnp.uint16)
            return labels, confusion_matrix(truth, labels, place.size, num_classes)

        labels, matrices = jax.lax.map(paint, jax.tree.map(lambda *x: jnp.stack(x), *kinds))
        return labels[:1], matrices[None]

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data"), P("data")),
        out_specs=P("data"),
        check_vma=False,
    )(texts, said, place, truth, canvas_truth)
