"""A GroupViT bound to class names, on this process's devices: images in, counts or maps out."""

import dataclasses
import functools
import math

import jax
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
from eval.groups import Groups
from eval.programs import Painting, count_program, cut_program, paint_program, read_program
from eval.protocol import Protocol
from eval.windows import window_grid

_CPU_TOKENS, _ACCELERATOR_TOKENS = 1600, 16384  # patches of a forward that keep a device busy


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
        blocks = cut_program(images, sizes, block=self.windows_per_forward, **static)
        read = functools.partial(
            read_program,
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
        return count_program(
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
        return paint_program(
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
    mesh = local_mesh()
    graphdef, state = nnx.split(model)
    state = replicate(state, mesh)
    embeddings = embed_classes(nnx.merge(graphdef, state), named, protocol.templates, tokenizer)
    tokens = _CPU_TOKENS if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR_TOKENS
    return Segmenter(
        graphdef=graphdef,
        state=state,
        embeddings=replicate(embeddings, mesh),
        protocol=protocol,
        mesh=mesh,
        num_classes=len(classes),
        windows_per_forward=windows_per_forward or max(1, tokens // (protocol.crop // patch) ** 2),
    )


def local_mesh() -> Mesh:
    """This process's devices along one axis, "data"."""
    return Mesh(np.array(jax.local_devices()), ("data",))


def replicate(arrays, mesh: Mesh):
    """A copy of a tree of arrays on every local device, wherever they are sharded now.

    All processes must call it if any array is sharded over processes.
    """

    def local(x: Array | np.ndarray) -> Array | np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if x.is_fully_replicated:
            return x.addressable_data(0)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_put(jax.tree.map(local, arrays), NamedSharding(mesh, P()))
