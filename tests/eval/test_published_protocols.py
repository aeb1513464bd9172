"""The published settings at full image sizes, against the oracle on 40 images of each kind.

The model is narrow but has the published patch, crops and groups: rules do not know its width.
"""

import dataclasses

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
from eval.batches import LabelledImage, batch_images, resize_uint8
from eval.benchmarks import get_benchmark
from eval.confusion import IGNORE
from eval.prediction import unpad
from eval.segmenter import make_segmenter

IMAGES = 40
SIZES = {
    "voc": [(375, 500), (500, 375), (333, 500), (500, 334), (281, 500), (442, 500), (500, 500)],
    "imagenet_s_300": [(375, 500), (500, 375), (480, 480), (768, 1000), (200, 330)],
    "ade20k": [(512, 683), (683, 512), (256, 256), (480, 640), (300, 900), (1000, 1500)],
    "coco_stuff": [(480, 640), (640, 480), (427, 640), (640, 424), (500, 375)],
    "cityscapes": [(1024, 2048)],
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


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_published_protocol_equals_the_oracle(models, name):
    benchmark = get_benchmark(name)
    protocol, classes = benchmark.protocol, len(benchmark.classes)
    if protocol.has_background:  # an untrained model is never sure: 0.95 would be all background
        protocol = dataclasses.replace(protocol, bg_thresh=0.02)
    named = benchmark.classes[1:] if protocol.has_background else benchmark.classes
    tokens = Tokenizer()([f"a photo of a {name}." for name in named])
    oracle = PerImageSegmenter(
        models[1], tokens, protocol.crop, protocol.stride, protocol.bg_thresh
    )
    segmenter = make_segmenter(models[0], benchmark.classes, protocol, Tokenizer())

    def images():
        for number in range(IMAGES):
            size = SIZES[name][number % len(SIZES[name])]
            ((image, labels),) = make_images([size], min(classes, 255), seed=number)
            labels = np.where(labels == 255, IGNORE, labels).astype(np.uint16)
            resized = resize_uint8(image, protocol.resized(*size)).numpy()
            yield LabelledImage(str(number), resized, labels)

    truths = {image.key: image for image in images()}
    same = pixels = 0
    seen = set()
    for batch in batch_images(images(), protocol, segmenter.rows):
        blocks = segmenter.read(batch)
        matrix = np.zeros((classes, classes), np.int64)
        for prediction in unpad(batch, segmenter.paint(batch, blocks)):
            example = truths.pop(prediction.key)
            expected = oracle(example.image, example.labels.shape)
            same += (prediction.labels == expected).sum()
            pixels += expected.size
            seen |= set(np.unique(expected))
            counted = example.labels != IGNORE
            matrix += confusion_matrix(
                example.labels[counted], prediction.labels[counted], labels=range(classes)
            )
        np.testing.assert_array_equal(np.asarray(segmenter.count(batch, blocks))[0], matrix)
    print(f"{name}: {same / pixels:.6f} of {pixels:,} labels identical, {len(seen)} classes seen")
    assert not truths and len(seen) > 2
    assert same / pixels >= 0.999
