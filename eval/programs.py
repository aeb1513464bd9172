"""The two compiled programs of evaluation, and how they are distributed over devices.

`encode_program` runs the model on a block of windows. All blocks have the same shape, whatever the
sizes of the images, so it is compiled once. `decode_program` turns the outputs of the model into
label maps and confusion matrices, for one tile per device (see `eval.tiles`). It is compiled once
for landscape and once for portrait images. The results do not depend on how the work is batched.
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
from eval.tiles import TileLayout, TileShape


@functools.partial(jax.jit, static_argnames=("graphdef", "method", "mesh"))
def encode_program(
    state: nnx.State,
    embeddings: Any,
    windows: Array,
    *,
    graphdef: nnx.GraphDef,
    method: Any,
    mesh: Mesh,
) -> Any:
    """The outputs of the method for one block of windows per device."""

    def local(state: nnx.State, embeddings: Any, windows: Array) -> Any:
        return method.encode(nnx.merge(graphdef, state), embeddings, windows)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P("data"), check_vma=False
    )(state, embeddings, windows)


@functools.partial(jax.jit, static_argnames=("method", "shape", "num_classes", "mesh"))
def decode_program(
    embeddings: Any,
    outputs: Any,
    layout: TileLayout,
    truth: Array | None,
    canvas_truth: Array | None,
    *,
    method: Any,
    shape: TileShape,
    num_classes: int,
    mesh: Mesh,
) -> tuple[Int[Array, "d th tw"], Int[Array, "d k c c"] | None]:
    """Labels and confusion matrices of one tile per device.

    The first matrix counts the labels of the method. A method with `name_by_majority` has a second
    one, for the best possible names. Without `truth`, the matrices are None.
    """

    def local(embeddings: Any, *tiles: Any) -> tuple[Array, Array | None]:
        outputs, layout, truth, canvas_truth = jax.tree.map(lambda x: x[0], tiles)
        if truth is None:
            return method.decode(outputs, embeddings, layout, shape).astype(jnp.uint16)[None], None
        variants = [outputs]
        if hasattr(method, "name_by_majority"):
            variants.append(method.name_by_majority(outputs, layout, canvas_truth))

        def count(outputs: Any) -> tuple[Array, Array]:
            labels = method.decode(outputs, embeddings, layout, shape).astype(jnp.uint16)
            return labels, confusion_matrix(truth, labels, layout.size, num_classes)

        labels, matrices = jax.lax.map(count, jax.tree.map(lambda *x: jnp.stack(x), *variants))
        return labels[:1], matrices[None]

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data"), P("data")),
        out_specs=P("data"),
        check_vma=False,
    )(embeddings, outputs, layout, truth, canvas_truth)
