"""The published settings at full image sizes, against the oracle on 40 images of each benchmark.

The model is narrow but has the published patch, crops and groups: rules do not know its width.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from miniature import make_images
from sklearn.metrics import confusion_matrix
from transformers import GroupViTModel

from benchmarks.segmentation_oracle import PerImageSegmenter
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import save_groupvit
from eval.benchmarks import get_benchmark
from eval.confusion import IGNORE
from eval.decoding import decode_groups
from eval.groups import hard_map
from eval.images import EvaluatedImage, resize_uint8
from eval.prediction import assemble
from eval.segmenter import make_segmenter
from eval.tiles import cut_tiles

IMAGES = 40
SIZES = {
    "voc": [(375, 500), (500, 375), (333, 500), (500, 334), (281, 500), (442, 500), (500, 500)],
    "imagenet_s_300": [(375, 500), (500, 375), (480, 480), (768, 1000), (200, 330)],
    "ade20k": [(512, 683), (683, 512), (256, 256), (480, 640), (300, 900), (1000, 1500)],
    "coco_stuff": [(480, 640), (640, 480), (427, 640), (640, 424), (500, 375)],
    "cityscapes": [(1024, 2048), (1024, 2048), (1024, 2048), (1024, 1820), (800, 1600)],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    config = GroupViTConfig(
        width=48,
        heads=2,
        depths=(1, 1, 1),
        projection_hidden=64,
        projection_dim=32,
        text=TextConfig(width=32, heads=2, layers=1),
        dense_init_std=0.2,
        assign_init_std=0.4,
        group_token_init_std=2.0,
    )
    model = GroupViT(config, rngs=nnx.Rngs(0))
    tokens = model.image.stages[1].group_tokens
    tokens[...] = np.random.default_rng(0).normal(size=tokens.shape).astype(np.float32)
    folder = str(tmp_path_factory.mktemp("checkpoint") / "groupvit")
    save_groupvit(model, folder)
    return model, GroupViTModel.from_pretrained(folder)


# Two segments that want a patch equally, up to what float32 makes of their logits: the patch may go
# to either, whole, and changes the scores of its window by more than rounding.
TIE = 1e-5


class RecordingSegmenter(PerImageSegmenter):
    """Keeps the groups of every window of the last image, and how close their closest tie was."""

    def __init__(self, model, *args):
        super().__init__(model, *args)
        self.margins = []
        encoder = model.vision_model.encoder
        self.hook = encoder.register_forward_hook(
            lambda module, inputs, output: self.margins.append(margin(output.attentions))
        )

    def scores(self, image, original):
        self.windows, self.margins = [], []
        return super().scores(image, original)

    def window_groups(self, pixels):
        self.windows.append(super().window_groups(pixels))
        return self.windows[-1]


def margin(assignments) -> float:
    """How much less than the best one the second segment wants a token; least over all tokens."""
    best = [soft.topk(2, dim=1).values for soft in assignments]
    return min(float((1 - two[:, 1] / two[:, 0]).min()) for two in best)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_published_protocol_equals_the_oracle(models, name):
    benchmark = get_benchmark(name)
    protocol, classes = benchmark.protocol, len(benchmark.classes)
    if protocol.has_background:  # an untrained model is never sure: 0.95 would be all background
        protocol = dataclasses.replace(protocol, bg_thresh=0.02)
    named = benchmark.classes[1:] if protocol.has_background else benchmark.classes
    tokens = Tokenizer()([f"a photo of a {name}." for name in named])
    oracle = RecordingSegmenter(
        models[1], tokens, protocol.crop, protocol.stride, protocol.bg_thresh
    )
    segmenter = make_segmenter(models[0], benchmark.classes, protocol, Tokenizer())

    def images():
        for number in range(IMAGES):
            size = SIZES[name][number % len(SIZES[name])]
            ((image, labels),) = make_images([size], min(classes, 255), seed=number)
            labels = np.where(labels == 255, IGNORE, labels).astype(np.uint16)
            resized = resize_uint8(image, protocol.input_size(*size)).numpy()
            yield EvaluatedImage(str(number), resized, size, labels)

    truths = {image.key: image for image in images()}
    pixels = same_labels = scored = same_scores = same_groups = group_pixels = tied = 0
    group_error, seen = 0.0, set()
    matrices, unfinished = [], {}
    matrix = np.zeros((classes, classes), np.int64)
    outputs_by_key = {}
    for decoded in segmenter.decode(segmenter.encode(images())):
        matrices.append(np.asarray(decoded.matrices).sum(0)[0])
        outputs_by_key |= {encoded.image.key: encoded.outputs for _, encoded in decoded.tiles}
        for prediction in assemble(decoded, protocol, unfinished):
            example = truths.pop(prediction.key)
            outputs = outputs_by_key.pop(prediction.key)
            expected = oracle.scores(example.image, example.size).numpy()
            same_labels += (prediction.labels == expected.argmax(0)).sum()
            pixels += prediction.labels.size
            seen |= set(np.unique(expected.argmax(0)))
            ties = 0
            crop = (protocol.crop,) * 2
            maps = [np.asarray(_hard_map(soft, crop)) for soft in outputs.assignment]
            windows = zip(maps, outputs.scores, oracle.windows, oracle.margins, strict=True)
            for own, table, (member, names), closest in windows:
                error = np.abs(table[:, classes - len(named) :] - names.numpy()).max()
                same_groups += (own == member.numpy()).sum()
                group_pixels += own.size
                if error >= 1e-4 and closest < TIE:
                    ties += 1
                else:
                    group_error = max(group_error, error)
            tied += ties
            if not ties:
                score = best_scores(example, maps, outputs.scores, segmenter)
                same_scores += (np.abs(score - expected.max(0)) < 1e-4).sum()
                scored += score.size
            counted = example.labels != IGNORE
            matrix += confusion_matrix(
                example.labels[counted], prediction.labels[counted], labels=range(classes)
            )
    np.testing.assert_array_equal(np.sum(matrices, axis=0, dtype=np.int64), matrix)
    oracle.hook.remove()
    print(
        f"{name}: {IMAGES} images; {tied} windows with a patch between two segments; in the others "
        f"scores of groups differ by {group_error:.1e} at most; "
        f"identical: groups {same_groups / group_pixels:.6%} of {group_pixels:,} window pixels, "
        f"labels {same_labels / pixels:.6%} of {pixels:,} pixels, scores to 1e-4 "
        f"{same_scores / scored:.6%} of {scored:,}; {len(seen)} classes seen"
    )
    assert not truths and len(seen) > 2 and tied <= IMAGES / 10
    assert group_error < 1e-4  # float32 through two implementations of the model
    # A pixel between two groups may go to either, and takes its score and label along.
    assert same_groups / group_pixels >= 0.999
    assert same_scores / scored >= 0.999
    assert same_labels / pixels >= 0.999


def best_scores(example, maps, scores, segmenter):
    """Score of the best class of every pixel of an image that is one tile."""
    height, width = example.size
    shape = segmenter.shape(height > width)
    (tile,) = cut_tiles(example, segmenter.protocol, shape)
    padding = ((0, shape.windows - len(maps)), (0, 0), (0, 0))
    arrays = (np.pad(x, padding) for x in (np.stack(maps), scores))
    labels_and_scores = _decode(*arrays, tile.layout, canvas=shape.canvas, tile_size=shape.size)
    return np.asarray(labels_and_scores[1])[:height, :width]


_hard_map = jax.jit(hard_map, static_argnums=1)
_decode = jax.jit(decode_groups, static_argnames=("canvas", "tile_size"))
