"""The whole of evaluation against `transformers`' GroupViT, one image and one window at a time."""

import jax
import numpy as np
import pytest
import torch
from miniature import CLASSES, make_images, make_model, write_corpus
from sklearn.metrics import confusion_matrix
from transformers import GroupViTModel

from benchmarks.segmentation_oracle import MEAN, STD, PerImageSegmenter
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import save_groupvit
from eval.batches import read_images
from eval.groups import read_groups
from eval.prediction import predict
from eval.protocol import Protocol
from eval.segmentation import evaluate_segmentation
from eval.segmenter import make_segmenter

SIZES = [(40, 60), (60, 40), (41, 61), (37, 58), (39, 60)]
KINDS = {
    "background, one scale up": Protocol(32, 16, (150, 40), True, 0.07),
    "no background, small windows": Protocol(32, 16, (200, 48)),
    "no resizing, wide stride": Protocol(32, 32, None),
}


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
    pairs = make_images(SIZES, len(classes))
    corpus = write_corpus(tmp_path, pairs, classes, protocol.has_background)
    return models[0], protocol, corpus, oracle


def test_window_scores_equal_the_oracle(kind):
    model, protocol, corpus, oracle = kind
    segmenter = make_segmenter(model, corpus.metadata["classes"], protocol, Tokenizer())
    images = [example.image for example in read_images(corpus, protocol, 0, 1)]
    windows = np.stack([image[:32, :32] for image in images])
    found = jax.jit(lambda w: read_groups(model, w, segmenter.embeddings, protocol))(windows)
    for window, maps, scores in zip(windows, *map(np.asarray, found[:2]), strict=True):
        pixels = torch.from_numpy(window).permute(2, 0, 1)[None].float() / 255
        expected = oracle.window_scores((pixels - MEAN) / STD).permute(1, 2, 0).numpy()
        same = np.abs(scores[maps] - expected).max(-1) < 1e-4
        assert same.mean() > 0.999  # float32: a pixel between two groups may go to either
    assert len(np.unique(found[0])) > 2


def test_labels_and_confusion_equal_the_oracle(kind):
    model, protocol, corpus, oracle = kind
    classes = corpus.metadata["classes"]
    segmenter = make_segmenter(model, classes, protocol, Tokenizer())
    found = {p.key: p.labels for p in predict(segmenter, read_images(corpus, protocol, 0, 1))}
    truth, expected, ours = [], [], []
    for example in read_images(corpus, protocol, 0, 1):
        labels = oracle(example.image, example.labels.shape)
        assert found[example.key].shape == labels.shape
        truth.append(example.labels.reshape(-1))
        expected.append(labels.reshape(-1))
        ours.append(found[example.key].reshape(-1))
    truth, expected, ours = map(np.concatenate, (truth, expected, ours))
    assert (ours == expected).mean() >= 0.999
    assert len(np.unique(expected)) > 3
    result = evaluate_segmentation(model, corpus, protocol, Tokenizer())
    counted = truth < len(classes)
    matrix = confusion_matrix(truth[counted], ours[counted], labels=range(len(classes)))
    np.testing.assert_array_equal(result.confusion, matrix)
    assert result.images == len(SIZES)
