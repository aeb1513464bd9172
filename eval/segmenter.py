"""A model bound to class names, on this process's devices: images in, label maps or counts out.

Three things meet here, and each can be exchanged without the others:

* A *method* turns windows into scores, and scores into labels: GroupViT's groups
  (`eval.groups.GroupMethod`), or another way to read a model. It is a frozen dataclass (a static
  argument of the compiled programs: equal settings share a program) with these functions:

  - `embed(model, classes, tokenizer) -> texts`, on the host, once: any tree of arrays.
  - `read(model, texts, windows uint8 [n, h, w, 3]) -> said`, in a program: a tree of arrays whose
    first axis is the window. It comes back to the host, so it should be small: values of patches,
    not of pixels. Those of four axes end with the rows and columns of patches.
  - `paint(said, texts, place, shape) -> labels [tile height, tile width]`, in a program: labels of
    one piece of an image. `said` holds `shape.windows` windows, of which the first `place.windows`
    count; the patches of a whole image are padded to `shape.grid`. This is the *painter*;
    `eval.painting` has its parts: `sum_windows` lays the scores of a few classes on a canvas,
    `visit_pixels` resizes it and updates a running result.
  - `rename(said, place, canvas_truth) -> said`, only if there is a bound to measure: the same
    scores, had the method named what it found as well as possible.
* A *protocol* (`eval.protocol.Protocol`) gives sizes, thresholds and prompts.
* `Segmenter` owns devices and queues: windows of all images in one queue, pieces in another.
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
from eval.pieces import Piece, PieceShape, cut_pieces, empty_piece, piece_shape
from eval.programs import paint_program, read_program
from eval.protocol import Protocol
from eval.window_queue import WindowBlock, queue_windows

_CPU_TOKENS, _ACCELERATOR_TOKENS = 1600, 16384  # patches of a forward that keep a device busy
_AHEAD = 2  # blocks or batches whose results the host does not wait for yet


class Reading(NamedTuple):
    """An image and what the method says of its windows, on the host."""

    image: EvaluatedImage
    said: Any


class Painted(NamedTuple):
    """Some pieces, painted.

    Attributes:
        pieces: the pieces, at most one per device, with the readings they are of.
        labels: class of every pixel, padded; on the devices.
        matrices: confusion matrices of each, see `programs.paint_program`; on the devices. None for
            images without masks.
    """

    pieces: tuple[tuple[Piece, Reading], ...]
    labels: Int[Array, "d th tw"]
    matrices: Int[Array, "d k c c"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A model bound to class names, a method and a protocol, on this process's devices.

    Processes do not wait for one another: each segments its own images, whatever their shapes.

    Attributes:
        graphdef: structure of the model.
        state: its arrays, on every device of `mesh`.
        texts: what the method made of the class names, on every device.
        method: see the module.
        protocol: the benchmark's settings.
        mesh: this process's devices, one axis, "data".
        num_classes: classes, background included.
        windows_per_forward: windows that each device encodes at once.
        patch: side of the model's patches.
        tile: short and long side of the largest piece of a label map; None takes the default.
    """

    graphdef: nnx.GraphDef
    state: nnx.State
    texts: Any
    method: Any
    protocol: Protocol
    mesh: Mesh
    num_classes: int
    windows_per_forward: int
    patch: int
    tile: tuple[int, int] | None = None

    def read(self, images: Iterable[EvaluatedImage]) -> Iterator[Reading]:
        """What the method says of each image's windows, in the images' order.

        Whole images come in their order among those of one shape.
        """
        waiting, carried = collections.deque(), []
        rows = self.windows_per_forward * self.mesh.size
        for block in queue_windows(images, self.protocol, rows, self.patch):
            waiting.append((block, self.read_block(block)))
            if len(waiting) > _AHEAD:  # the host cuts the next windows while the devices work
                yield from _by_image(*waiting.popleft(), carried)
        while waiting:
            yield from _by_image(*waiting.popleft(), carried)

    def read_block(self, block: WindowBlock) -> Any:
        """What the method says of a block of windows; on the devices."""
        return read_program(
            self.state,
            self.texts,
            self._put(block.windows),
            graphdef=self.graphdef,
            method=self.method,
            mesh=self.mesh,
        )

    def paint(self, readings: Iterable[Reading]) -> Iterator[Painted]:
        """Label maps, piece by piece; the pieces of an image come in order, with none between.

        Landscape and portrait images wait for their own batches.
        """
        queues = {portrait: [] for portrait in (False, True)}
        shapes = {portrait: self.shape(portrait) for portrait in queues}
        for reading in readings:
            height, width = reading.image.image.shape[:2]
            portrait = height > width
            queue, shape = queues[portrait], shapes[portrait]
            for piece in cut_pieces(reading.image, self.protocol, shape):
                queue.append((piece, reading))
                if len(queue) == self.mesh.size:
                    yield self.paint_pieces(tuple(queue), shape)
                    queue.clear()
        for portrait, queue in queues.items():
            if queue:
                yield self.paint_pieces(tuple(queue), shapes[portrait])

    def shape(self, portrait: bool) -> PieceShape:
        """The shapes of the program that paints images of this orientation."""
        return piece_shape(self.protocol, portrait, self.tile, self.patch)

    def paint_pieces(self, pieces: tuple[tuple[Piece, Reading], ...], shape: PieceShape) -> Painted:
        """Paints one piece per device; devices without one paint nothing."""
        missing = self.mesh.size - len(pieces)
        filler = [(empty_piece(pieces[0][0]), pieces[0][1])] * missing
        members = [
            (
                jax.tree.map(lambda x, w=piece.windows: _choose(x, w, shape), reading.said),
                piece.place,
                piece.truth,
                piece.canvas_truth,
            )
            for piece, reading in (*pieces, *filler)
        ]
        arguments = self._put(jax.tree.map(lambda *x: np.stack(x), *members))
        labels, matrices = paint_program(
            self.texts,
            *arguments,
            method=self.method,
            shape=shape,
            num_classes=0 if pieces[0][0].truth is None else self.num_classes,
            mesh=self.mesh,
        )
        return Painted(pieces, labels, matrices)

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
        model: the model; in a run of several processes its arrays may be global.
        classes: class names; with a background class, that one first.
        protocol: the benchmark's settings.
        tokenizer: the tokenizer.
        windows_per_forward: windows that each device encodes at once; 0 chooses by crop and device.
        method: see the module; None takes that of `choose_method`.

    Raises:
        UserError: the crop is no multiple of the model's patch size, or there are no classes.
    """
    patch = model.config.patch_size
    if protocol.mode == "slide" and protocol.crop % patch:
        raise UserError(f"crop={protocol.crop} is no multiple of the model's patch size {patch}")
    if len(classes) <= protocol.has_background:
        raise UserError("no class names to look for (background does not count); give at least one")
    method = method or choose_method(model, protocol)
    mesh = local_mesh()
    graphdef, state = nnx.split(model)
    state = replicate(state, mesh)
    texts = method.embed(nnx.merge(graphdef, state), tuple(classes), tokenizer)
    platform = mesh.devices.flat[0].platform
    forward = windows_per_forward or windows_per_device(platform, protocol.crop, patch, mesh.size)
    if protocol.mode == "whole":
        forward = 1  # many shapes: the last block of each is filled up
    return Segmenter(
        graphdef=graphdef,
        state=state,
        texts=replicate(texts, mesh),
        method=method,
        protocol=protocol,
        mesh=mesh,
        num_classes=len(classes),
        windows_per_forward=forward,
        patch=patch,
    )


def windows_per_device(platform: str, crop: int, patch: int, devices: int) -> int:
    """How many windows keep a device of this platform busy; CPU devices share their cores."""
    tokens = _CPU_TOKENS // devices if platform == "cpu" else _ACCELERATOR_TOKENS
    return max(1, tokens // (crop // patch) ** 2)


def choose_method(model: nnx.Module, protocol: Protocol) -> Any:
    """The groups of a GroupViT, or `protocol.dense` of a CLIP."""
    return DenseMethod(protocol) if isinstance(model, CLIP) else GroupMethod(protocol)


def local_mesh() -> Mesh:
    """This process's devices along one axis, "data"."""
    return Mesh(np.array(jax.local_devices()), ("data",))


