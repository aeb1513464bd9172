"""Evaluation from JPEG files, against `transformers`' GroupViT, an image and a window at a time."""

import numpy as np
import pytest
import torch
from miniature import (
    CLASSES,
    WITH_BACKGROUND,
    WITHOUT_BACKGROUND,
    decode_photo,
    encode_photos,
    make_images,
    make_model,
    resize_exactly,
    write_corpus,
)
from sklearn.metrics import confusion_matrix
from transformers import GroupViTModel

from benchmarks.segmentation_oracle import MEAN, STD, PerImageSegmenter
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import save_groupvit
from eval.groups import hard_map
from eval.images import read_images
from eval.segmentation import evaluate_segmentation
from eval.segmenter import make_segmenter
from eval.window_queue import WindowBlock

pytestmark = pytest.mark.usefixtures("small_tiles")

SIZES = [(40, 60), (60, 40), (41, 61), (37, 58), (39, 60)]
KINDS = {"with background": WITH_BACKGROUND, "without background": WITHOUT_BACKGROUND}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    model = make_model()
    folder = str(tmp_path_factory.mktemp("checkpoint") / "groupvit")
    save_groupvit(model, folder)
    return model, GroupViTModel.from_pretrained(folder)


@pytest.fixture(params=KINDS)
def kind(request, models, tmp_path):
    protocol = KINDS[request.param]
    classes = CLASSES if protocol.has_background else CLASSES[1:]
    named = CLASSES[1:]
    tokens = Tokenizer()([f"a photo of a {name}." for name in named])
    settings = protocol.crop, protocol.stride, protocol.bg_thresh
    oracle = PerImageSegmenter(models[1], tokens, *settings)
    images, labels = zip(*make_images(SIZES, len(classes)), strict=True)
    files = encode_photos(images)
    pairs = list(zip(files, labels, strict=True))
    corpus = write_corpus(tmp_path, pairs, classes, protocol.has_background)
    return models[0], protocol, corpus, oracle, pairs


def test_window_scores_equal_the_oracle(kind):
    model, protocol, corpus, oracle, _ = kind
    classes = corpus.metadata["classes"]
    segmenter = make_segmenter(model, classes, protocol, Tokenizer(), windows_per_forward=2)
    windows = np.stack([e.image[:32, :32] for e in read_images(corpus, protocol, 0, 1)])
    windows = np.resize(windows, (16, 32, 32, 3))
    outputs = segmenter.encode_block(WindowBlock(windows, len(windows), ()))
    maps = [np.asarray(hard_map(soft, (32, 32))) for soft in np.asarray(outputs.assignment)]
    for window, member, scores in zip(windows, maps, np.asarray(outputs.scores), strict=True):
        pixels = torch.from_numpy(window).permute(2, 0, 1)[None].float() / 255
        expected = oracle.window_scores((pixels - MEAN) / STD).permute(1, 2, 0).numpy()
        same = np.abs(scores[member] - expected).max(-1) < 1e-4
        assert same.mean() > 0.999  # float32: a pixel between two groups may go to either
    assert len(np.unique(maps)) > 2


def test_labels_and_confusion_equal_the_oracle(kind):
    model, protocol, corpus, oracle, pairs = kind
    found, truth, expected, ours = {}, [], [], []
    result = evaluate_segmentation(
        model,
        corpus,
        protocol,
        Tokenizer(),
        windows_per_forward=2,
        visit=lambda prediction: found.update({prediction.key: prediction.labels}),
    )
    for number, (file, true) in enumerate(pairs):  # from the files on, nothing of ours
        image = decode_photo(file)
        if protocol.resize_long_short:
            long, short = protocol.resize_long_short
            scale = min(long / max(image.shape[:2]), short / min(image.shape[:2]))
            image = resize_exactly(image, [int(side * scale + 0.5) for side in image.shape[:2]])
        labels = oracle(np.round(image).astype(np.uint8), true.shape)
        key = f"{number:04d}"
        assert found[key].shape == labels.shape
        truth.append(true.reshape(-1))
        expected.append(labels.reshape(-1))
        ours.append(found[key].reshape(-1))
    truth, expected, ours = map(np.concatenate, (truth, expected, ours))
    assert (ours == expected).mean() >= 0.999
    assert len(np.unique(expected)) > 3
    names = range(len(result.classes))
    counted = truth < len(names)
    matrix = confusion_matrix(truth[counted], ours[counted], labels=names)
    np.testing.assert_array_equal(result.confusion, matrix)
    assert result.images == len(SIZES)
