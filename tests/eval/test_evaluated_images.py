"""Benchmark images and masks as the evaluator reads them, from encoded files."""

import dataclasses

import numpy as np
import pytest
from miniature import make_images, resize_exactly, write_corpus

from eval.benchmarks import benchmarks
from eval.confusion import IGNORE
from eval.images import read_images
from eval.protocol import Protocol
from eval.tasks import _without_background


def test_large_images_are_decided_at_a_long_side_of_exactly_1000():
    """`int(long * (1000 / long))` gives 999 for 945 of these lengths."""
    protocol = benchmarks()["imagenet_s_300"].protocol
    assert all(protocol.label_size(long, 1000)[0] == 1000 for long in range(1001, 7001))
    assert protocol.label_size(1500, 700) == (1000, 466)
    assert protocol.label_size(1000, 1000) == (1000, 1000)
    assert protocol.label_size(640, 480) == (640, 480)
    assert benchmarks()["voc"].protocol.label_size(4000, 3000) == (4000, 3000)


def test_masks_of_large_images_keep_their_size(tmp_path):
    protocol = Protocol(32, 16, (150, 40), large_images=(3000, 50))
    pairs = make_images([(60, 90), (40, 50)], 3)
    corpus = write_corpus(tmp_path, pairs, ("a", "b", "c"), False, shards=1)
    large, small = read_images(corpus, protocol, 0, 1)
    assert large.size == (33, 50) and large.label_shape == (60, 90) and small.size == (40, 50)
    once = np.round(resize_exactly(pairs[0][0].astype(float), (33, 50)))
    twice = resize_exactly(once, protocol.input_size(33, 50))
    assert np.abs(large.image - twice).max() <= 1.5  # a tie may round either way, then rounding
    np.testing.assert_array_equal(large.labels == IGNORE, pairs[0][1] == 255)


@pytest.mark.parametrize("name,classes", [("voc20", 20), ("context59", 59)])
def test_benchmarks_without_background_use_the_datasets_with_it(name, classes, tmp_path):
    benchmark = benchmarks()[name]
    source = benchmarks()[benchmark.dataset]
    assert len(benchmark.classes) == classes and benchmark.classes == source.classes[1:]
    assert (
        dataclasses.replace(
            benchmark.protocol, has_background=True, bg_thresh=source.protocol.bg_thresh
        )
        == source.protocol
    )
    ((image, labels),) = make_images([(90, 90)], classes + 1)
    corpus = write_corpus(tmp_path, [(image, labels)], source.classes, True, shards=1)
    (found,) = read_images(_without_background(corpus), benchmark.protocol, 0, 1)
    expected = np.where((labels == 0) | (labels == 255), IGNORE, labels.astype(int) - 1)
    np.testing.assert_array_equal(found.labels, expected)
    assert (expected == IGNORE).any() and (expected < IGNORE).any()