def replicate(arrays, mesh: Mesh):
    """A copy of a tree of arrays on every local device, wherever they are sharded now.

    Forced host devices share one copy: JAX does not copy NumPy's memory there.

    All processes must call it if any array is sharded over processes.
    """

    def local(x: Array | np.ndarray) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return multihost_utils.process_allgather(x, tiled=True)
        if isinstance(x, jax.Array) and x.is_fully_replicated:
            x = x.addressable_data(0)
        return np.asarray(x)

    return jax.device_put(jax.tree.map(local, arrays), NamedSharding(mesh, P()))


def _by_image(block: WindowBlock, said: Any, carried: list) -> Iterator[Reading]:
    """The images that end in this block; what belongs to the next one stays in `carried`."""
    said = jax.tree.map(lambda x: np.asarray(x)[: block.filled], said)
    for image, count in block.images:
        before = sum(len(jax.tree.leaves(part)[0]) for part in carried)
        own = jax.tree.map(lambda x, n=count - before: x[:n], said)
        said = jax.tree.map(lambda x, n=count - before: x[n:], said)
        yield Reading(image, jax.tree.map(lambda *x: np.concatenate(x), *carried, own))
        carried.clear()
    if len(jax.tree.leaves(said)[0]):
        carried.append(said)


def _choose(x: np.ndarray, windows: np.ndarray, shape: PieceShape) -> np.ndarray:
    """The values of some windows, filled up with zeros."""
    padded = shape.patch and x.ndim == 4
    inner = (x.shape[1], *shape.grid) if padded else x.shape[1:]
    chosen = np.zeros((shape.windows, *inner), x.dtype)
    chosen[(slice(len(windows)), *map(slice, x.shape[1:]))] = x[windows]
    return chosen
