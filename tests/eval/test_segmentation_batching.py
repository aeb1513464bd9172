"""Confusion matrices do not depend on how images are batched, padded and spread."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from miniature import (
    CLASSES,
    WITH_BACKGROUND,
    WITHOUT_BACKGROUND,
    make_images,
    make_model,
    write_corpus,
)
from two_processes import run_two_processes

from cocu_jax.errors import UserError
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.stopping import Stopped, StopRequest
from eval import programs
from eval.batches import batch_images, read_images
from eval.protocol import Protocol
from eval.segmentation import evaluate_segmentation
from eval.segmenter import make_segmenter, replicate

SIZES = [(40, 60), (60, 40), (41, 62), (39, 58), (37, 54), (62, 41), (38, 57), (40, 60), (42, 63)]
PROTOCOL = WITH_BACKGROUND


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    pairs = make_images(SIZES, len(CLASSES))
    pairs.append((pairs[0][0], np.full_like(pairs[0][1], 255)))  # nothing but ignored pixels
    return write_corpus(tmp_path_factory.mktemp("corpus"), pairs, CLASSES, has_background=True)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def segmenter(model):
    return make_segmenter(model, CLASSES, PROTOCOL, Tokenizer(), windows_per_forward=2)


def count(segmenter, corpus, images_per_device):
    rows = functools.partial(segmenter.rows, images_per_device=images_per_device)
    total, seen = 0, []
    for batch in batch_images(read_images(corpus, PROTOCOL, 0, 1), PROTOCOL, rows):
        total = total + np.asarray(segmenter.count(batch, segmenter.read(batch)))
        seen += batch.keys
    assert sorted(seen) == [f"{number:04d}" for number in range(corpus.num_examples)]
    return total


@pytest.fixture(scope="module")
def reference(segmenter, corpus):
    return count(segmenter, corpus, 1)


def labelled_pixels(corpus):
    return sum((image.labels < 255).sum() for image in read_images(corpus, PROTOCOL, 0, 1))


def test_eight_devices_and_one_batch_1_and_7_give_identical_matrices(segmenter, corpus, reference):
    assert reference[0].sum() == reference[1].sum() == labelled_pixels(corpus)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    state, embeddings = replicate((segmenter.state, segmenter.embeddings), mesh)
    alone = dataclasses.replace(segmenter, mesh=mesh, state=state, embeddings=embeddings)
    np.testing.assert_array_equal(count(alone, corpus, 1), reference)
    np.testing.assert_array_equal(count(alone, corpus, 7), reference)


def test_larger_buckets_give_identical_matrices(segmenter, corpus, reference, monkeypatch):
    larger = lambda length, crop, stride: crop + (1 + (length - 1) // stride) * stride  # noqa: E731
    monkeypatch.setattr("eval.batches.padded_length", larger)
    monkeypatch.setattr("eval.batches._next_step", lambda length: 2 * length)
    np.testing.assert_array_equal(count(segmenter, corpus, 1), reference)


def test_the_model_is_compiled_once_for_all_sizes_and_runs(model, corpus, reference):
    before = programs.read_program._cache_size()
    assert before > 0
    evaluate_segmentation(model, corpus, PROTOCOL, Tokenizer(), windows_per_forward=2)
    assert programs.read_program._cache_size() == before


def test_a_model_sharded_over_devices_gives_identical_matrices(model, corpus, reference):
    graphdef, state = nnx.split(model)
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def shard(x):
        spec = P("fsdp") if x.ndim and x.shape[0] % 8 == 0 else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    sharded = nnx.merge(graphdef, jax.tree.map(shard, state))
    result = evaluate_segmentation(sharded, corpus, PROTOCOL, Tokenizer(), windows_per_forward=2)
    np.testing.assert_array_equal(result.confusion, reference[0])
    np.testing.assert_array_equal(result.group_confusion, reference[1])


def test_limit_takes_the_first_images_and_visits_see_every_label_map(model, corpus):
    seen = {}
    result = evaluate_segmentation(
        model,
        corpus,
        PROTOCOL,
        Tokenizer(),
        windows_per_forward=2,
        limit=3,
        visit=lambda prediction: seen.update({prediction.key: prediction.labels}),
    )
    images = list(read_images(corpus, PROTOCOL, 0, 1, limit=3))
    assert result.images == 3
    assert {image.key: image.labels.shape for image in images} == {
        key: labels.shape for key, labels in seen.items()
    }


def test_best_names_bound_the_result_and_one_window_groups_are_its_own(model, tmp_path):
    """With a single window at full size, the bound is the majority class of each group."""
    protocol, classes = WITHOUT_BACKGROUND, CLASSES[1:]
    corpus = write_corpus(tmp_path, make_images([(32, 32)] * 5, len(classes)), classes, False)
    seen = []
    result = evaluate_segmentation(
        model,
        corpus,
        protocol,
        Tokenizer(),
        windows_per_forward=2,
        visit=seen.append,
    )
    expected = np.zeros((len(classes), len(classes)), np.int64)
    truths = {image.key: image.labels for image in read_images(corpus, protocol, 0, 1)}
    for prediction in seen:
        truth = truths[prediction.key]
        for group in np.unique(prediction.groups):
            inside = truth[(prediction.groups == group) & (truth < len(classes))]
            counts = np.bincount(inside, minlength=len(classes))
            expected[:, counts.argmax()] += counts
    np.testing.assert_array_equal(result.group_confusion, expected)
    assert np.trace(result.group_confusion) >= np.trace(result.confusion)


def test_settings_that_do_not_fit_are_named(model, corpus):
    evaluate = functools.partial(evaluate_segmentation, tokenizer=Tokenizer())
    with pytest.raises(UserError, match="has_background"):
        evaluate(model, corpus, Protocol(32, 16, (150, 40)))
    with pytest.raises(UserError, match="patch size 8"):
        evaluate(model, corpus, Protocol(36, 16, (150, 40), True, 0.5))
    with pytest.raises(UserError, match="10 classes, got 1 names"):
        evaluate(model, corpus, PROTOCOL, classes=("sky",))
    with pytest.raises(UserError, match="gaps"):
        Protocol(32, 40)
    wrong = dataclasses.replace(corpus, metadata={**corpus.metadata, "classes": CLASSES[:4]})
    with pytest.raises(UserError, match="mask of 0000 holds"):
        evaluate(model, wrong, PROTOCOL)
    with pytest.raises(Stopped, match="run the same command again"), StopRequest() as stop:
        stop.requested = True
        evaluate(model, corpus, PROTOCOL, stop=stop)


_PROCESS = """
import pathlib
import numpy as np
from miniature import CLASSES, make_images, make_model, write_corpus
from cocu_jax.models.tokenizer import Tokenizer
from eval.segmentation import evaluate_segmentation
from test_segmentation_batching import PROTOCOL, SIZES
folder = pathlib.Path(sys.argv[2]) / sys.argv[1]
folder.mkdir()
pairs = make_images(SIZES, len(CLASSES))
pairs.append((pairs[0][0], np.full_like(pairs[0][1], 255)))
corpus = write_corpus(folder, pairs, CLASSES, has_background=True)
for images in (1, 7):
    result = evaluate_segmentation(
        make_model(), corpus, PROTOCOL, Tokenizer(), windows_per_forward=2, images_per_device=images
    )
    assert result.images == len(pairs)
    counts = np.stack([result.confusion, result.group_confusion])
    np.save(folder / f"counts-{images}.npy", counts)
"""


@pytest.mark.slow
def test_two_processes_give_identical_matrices(tmp_path, reference):
    run_two_processes(_PROCESS, str(tmp_path))
    for file in tmp_path.glob("*/counts-*.npy"):
        np.testing.assert_array_equal(np.load(file), reference)
    assert len(list(tmp_path.glob("*/counts-*.npy"))) == 4
