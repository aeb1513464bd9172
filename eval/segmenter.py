"""A model bound to class names, on the devices of this process: images in, label maps out.

Three parts work together here, and each can be replaced without the others:

* A *method* encodes windows and decodes the outputs to labels: GroupViT's groups
  (`eval.groups.GroupMethod`), or dense CLIP (`eval.dense.DenseMethod`). It is a frozen dataclass,
  because it is a static argument of the compiled programs (equal settings share a program), with
  these functions:

  - `embed(model, classes, tokenizer) -> embeddings`: called once, on the host. Returns any tree of
    arrays.
  - `encode(model, embeddings, windows uint8 [n, h, w, 3]) -> outputs`: runs in a compiled program.
    Returns a tree of arrays whose first axis is the window. The outputs are copied to the host, so
    they should be small: values per patch, not per pixel. The last two axes of an array of four
    axes are the rows and columns of patches.
  - `decode(outputs, embeddings, layout, shape) -> labels [tile height, tile width]`: runs in a
    compiled program and computes the labels of one tile of an image. `outputs` has
    `shape.windows` windows, of which the first `layout.windows` are valid; the patches of a whole
    image are padded to `shape.grid`. `eval.decoding` has the building blocks: `sum_windows` adds
    up the scores of a few classes on a canvas, and `scan_pixels` resizes the canvas and updates a
    running result.
  - `name_by_majority(outputs, layout, canvas_truth) -> outputs`: optional. Returns the outputs with
    the best possible class for everything that the method found, to measure an upper bound.
* A *protocol* (`eval.protocol.Protocol`) has the sizes, thresholds and prompts.
* `Segmenter` manages the devices and two queues: the windows of all images, and their tiles.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP
from cocu_jax.models.tokenizer import Tokenizer
from eval.dense import DenseMethod
from eval.groups import GroupMethod
from eval.images import EvaluatedImage
from eval.programs import decode_program, encode_program
from eval.protocol import Protocol
from eval.tiles import Tile, TileShape, cut_tiles, empty_tile, tile_shape
from eval.window_queue import WindowBlock, queue_windows

_CPU_TOKENS, _ACCELERATOR_TOKENS = 1600, 16384  # patches per forward pass that keep a device busy
_IN_FLIGHT = 2  # blocks that may be computed on the devices while the host prepares the next one


class EncodedImage(NamedTuple):
    """An image and the outputs of the method for its windows, on the host."""

    image: EvaluatedImage
    outputs: Any


class DecodedTiles(NamedTuple):
    """The labels of some tiles.

    Attributes:
        tiles: the tiles, at most one per device, each with its encoded image.
        labels: class of every pixel, padded; on the devices.
        matrices: confusion matrices of each tile, see `programs.decode_program`; on the devices.
            None for images without masks.
    """

    tiles: tuple[tuple[Tile, EncodedImage], ...]
    labels: Int[Array, "d th tw"]
    matrices: Int[Array, "d k c c"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A model bound to class names, a method and a protocol, on the devices of this process.

    Processes do not wait for one another: each segments its own images, whatever their shapes.

    Attributes:
        graphdef: structure of the model.
        state: arrays of the model, on every device of `mesh`.
        embeddings: the method's embeddings of the class names, on every device.
        method: see the docstring of the module.
        protocol: settings of the benchmark.
        mesh: devices of this process, with one axis, "data".
        num_classes: number of classes, including background.
        windows_per_forward: windows that each device encodes at once.
        patch: side of the model's patches in pixels.
        tile_size: short and long side of the largest tile of a label map; None for the default.
    """

    graphdef: nnx.GraphDef
    state: nnx.State
    embeddings: Any
    method: Any
    protocol: Protocol
    mesh: Mesh
    num_classes: int
    windows_per_forward: int
    patch: int
    tile_size: tuple[int, int] | None = None

    def encode(self, images: Iterable[EvaluatedImage]) -> Iterator[EncodedImage]:
        """Encodes the windows of all images, and returns the images in the order given.

        With `mode="whole"`, only images whose patch grids have the same shape keep their order.
        """
        waiting, incomplete = collections.deque(), []
        block_size = self.windows_per_forward * self.mesh.size
        for block in queue_windows(images, self.protocol, block_size, self.patch):
            waiting.append((block, self.encode_block(block)))
            if len(waiting) > _IN_FLIGHT:
                yield from _split_images(*waiting.popleft(), incomplete)
        while waiting:
            yield from _split_images(*waiting.popleft(), incomplete)

    def encode_block(self, block: WindowBlock) -> Any:
        """The outputs of the method for a block of windows; on the devices."""
        return encode_program(
            self.state,
            self.embeddings,
            self._put(block.windows),
            graphdef=self.graphdef,
            method=self.method,
            mesh=self.mesh,
        )

    def decode(self, encoded_images: Iterable[EncodedImage]) -> Iterator[DecodedTiles]:
        """Computes label maps, tile by tile; the tiles of an image follow one another in order.

        Landscape and portrait images are batched separately.
        """
        queues = {portrait: [] for portrait in (False, True)}
        shapes = {portrait: self.shape(portrait) for portrait in queues}
        for encoded in encoded_images:
            height, width = encoded.image.image.shape[:2]
            portrait = height > width
            queue, shape = queues[portrait], shapes[portrait]
            for tile in cut_tiles(encoded.image, self.protocol, shape):
                queue.append((tile, encoded))
                if len(queue) == self.mesh.size:
                    yield self.decode_tiles(tuple(queue), shape)
                    queue.clear()
        for portrait, queue in queues.items():
            if queue:
                yield self.decode_tiles(tuple(queue), shapes[portrait])

    def shape(self, portrait: bool) -> TileShape:
        """The array shapes of the program that decodes images of this orientation."""
        return tile_shape(self.protocol, portrait, self.tile_size, self.patch)

    def decode_tiles(
        self, tiles: tuple[tuple[Tile, EncodedImage], ...], shape: TileShape
    ) -> DecodedTiles:
        """Decodes one tile per device; devices without a tile get an empty one."""
        missing = self.mesh.size - len(tiles)
        padding = [(empty_tile(tiles[0][0]), tiles[0][1])] * missing
        members = [
            (
                jax.tree.map(lambda x, w=tile.windows: _select(x, w, shape), encoded.outputs),
                tile.layout,
                tile.truth,
                tile.canvas_truth,
            )
            for tile, encoded in (*tiles, *padding)
        ]
        arguments = self._put(jax.tree.map(lambda *x: np.stack(x), *members))
        labels, matrices = decode_program(
            self.embeddings,
            *arguments,
            method=self.method,
            shape=shape,
            num_classes=0 if tiles[0][0].truth is None else self.num_classes,
            mesh=self.mesh,
        )
        return DecodedTiles(tiles, labels, matrices)

    def _put(self, x: Any) -> Any:
        return jax.device_put(x, NamedSharding(self.mesh, P("data")))


