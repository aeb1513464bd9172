"""Confusion matrices do not depend on how images are batched, padded and spread."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from etils import epath
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
from cocu_jax.stopping import Stopped
from eval import programs
from eval.geometry import count_windows
from eval.images import read_images
from eval.partial import PartialCounts
from eval.protocol import Protocol
from eval.segmentation import evaluate_segmentation
from eval.segmenter import make_segmenter, replicate
from eval.tiles import tile_shape

pytestmark = pytest.mark.usefixtures("small_tiles")

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


def count(segmenter, corpus):
    total, keys = 0, []
    images = read_images(corpus, PROTOCOL, 0, 1)
    for decoded in segmenter.decode(segmenter.encode(images)):
        total = total + np.asarray(decoded.matrices).sum(0)
        keys += [tile.image.key for tile, _ in decoded.tiles if tile.last]
    assert sorted(keys) == [f"{number:04d}" for number in range(corpus.num_examples)]
    return total


@pytest.fixture(scope="module")
def reference(segmenter, corpus):
    return count(segmenter, corpus)


def labelled_pixels(corpus):
    return sum((image.labels < 255).sum() for image in read_images(corpus, PROTOCOL, 0, 1))


def test_eight_devices_and_one_with_other_blocks_give_identical_matrices(
    segmenter, corpus, reference
):
    assert reference[0].sum() == reference[1].sum() == labelled_pixels(corpus)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    state, embeddings = replicate((segmenter.state, segmenter.embeddings), mesh)
    alone = dataclasses.replace(
        segmenter, mesh=mesh, state=state, embeddings=embeddings, windows_per_forward=7
    )
    np.testing.assert_array_equal(count(alone, corpus), reference)


def test_many_tiles_give_identical_matrices(segmenter, corpus, reference):
    """Photos larger than a tile, and images longer than a canvas."""
    tiles = dataclasses.replace(segmenter, tile_size=(16, 24))
    np.testing.assert_array_equal(count(tiles, corpus), reference)


def test_windows_are_computed_once_and_only_the_last_block_is_padded(
    segmenter, corpus, reference, monkeypatch
):
    computed = []
    program = programs.encode_program
    monkeypatch.setattr(
        "eval.segmenter.encode_program",
        lambda *args, **kw: computed.append(len(args[2])) or program(*args, **kw),
    )
    count(segmenter, corpus)
    needed = sum(
        count_windows(*image.image.shape[:2], PROTOCOL)
        for image in read_images(corpus, PROTOCOL, 0, 1)
    )
    block = 2 * len(jax.devices())
    assert needed <= sum(computed) < needed + block and set(computed) == {block}


def test_images_of_all_sizes_share_three_programs(model, corpus, reference):
    assert len({image.image.shape for image in read_images(corpus, PROTOCOL, 0, 1)}) > 3
    before = programs.encode_program._cache_size(), programs.decode_program._cache_size()
    assert min(before) > 0
    evaluate_segmentation(model, corpus, PROTOCOL, Tokenizer(), windows_per_forward=2)
    after = programs.encode_program._cache_size(), programs.decode_program._cache_size()
    assert after == before
    shapes = {tile_shape(PROTOCOL, portrait) for portrait in (False, True)}
    assert len(shapes) == 2


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


def test_the_group_bound_names_every_group_by_majority(model, tmp_path):
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


def test_settings_that_contradict_the_dataset_are_refused(model, corpus):
    evaluate = functools.partial(
        evaluate_segmentation, tokenizer=Tokenizer(), windows_per_forward=2
    )
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


def test_a_stopped_evaluation_resumes(model, corpus, reference, tmp_path):
    """With small tiles, the run is stopped while an image is only partly counted."""
    file = epath.Path(tmp_path / "part.npz")

    def run(stop_after=None, identity="a"):
        seen = []
        partial = PartialCounts(file, {"of": identity})
        result = evaluate_segmentation(
            model,
            corpus,
            PROTOCOL,
            Tokenizer(),
            windows_per_forward=2,
            stop=lambda images: stop_after is not None and len(seen) >= stop_after,
            partial=partial,
            visit=lambda prediction: seen.append(prediction.key),
            tile_size=(16, 24),
        )
        return result, seen

    with pytest.raises(Stopped, match="run the same command again"):
        run(stop_after=3)
    assert file.exists()
    result, seen = run()
    assert 0 < len(seen) < corpus.num_examples
    np.testing.assert_array_equal(result.confusion, reference[0])
    np.testing.assert_array_equal(result.group_confusion, reference[1])
    assert len(run(identity="b")[1]) == corpus.num_examples
    file.write_bytes(file.read_bytes()[:100])
    assert len(run()[1]) == corpus.num_examples


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
for windows in (1, 2):
    result = evaluate_segmentation(
        make_model(), corpus, PROTOCOL, Tokenizer(), windows_per_forward=windows
    )
    assert result.images == len(pairs)
    counts = np.stack([result.confusion, result.group_confusion])
    np.save(folder / f"counts-{windows}.npy", counts)
"""


@pytest.mark.slow
def test_two_processes_give_identical_matrices(tmp_path, reference):
    run_two_processes(_PROCESS, str(tmp_path))
    for file in tmp_path.glob("*/counts-*.npy"):
        np.testing.assert_array_equal(np.load(file), reference)
    assert len(list(tmp_path.glob("*/counts-*.npy"))) == 4
