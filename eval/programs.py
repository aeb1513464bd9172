"""The compiled programs of evaluation, and how they share the work among devices.

Programs hand arrays to each other on the devices: `cut_program` (images -> windows), `read_program`
(windows -> groups; the model), then `count_program` (groups -> confusion matrices, a few numbers,
the only thing that comes back) or `paint_program` (groups -> maps, for pictures). The model's
program sees windows of one shape only: it is compiled once per benchmark, whatever sizes the images
have, and its results do not depend on the batching. Every device works on its own images.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from eval.confusion import IGNORE, confusion_matrix, group_label_counts
from eval.groups import Groups, read_groups
from eval.painting import paint_groups, paint_labels
from eval.protocol import Protocol
from eval.resampling import resize_nearest
from eval.windows import cut_windows, window_corners, window_grid


class Painting(NamedTuple):
    """Padded maps of a batch at its original sizes.

    Attributes:
        labels: class of every pixel.
        groups: group of every pixel, and of which window, see `painting.paint_groups`.
        first_groups: the same after the first grouping stage; None unless asked for.
    """

    labels: Int[Array, "b oh ow"]
    groups: Int[Array, "b oh ow"]
    first_groups: Int[Array, "b oh ow"] | None


@functools.partial(jax.jit, static_argnames=("mesh", "protocol", "block"))
def cut_program(
    images: Array, sizes: Array, *, mesh: Mesh, protocol: Protocol, block: int
) -> list[Array]:
    """All windows of a batch, in blocks of one shape; the last one is filled up with zeros."""

    def local(images: Array, sizes: Array) -> list[Array]:
        cut = functools.partial(cut_windows, protocol=protocol)
        windows = jax.vmap(cut)(images, sizes)
        windows = windows.reshape(-1, *windows.shape[2:])
        windows = jnp.pad(windows, ((0, -len(windows) % block), *((0, 0),) * 3))
        return jnp.split(windows, len(windows) // block)

    specs = P("data")
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)(
        images, sizes
    )


@functools.partial(jax.jit, static_argnames=("graphdef", "protocol", "mesh", "with_first_maps"))
def read_program(
    state: nnx.State,
    embeddings: Array,
    windows: Array,
    *,
    graphdef: nnx.GraphDef,
    protocol: Protocol,
    mesh: Mesh,
    with_first_maps: bool,
) -> Groups:
    """Groups of one block of windows per device."""

    def local(state: nnx.State, embeddings: Array, windows: Array) -> Groups:
        model = nnx.merge(graphdef, state)
        return read_groups(model, windows, embeddings, protocol, with_first_maps)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P("data"), check_vma=False
    )(state, embeddings, windows)


@functools.partial(jax.jit, static_argnames=("shape", "num_classes", "protocol", "mesh"))
def count_program(
    blocks: tuple[Groups, ...],
    sizes: Array,
    originals: Array,
    labels: Array,
    *,
    shape: tuple[int, int],
    num_classes: int,
    protocol: Protocol,
    mesh: Mesh,
) -> Int[Array, "2 c c"]:
    """Confusion matrices of one batch, summed over the devices."""

    def local(blocks: tuple[Groups, ...], sizes: Array, originals: Array, labels: Array) -> Array:
        groups = _by_image(blocks, len(sizes), shape, protocol)

        def one_image(arrays):
            groups, size, original, labels = arrays
            named = _best_names(groups, size, original, shape, labels, protocol)

            def count(scores: Array) -> Array:
                place = size, original, shape, labels.shape, protocol
                painted, _ = paint_labels(groups.maps, scores, *place)
                return confusion_matrix(labels, painted, num_classes)

            return jax.lax.map(count, jnp.stack([groups.scores, named]))

        matrices = jax.lax.map(one_image, (groups, sizes, originals, labels))
        return jax.lax.psum(matrices.sum(0), "data")

    specs = P("data")
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(
        blocks, sizes, originals, labels
    )


@functools.partial(jax.jit, static_argnames=("shape", "original_shape", "protocol", "mesh"))
def paint_program(
    blocks: tuple[Groups, ...],
    sizes: Array,
    originals: Array,
    *,
    shape: tuple[int, int],
    original_shape: tuple[int, int],
    protocol: Protocol,
    mesh: Mesh,
) -> Painting:
    """Maps of one batch, for pictures."""

    def local(blocks: tuple[Groups, ...], sizes: Array, originals: Array) -> Painting:
        def one_image(arrays):
            groups, size, original = arrays
            place = size, original, shape, original_shape, protocol
            number = groups.scores.shape[1]
            first = groups.first_maps
            return Painting(
                paint_labels(groups.maps, groups.scores, *place)[0],
                paint_groups(groups.maps, number, *place),
                None if first is None else paint_groups(first, 256, *place),
            )

        groups = _by_image(blocks, len(sizes), shape, protocol)
        return jax.lax.map(one_image, (groups, sizes, originals))

    specs = P("data")
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)(
        blocks, sizes, originals
    )


def _by_image(
    blocks: tuple[Groups, ...], images: int, shape: tuple[int, int], protocol: Protocol
) -> Groups:
    """Blocks of windows -> arrays with axes image, window, ...; what filled the last block goes."""
    count = math.prod(window_grid(*shape, protocol))

    def join(*parts: Array) -> Array:
        windows = jnp.concatenate(parts)[: images * count]
        return windows.reshape(images, count, *windows.shape[1:])

    return jax.tree.map(join, *blocks)


def _best_names(
    groups: Groups,
    size: Int[Array, "2"],
    original: Int[Array, "2"],
    shape: tuple[int, int],
    labels: Int[Array, "oh ow"],
    protocol: Protocol,
) -> Float[Array, "n g c"]:
    """Scores that call every group of every window by the class that holds most of its pixels."""
    _, number, classes = groups.scores.shape
    labels = resize_nearest(labels, original, size, shape)
    inside = (jnp.arange(shape[0]) < size[0])[:, None] & (jnp.arange(shape[1]) < size[1])
    labels = jnp.where(inside, labels, IGNORE)

    def name(window: Array, corner: Array) -> Array:
        within = jax.lax.dynamic_slice(labels, corner, window.shape)
        return group_label_counts(within, window, number, classes).argmax(-1)

    names = jax.vmap(name)(groups.maps, window_corners(size, *shape, protocol))
    return jax.nn.one_hot(names, classes)
