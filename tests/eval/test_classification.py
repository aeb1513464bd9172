"""Zero-shot classification against transformers, image by image."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import torch
from miniature import CLASSES, make_images, make_model
from PIL import Image
from transformers import GroupViTModel

from benchmarks.segmentation_oracle import MEAN, STD
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from cocu_jax.models.templates import SUBSET_TEMPLATES
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import save_groupvit
from cocu_jax.models.weights.image_processing import ImageProcessing, imagenet_processing
from eval.classification import evaluate_classification, prepare_image

NAMES = CLASSES[1:]


@pytest.fixture(scope="module")
def images():
    sizes = [(32 + 3 * i, 60 - 2 * i) for i in range(11)]
    return [image for image, _ in make_images(sizes, 2)]


@pytest.fixture
def corpus(tmp_path, images):
    features = tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.Scalar(np.int32),
        }
    )
    file = str(tmp_path / "validation.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for number, image in enumerate(images):
            example = {"key": str(number), "image": image, "label": number % len(NAMES)}
            writer.write(features.serialize_example(features.encode_example(example)))
    metadata = {"classes": NAMES}
    return Corpus("x", "validation", features, metadata, (file,), (len(images),), "miniature")


@torch.no_grad()
def test_top1_and_top5_equal_transformers_image_by_image(corpus, images, tmp_path):
    model, processing = make_model(), imagenet_processing(32)
    save_groupvit(model, str(tmp_path / "groupvit"))
    theirs = GroupViTModel.from_pretrained(str(tmp_path / "groupvit")).eval()
    texts = []
    for name in NAMES:
        tokens = Tokenizer()([template.format(name) for template in SUBSET_TEMPLATES])
        pooled = theirs.text_model(input_ids=torch.from_numpy(tokens).long()).pooler_output
        mean = theirs.text_projection(pooled).mean(0)
        texts.append(mean / mean.norm())
    first = among = 0
    for number, image in enumerate(images):
        square = prepare_image(tf.constant(image), processing).numpy()
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
        feature = theirs.vision_model((pixels - MEAN) / STD).pooler_output
        scores = torch.stack(texts) @ theirs.visual_projection(feature)[0]
        order = scores.argsort(descending=True).tolist()
        first += order[0] == number % len(NAMES)
        among += number % len(NAMES) in order[:5]
    result = evaluate_classification(
        model, corpus, processing, Tokenizer(), templates="subset", images_per_device=1
    )
    assert result.images == len(images)
    assert (result.top1, result.top5) == (first / len(images), among / len(images))
    assert 0 < result.top5 < 1


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_images_are_prepared_as_pillow_does(images, resample):
    processing = ImageProcessing(24, resample=resample)
    for image in images:
        height, width = image.shape[:2]
        short = min(height, width)
        size = int(width * 24 / short), int(height * 24 / short)
        resized = Image.fromarray(image).resize(size, getattr(Image.Resampling, resample.upper()))
        left, top = (size[0] - 24) // 2, (size[1] - 24) // 2
        expected = np.asarray(resized)[top : top + 24, left : left + 24].astype(int)
        found = prepare_image(tf.constant(image), processing).numpy()
        difference = np.abs(found - expected)
        assert difference.mean() < 0.5 and difference.max() <= 8  # Pillow rounds and clips between


def test_a_dataset_without_labels_is_named(corpus):
    wrong = Corpus("x", "validation", corpus.features, {}, corpus.shard_files, (11,), "miniature")
    with pytest.raises(UserError, match="data_prep imagenet"):
        evaluate_classification(make_model(), wrong, imagenet_processing(32), Tokenizer())
