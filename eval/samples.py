"""Pictures of some images of a benchmark: ground truth, predicted labels and groups."""

import itertools
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from cocu_jax.input.corpus import Corpus
from cocu_jax.models.tokenizer import Tokenizer
from eval.confusion import IGNORE
from eval.images import read_images
from eval.palettes import distinct_colours
from eval.pictures import add_legend, draw_overlay, renumber, side_by_side
from eval.prediction import Prediction, predict
from eval.protocol import Protocol
from eval.segmenter import make_segmenter

_LONG_SIDE = 480


def draw_samples(
    model: nnx.Module,
    corpus: Corpus,
    protocol: Protocol,
    tokenizer: Tokenizer,
    classes: tuple[str, ...],
    count: int,
    windows_per_forward: int = 0,
    method: Any = None,
) -> dict[str, Image.Image]:
    """Draws the first `count` images of a benchmark.

    Args:
        model: the model.
        corpus: the dataset.
        protocol: settings of the benchmark.
        tokenizer: the tokenizer.
        classes: class names in label order.
        count: number of images; 0: none.
        windows_per_forward: see `make_segmenter`.
        method: see `eval.segmenter`; None: the method of the model.

    Returns:
        Pictures by key of the image.
    """
    if not count:
        return {}
    examples = list(itertools.islice(read_images(corpus, protocol, 0, 1, count), count))
    truths = {example.key: example.labels for example in examples}
    segmenter = make_segmenter(model, classes, protocol, tokenizer, windows_per_forward, method)
    colours = np.concatenate([distinct_colours(len(classes)), [[0, 0, 0]]]).astype(np.uint8)
    return {
        prediction.key: _draw(prediction, truths[prediction.key], classes, colours)
        for prediction in predict(segmenter, examples)
    }


def _draw(
    prediction: Prediction, truth: np.ndarray, classes: tuple[str, ...], colours: np.ndarray
) -> Image.Image:
    truth = np.where(truth == IGNORE, len(classes), truth)  # black
    plain = Image.fromarray(prediction.image)
    height, width = truth.shape
    scale = _LONG_SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    pictures = [
        plain.resize(size, Image.Resampling.BICUBIC),
        draw_overlay(prediction.image, truth, colours, _LONG_SIDE),
        draw_overlay(prediction.image, prediction.labels, colours, _LONG_SIDE),
    ]
    titles = ["image", "ground truth", "prediction"]
    if (groups := prediction.groups) is not None:
        groups = renumber(groups)
        tints = distinct_colours(int(groups.max()) + 1, 0.1)
        pictures.append(draw_overlay(prediction.image, groups, tints, _LONG_SIDE))
        titles.append("groups")
    both = np.concatenate([truth.reshape(-1), prediction.labels.reshape(-1)])
    shares = np.bincount(both, minlength=len(classes) + 1)[: len(classes)] / both.size
    row = side_by_side(pictures, titles)
    return add_legend(row, classes, colours, shares.tolist())
