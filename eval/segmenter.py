"""A GroupViT bound to class names: batches of images in, confusion matrices or pictures out.

Three compiled programs hand arrays to each other on the devices: `_cut` (images -> windows),
`_read` (windows -> groups; the model) and `_count` (groups -> confusion matrices). Only the last
one's few numbers come back. The model's program sees windows of one shape only, so it is compiled
once per benchmark, whatever sizes the images have, and results do not depend on the batching.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cocu_jax.errors import UserError
from cocu_jax.models.tokenizer import Tokenizer
from eval.batches import Batch
from eval.class_embeddings import embed_classes
from eval.confusion import IGNORE, confusion_matrix, group_label_counts
from eval.groups import Groups, read_groups
from eval.painting import paint_groups, paint_labels
from eval.protocol import Protocol
from eval.resampling import resize_nearest
from eval.windows import cut_windows, window_corners, window_grid

_CPU_TOKENS, _ACCELERATOR_TOKENS = 1600, 16384  # patches of a forward that keep a device busy


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


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A model bound to class names and a protocol, on this process's devices.

    Processes do not wait for one another: each segments its own images, whatever their shapes.

    Attributes:
        graphdef: structure of the model.
        state: its arrays, on every device of `mesh`.
        embeddings: unit-norm embeddings of the classes, background not among them.
        protocol: the benchmark's settings.
        mesh: this process's devices, one axis, "data".
        num_classes: classes, background included.
        windows_per_forward: windows that each device encodes at once.
    """

    graphdef: nnx.GraphDef
    state: nnx.State
    embeddings: Float[Array, "f p"]
    protocol: Protocol
    mesh: Mesh
    num_classes: int
    windows_per_forward: int

    def rows(self, height: int, width: int, images_per_device: int = 0) -> int:
        """Rows of a batch of images of this padded shape.

        Args:
            height: padded height.
            width: padded width.
            images_per_device: how many each device takes; 0: as many as fill one forward.
        """
        windows = math.prod(window_grid(height, width, self.protocol))
        share = images_per_device or math.ceil(self.windows_per_forward / windows)
        return share * self.mesh.size

    def read(self, batch: Batch, with_first_maps: bool = False) -> tuple[Groups, ...]:
        """Groups of all windows of a batch, in blocks of `windows_per_forward` per device."""
        static = dict(mesh=self.mesh, protocol=self.protocol)
        images, sizes = self._put(batch.images), self._put(batch.sizes)
        blocks = _cut(images, sizes, block=self.windows_per_forward, **static)
        read = functools.partial(
            _read,
            self.state,
            self.embeddings,
            graphdef=self.graphdef,
            with_first_maps=with_first_maps,
            **static,
        )
        return tuple(read(block) for block in blocks)

    def count(self, batch: Batch, blocks: tuple[Groups, ...]) -> Int[Array, "2 c c"]:
        """Confusion matrices of one batch: the model's names, and the best names of its groups.

        Args:
            batch: the batch.
            blocks: what `read` returned for it.
        """
        sizes, originals, labels = map(self._put, (batch.sizes, batch.originals, batch.labels))
        return _count(
            blocks,
            sizes,
            originals,
            labels,
            shape=batch.images.shape[1:3],
            num_classes=self.num_classes,
            protocol=self.protocol,
            mesh=self.mesh,
        )

    def paint(self, batch: Batch, blocks: tuple[Groups, ...]) -> Painting:
        """Label map, and group maps if `read` was asked for them; arguments as in `count`."""
        return _paint(
            blocks,
            self._put(batch.sizes),
            self._put(batch.originals),
            shape=batch.images.shape[1:3],
            original_shape=batch.labels.shape[1:],
            protocol=self.protocol,
            mesh=self.mesh,
        )

    def _put(self, x: np.ndarray) -> Array:
        return jax.device_put(x, NamedSharding(self.mesh, P("data")))


def make_segmenter(
    model: nnx.Module,
    classes: tuple[str, ...],
    protocol: Protocol,
    tokenizer: Tokenizer,
    windows_per_forward: int = 0,
) -> Segmenter:
    """Binds a GroupViT to class names and a protocol.

    Args:
        model: a GroupViT; in a run of several processes its arrays may be global.
        classes: class names; with a background class, that one first.
        protocol: the benchmark's settings.
        tokenizer: the tokenizer.
        windows_per_forward: windows that each device encodes at once; 0 chooses by crop and device.

    Raises:
        UserError: the crop is no multiple of the model's patch size, or there are no classes.
    """
    patch = model.config.patch_size
    if protocol.crop % patch:
        raise UserError(f"crop={protocol.crop} is no multiple of the model's patch size {patch}")
    named = tuple(classes[1:] if protocol.has_background else classes)
    if not named:
        raise UserError("no class names to look for (background does not count); give at least one")
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    graphdef, state = nnx.split(model)
    state = _replicate(state, mesh)
    embeddings = embed_classes(nnx.merge(graphdef, state), named, protocol.templates, tokenizer)
    tokens = _CPU_TOKENS if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR_TOKENS
    return Segmenter(
        graphdef=graphdef,
        state=state,
        embeddings=jax.device_put(embeddings, NamedSharding(mesh, P())),
        protocol=protocol,
        mesh=mesh,
        num_classes=len(classes),
        windows_per_forward=windows_per_forward or max(1, tokens // (protocol.crop // patch) ** 2),
    )


def _replicate(state: nnx.State, mesh: Mesh) -> nnx.State:
    """A copy of the model's arrays on every local device, wherever they are sharded."""

    def local(x: Array) -> Array | np.ndarray:
        if x.is_fully_addressable:
            return x
        if x.is_fully_replicated:
            return x.addressable_data(0)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_put(jax.tree.map(local, state), NamedSharding(mesh, P()))


@functools.partial(jax.jit, static_argnames=("mesh", "protocol", "block"))
def _cut(images: Array, sizes: Array, *, mesh: Mesh, protocol: Protocol, block: int) -> list[Array]:
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
def _read(
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
def _count(
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
            return jnp.stack(
                [
                    confusion_matrix(
                        labels,
                        paint_labels(
                            groups.maps, table, size, original, shape, labels.shape, protocol
                        ),
                        num_classes,
                    )
                    for table in (groups.scores, named)
                ]
            )

        matrices = jax.lax.map(one_image, (groups, sizes, originals, labels))
        return jax.lax.psum(matrices.sum(0), "data")

    specs = P("data")
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(
        blocks, sizes, originals, labels
    )


@functools.partial(jax.jit, static_argnames=("shape", "original_shape", "protocol", "mesh"))
def _paint(
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
                paint_labels(groups.maps, groups.scores, *place),
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
