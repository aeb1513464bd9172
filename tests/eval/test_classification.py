"""Zero-shot classification against transformers, image by image."""

import io

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import torch
from etils import epath
from miniature import CLASSES, make_images, make_model
from PIL import Image
from small_clip import small_clip
from transformers import GroupViTModel

from benchmarks import dense_oracle
from benchmarks.segmentation_oracle import MEAN, STD
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from cocu_jax.models.templates import SUBSET_TEMPLATES
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import load_clip, save_groupvit
from cocu_jax.models.weights.image_processing import imagenet_processing
from cocu_jax.stopping import Stopped
from eval.classification import evaluate_classification, prepare_image
from eval.partial import PartialCounts

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
def test_accuracy_of_a_groupvit_equals_transformers(corpus, images, tmp_path):
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
        pixels = (
            torch.from_numpy(published_square(image, 32).copy()).permute(2, 0, 1)[None].float()
            / 255
        )
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


@torch.no_grad()
def test_accuracy_of_a_clip_equals_transformers(corpus, images, tmp_path):
    theirs = small_clip()
    theirs.save_pretrained(tmp_path / "clip")
    model, processing = load_clip(str(tmp_path / "clip"))
    prompts = [template.format(name) for name in NAMES for template in SUBSET_TEMPLATES]
    texts = dense_oracle.word_embeddings(theirs, Tokenizer()(prompts), len(SUBSET_TEMPLATES))
    mean, std = (np.array(x, np.float32) * 255 for x in (processing.mean, processing.std))
    first = among = 0
    for number, image in enumerate(images):
        pixels = torch.tensor((published_square(image, 32) - mean) / std).permute(2, 0, 1)[None]
        pooled = theirs.vision_model(pixel_values=pixels).pooler_output
        order = (texts @ theirs.visual_projection(pooled)[0]).argsort(descending=True).tolist()
        first += order[0] == number % len(NAMES)
        among += number % len(NAMES) in order[:5]
    result = evaluate_classification(model, corpus, processing, Tokenizer(), images_per_device=2)
    assert (result.top1, result.top5) == (first / len(images), among / len(images))
    assert 0 < result.top5 < 1


def test_a_stopped_classification_resumes(corpus, tmp_path):
    model, processing = make_model(), imagenet_processing(32)
    devices = len(jax.devices())
    whole = evaluate_classification(model, corpus, processing, Tokenizer(), images_per_device=1)
    partial = PartialCounts(epath.Path(tmp_path / "part.npz"), {"model": "a"})
    with pytest.raises(Stopped, match=f"after {devices} images; run the same command again"):
        evaluate_classification(
            model, corpus, processing, Tokenizer(),
            images_per_device=1, partial=partial, stop=lambda images: True,
        )  # fmt: skip
    seen = []
    result = evaluate_classification(
        model, corpus, processing, Tokenizer(),
        images_per_device=1, partial=partial, stop=lambda images: bool(seen.append(images)),
    )  # fmt: skip
    assert result == whole and sum(seen) == whole.images - devices


def published_square(image, size):
    """Short side 256, centre 224, as torchvision and Pillow do it; other sizes in proportion."""
    height, width = image.shape[:2]
    short = size * 256 // 224
    resized = [int(short * side / min(height, width)) for side in (width, height)]
    picture = Image.fromarray(image).resize(resized, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in resized)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [32, 224])
def test_images_are_prepared_as_published(images, size):
    prepare = tf.function(
        lambda image: prepare_image(image, size),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)],
    )
    for image in images:
        np.testing.assert_array_equal(prepare(image).numpy(), published_square(image, size))


def test_an_unreadable_image_gives_a_one_line_error(corpus, images):
    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, "JPEG")
    example = {"key": "cut", "image": file.getvalue()[:-30], "label": 0}
    with tf.io.TFRecordWriter(corpus.shard_files[0]) as writer:
        writer.write(corpus.features.serialize_example(example))
    with pytest.raises(UserError, match="after 0 images .*prepare the dataset again"):
        evaluate_classification(make_model(), corpus, imagenet_processing(32), Tokenizer())


def test_a_dataset_without_labels_is_refused(corpus):
    wrong = Corpus("x", "validation", corpus.features, {}, corpus.shard_files, (11,), "miniature")
    with pytest.raises(UserError, match="data_prep imagenet"):
        evaluate_classification(make_model(), wrong, imagenet_processing(32), Tokenizer())
