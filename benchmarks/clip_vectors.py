"""Any number of vectors with the geometry of CLIP's image embeddings.

`clip_vectors.npz` describes 1,541 embeddings of photographs and web images by OpenAI's ViT-B/32:
the variance along each principal axis, and the mean in these axes. Random vectors of that mean and
covariance are not like them, for their nearest neighbours are too far. So a vector here is the mean
plus a walk down a random tree of `_LEVELS` levels, whose steps shrink, plus noise of its own; both
have the covariance's shape. The constants were fitted to the real vectors' neighbour distances, to
how these fall as there are more of them, and to the share of them in the k-means cells that must be
probed for 95% of the 8 nearest neighbours (of 16, 39 and 80 cells: 25%, 18%, 12%; here 28%, 17%,
12%). How real vectors go on beyond 1,541 nobody measured: the tree goes on as it began.
"""

import pathlib

import numpy as np
from jaxtyping import Float16

_BRANCHES, _LEVELS, _SHRINK = 8, 8, 0.892  # children of a node; variance of a step over the last's
_UNEVEN = 0.3  # Dirichlet parameter of the children's shares of the vectors
_NOISE = (1.914, 3.086)  # beta parameters of the share of noise in a vector's variance
_FLATTEN = 0.874  # exponent on the spectrum: few upper nodes make it steeper again
_ROWS = 8192


def clip_like_vectors(count: int, seed: int = 0) -> Float16[np.ndarray, "n 512"]:
    """Unit-norm vectors in random order."""
    stored = np.load(pathlib.Path(__file__).with_suffix(".npz"))
    mean, variance = stored["mean"], stored["variance"]
    shape = variance**_FLATTEN
    deviation = np.sqrt(shape * (variance.sum() / shape.sum()))
    steps = _SHRINK ** np.arange(_LEVELS, dtype=np.float32)
    steps = np.sqrt(steps / steps.sum())
    rng = np.random.default_rng(seed)
    levels = [_Level(ends, rng) for ends in _tree(count, rng)]
    place, vectors = rng.permutation(count), np.empty((count, len(mean)), np.float16)
    for start in range(0, count, _ROWS):
        rows = np.arange(start, min(start + _ROWS, count))
        walk = sum(s * level.steps(rows, len(mean)) for s, level in zip(steps, levels, strict=True))
        noise = rng.beta(*_NOISE, (len(rows), 1)).astype(np.float32)
        own = rng.standard_normal((len(rows), len(mean)), np.float32)
        found = mean + deviation * (np.sqrt(1 - noise) * walk + np.sqrt(noise) * own)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        vectors[place[start : start + len(rows)]] = found
    return vectors


def _tree(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Where the vectors of each node end, level by level, if those of a node are contiguous."""
    counts, ends = np.array([count]), []
    for _ in range(_LEVELS):
        shares = rng.dirichlet([_UNEVEN] * _BRANCHES, size=len(counts))
        counts = rng.multinomial(counts, shares).reshape(-1)
        counts = counts[counts > 0]
        ends.append(np.cumsum(counts))
    return ends


class _Level:
    """Steps of the nodes of a level, drawn as the vectors come to them."""

    def __init__(self, ends: np.ndarray, rng: np.random.Generator):
        self._ends, (self._rng,) = ends, rng.spawn(1)
        self._node, self._step = -1, None

    def steps(self, rows: np.ndarray, width: int) -> np.ndarray:
        node = np.searchsorted(self._ends, rows, side="right")
        new = self._rng.standard_normal(
            (node[-1] - max(node[0] - 1, self._node), width), np.float32
        )
        if node[0] == self._node:
            drawn = np.concatenate([self._step[None], new])
        else:
            drawn = new
        self._node, self._step = node[-1], drawn[-1]
        return drawn[node - node[0]]