def make_segmenter(
    model: nnx.Module,
    classes: tuple[str, ...],
    protocol: Protocol,
    tokenizer: Tokenizer,
    windows_per_forward: int = 0,
    method: Any = None,
) -> Segmenter:
    """Binds a model to class names, a protocol and a method.

    Args:
        model: the model; its arrays may be sharded over several processes.
        classes: class names; a background class comes first.
        protocol: settings of the benchmark.
        tokenizer: the tokenizer.
        windows_per_forward: windows that each device encodes at once; 0: depends on crop and
            device.
        method: see the docstring of the module; None: `choose_method`.

    Raises:
        UserError: the crop is not a multiple of the model's patch size, or there are no classes.
    """
    patch = model.config.patch_size
    if protocol.mode == "slide" and protocol.crop % patch:
        raise UserError(f"crop={protocol.crop} is not a multiple of the model's patch size {patch}")
    if len(classes) <= protocol.has_background:
        raise UserError("there are no class names (background does not count); give at least one")
    method = method or choose_method(model, protocol)
    mesh = local_mesh()
    graphdef, state = nnx.split(model)
    state = replicate(state, mesh)
    embeddings = method.embed(nnx.merge(graphdef, state), tuple(classes), tokenizer)
    platform = mesh.devices.flat[0].platform
    forward = windows_per_forward or windows_per_device(platform, protocol.crop, patch, mesh.size)
    if protocol.mode == "whole":
        forward = 1  # the last block of every shape is padded, and there are many shapes
    return Segmenter(
        graphdef=graphdef,
        state=state,
        embeddings=replicate(embeddings, mesh),
        method=method,
        protocol=protocol,
        mesh=mesh,
        num_classes=len(classes),
        windows_per_forward=forward,
        patch=patch,
    )


def windows_per_device(platform: str, crop: int, patch: int, devices: int) -> int:
    """Number of windows that keep a device busy; the devices of a CPU share its cores."""
    tokens = _CPU_TOKENS // devices if platform == "cpu" else _ACCELERATOR_TOKENS
    return max(1, tokens // (crop // patch) ** 2)


def choose_method(model: nnx.Module, protocol: Protocol) -> Any:
    """`GroupMethod` for a GroupViT, `DenseMethod` for a CLIP."""
    return DenseMethod(protocol) if isinstance(model, CLIP) else GroupMethod(protocol)


def local_mesh() -> Mesh:
    """Mesh of the devices of this process, with one axis, "data"."""
    return Mesh(np.array(jax.local_devices()), ("data",))


def replicate(arrays, mesh: Mesh):
    """Copies a tree of arrays to every local device, whatever their current sharding.

    Forced host devices share one copy, because JAX does not copy NumPy's memory there. All
    processes must call this function if any array is sharded over processes.
    """

    def local(x: Array | np.ndarray) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return multihost_utils.process_allgather(x, tiled=True)
        if isinstance(x, jax.Array) and x.is_fully_replicated:
            x = x.addressable_data(0)
        return np.asarray(x)

    return jax.device_put(jax.tree.map(local, arrays), NamedSharding(mesh, P()))


def _split_images(block: WindowBlock, outputs: Any, incomplete: list) -> Iterator[EncodedImage]:
    """Splits the outputs of a block into those of its images.

    Args:
        block: the windows; an image may continue in the next block.
        outputs: the outputs of its windows.
        incomplete: outputs of an image that continues from the block before; updated in place.
    """
    outputs = jax.tree.map(lambda x: np.asarray(x)[: block.filled], outputs)
    for image, count in block.images:
        before = sum(len(jax.tree.leaves(part)[0]) for part in incomplete)
        own = jax.tree.map(lambda x, n=count - before: x[:n], outputs)
        outputs = jax.tree.map(lambda x, n=count - before: x[n:], outputs)
        yield EncodedImage(image, jax.tree.map(lambda *x: np.concatenate(x), *incomplete, own))
        incomplete.clear()
    if len(jax.tree.leaves(outputs)[0]):
        incomplete.append(outputs)


def _select(x: np.ndarray, windows: np.ndarray, shape: TileShape) -> np.ndarray:
    """The values of some windows, padded with zeros."""
    padded = shape.patch and x.ndim == 4
    inner = (x.shape[1], *shape.grid) if padded else x.shape[1:]
    selected = np.zeros((shape.windows, *inner), x.dtype)
    selected[(slice(len(windows)), *map(slice, x.shape[1:]))] = x[windows]
    return selected
