"""Embeddings in clip-retrieval's layout, from files of real CLIP vectors to the annotations."""

import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from curation_corpus import curate, example, examples_of, write_clip, write_corpus

from cocu_jax.curation.storage.given import open_given
from cocu_jax.curation.storage.staging import Staging
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus

IMAGES, WIDTH = 60, 24


def write_given(folder, keys, vectors, bounds=(0, 25, 40), column="key", nested=True, number="{}"):
    """Files as clip-retrieval writes them; `bounds` are the first rows of the files."""
    arrays, tables = (folder / "img_emb", folder / "metadata") if nested else (folder, folder)
    for path in (arrays, tables):
        path.mkdir(parents=True, exist_ok=True)
    for i, (start, stop) in enumerate(zip(bounds, (*bounds[1:], len(keys)), strict=True)):
        np.save(arrays / f"img_emb_{number.format(i)}.npy", vectors[start:stop])
        table = pyarrow.table({"caption": ["x"] * (stop - start), column: keys[start:stop]})
        pyarrow.parquet.write_table(table, tables / f"metadata_{number.format(i)}.parquet")


@pytest.fixture(scope="module")
def vectors():
    """Of unit norm, in a narrow cone as CLIP's are."""
    rows = np.random.default_rng(0).normal(size=(IMAGES, WIDTH)) + 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Images that nobody can read: they need not be."""
    examples = [example(i, image=b"") for i in range(IMAGES)]
    return open_corpus(write_corpus(tmp_path_factory.mktemp("data"), examples, 3), "train")


@pytest.fixture(scope="module")
def fields(corpus, tmp_path_factory):
    clip = write_clip(tmp_path_factory.mktemp("clip") / "tiny")
    return {"corpus.directory": corpus.directory, "clip": clip, "neighbours": 4, "page_images": 0}


def test_neighbours_are_those_of_the_given_vectors(fields, corpus, vectors, tmp_path):
    shuffled = np.random.default_rng(1).permutation(IMAGES)[:-2]  # two images were not embedded
    keys = [f"key-{i}" for i in shuffled]
    write_given(tmp_path / "given", keys, vectors[shuffled], number="{:04d}")
    summary = curate(fields, tmp_path / "run", image_embeddings=str(tmp_path / "given"))
    lost = sorted(set(range(IMAGES)) - set(shuffled.tolist()))
    assert sorted(summary["unreadable_images"]) == sorted(f"key-{i}" for i in lost)
    annotations = open_corpus(str(tmp_path / "run" / "annotations"), "train")
    found = examples_of(annotations)
    scores = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    scores[:, lost] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    numbers = [int(e["key"].split(b"-")[1]) for e in found]
    for number, annotation in zip(numbers, found, strict=True):
        near = [b"key-%d" % i for i in order[number]] if number not in lost else []
        assert annotation["neighbours"].tolist() == near


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_layouts_and_types(corpus, vectors, tmp_path, nested, dtype):
    paths = [f"/data/images/key-{i}.jpg" for i in range(IMAGES)]
    write_given(tmp_path, paths, vectors.astype(dtype), column="image_path", nested=nested)
    given = open_given(str(tmp_path))
    shards = [given.of_shard(corpus, shard) for shard in range(3)]
    keys = [s.keys.bytes(i) for s in shards for i in range(len(s.readable))]
    numbers = [int(key.split(b"-")[1]) for key in keys]
    found = np.concatenate([s.embeddings for s in shards])
    np.testing.assert_array_equal(found, vectors[numbers])
    examples = examples_of(corpus)
    concepts = [s.concepts.between(i, i + 1).values for s in shards for i in range(len(s.readable))]
    for e, of_row in zip(examples, concepts, strict=True):
        np.testing.assert_array_equal(of_row, e["caption_concepts"])


def test_embeddings_in_a_bucket_are_read_from_local_copies(corpus, vectors, bucket, tmp_path):
    write_given(bucket.folder / "given", [f"key-{i}" for i in range(IMAGES)], vectors)
    staging = Staging(str(tmp_path / "staging"), limit=2_000)  # one array at a time
    remote = open_given("gs://bucket/given", staging.local)
    local = open_given(str(bucket.folder / "given"))
    assert remote.fingerprint == local.fingerprint
    for shard in range(3):
        found, expected = (given.of_shard(corpus, shard) for given in (remote, local))
        np.testing.assert_array_equal(found.embeddings, expected.embeddings)
        assert found.readable.all()
    with pytest.raises(UserError, match="gs://bucket/other: no img_emb_"):
        open_given("gs://bucket/other", staging.local)


def test_rows_that_are_not_finite_are_unreadable(corpus, vectors, tmp_path):
    vectors = vectors.copy()
    vectors[3, 5], vectors[4], vectors[5, 6] = np.nan, 0, np.inf
    write_given(tmp_path, [f"key-{i}" for i in range(IMAGES)], vectors)
    shards = [open_given(str(tmp_path)).of_shard(corpus, shard) for shard in range(3)]
    keys = [s.keys.bytes(i) for s in shards for i in np.flatnonzero(~s.readable)]
    assert sorted(keys) == [b"key-3", b"key-4", b"key-5"]
    assert all(np.isfinite(s.embeddings).all() for s in shards)


def _no_files(folder):
    for path in folder.rglob("*.npy"):
        path.unlink()


def _no_table(folder):
    (folder / "metadata" / "metadata_1.parquet").unlink()


def _fewer_rows(folder):
    path = folder / "img_emb" / "img_emb_1.npy"
    np.save(path, np.load(path)[:-1])


def _integers(folder):
    np.save(folder / "img_emb" / "img_emb_0.npy", np.zeros((25, WIDTH), np.int32))


def _torn(folder):
    path = folder / "img_emb" / "img_emb_0.npy"
    path.write_bytes(path.read_bytes()[:300])


def _no_parquet(folder):
    (folder / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1 not really")


def _no_key(folder):
    table = pyarrow.table({"url": ["x"] * 25})
    pyarrow.parquet.write_table(table, folder / "metadata" / "metadata_0.parquet")


def _no_rows(folder):
    for number in range(3):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", np.zeros((0, WIDTH), np.float16))
        table = pyarrow.table({"key": pyarrow.array([], pyarrow.string())})
        pyarrow.parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


def _columns_first(folder):
    path = folder / "img_emb" / "img_emb_0.npy"
    np.save(path, np.asfortranarray(np.load(path)))


def _no_text(folder):
    table = pyarrow.table({"key": [{"number": i} for i in range(25)]})
    pyarrow.parquet.write_table(table, folder / "metadata" / "metadata_0.parquet")


def _twice(folder):
    table = pyarrow.table({"key": [f"key-{i}" for i in [0, *range(24)]]})
    pyarrow.parquet.write_table(table, folder / "metadata" / "metadata_0.parquet")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_no_files, "no img_emb_"),
        (_no_table, "there is no metadata_1.parquet"),
        (_fewer_rows, r"img_emb_1.npy: 14 rows, but metadata_1.parquet has 15"),
        (_integers, r"img_emb_0.npy: int32"),
        (_torn, "img_emb_0.npy: not an array"),
        (_no_parquet, "metadata_0.parquet: not a Parquet file"),
        (_no_key, "metadata_0.parquet: no column key or image_path among url"),
        (_no_rows, "its 3 arrays of embeddings have no rows"),
        (_columns_first, r"img_emb_0.npy: float16 \[25, 24\] by columns.*save them again"),
        (_no_text, r"metadata_0.parquet: column key is struct<.*>, not text"),
        (_twice, "key 'key-0' is there twice"),
    ],
)
def test_what_does_not_belong_together_is_one_line(vectors, tmp_path, break_it, message):
    write_given(tmp_path, [f"key-{i}" for i in range(IMAGES)], vectors)
    break_it(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        open_given(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_other_norms_widths_and_keys_are_refused(fields, corpus, vectors, tmp_path):
    keys = [f"key-{i}" for i in range(IMAGES)]
    write_given(tmp_path / "long", keys, 10 * vectors)
    with pytest.raises(UserError, match=r"row \d+ has norm 10.*divide them"):
        open_given(str(tmp_path / "long")).of_shard(corpus, 0)
    write_given(tmp_path / "others", [f"other-{i}" for i in range(IMAGES)], vectors)
    with pytest.raises(UserError, match="has none of the keys.*'key-.*'other-0'"):
        open_given(str(tmp_path / "others")).of_shard(corpus, 0)
    write_given(tmp_path / "wide", keys, np.concatenate([vectors, vectors], 1))
    with pytest.raises(UserError, match="of 48 numbers, but those of .*tiny have 24"):
        curate(fields, tmp_path / "run", image_embeddings=str(tmp_path / "wide"))


def test_a_small_copy_of_real_vectors(tmp_path):
    """Real CLIP vectors are taken as they are: norms within the rounding of float16."""
    stored = np.load(pathlib.Path(__file__).parent / "clip_vectors_small.npz")["web"]
    keys = [f"{i:09d}" for i in range(len(stored))]
    examples = [{**example(i, image=b""), "key": key} for i, key in enumerate(keys)]
    corpus = open_corpus(write_corpus(tmp_path / "data", examples, 1), "train")
    write_given(tmp_path / "given", keys, stored, bounds=(0, 50))
    shard = open_given(str(tmp_path / "given")).of_shard(corpus, 0)
    assert shard.readable.all()
    order = [int(shard.keys.bytes(i)) for i in range(len(keys))]
    np.testing.assert_array_equal(shard.embeddings, stored[order])
