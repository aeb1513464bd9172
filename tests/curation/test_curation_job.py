import contextlib
import errno
import io
import json
import os
import pathlib
import shutil
import signal

import curation_oracle as oracle
import numpy as np
import pyarrow.parquet
import pytest
from curation_corpus import GALLERY, curate, encoded, example, examples_of, write_clip, write_corpus
from PIL import Image

from cocu_jax.curation import job
from cocu_jax.curation.embed import Encoder
from cocu_jax.curation.storage.saved_search import SavedSearch
from cocu_jax.curation.storage.shard_files import open_arrays
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from cocu_jax.input.sources import open_annotations
from cocu_jax.stopping import Stopped

IMAGES, SHARDS = 48, 6
DAMAGED = {7: b"", 20: encoded(np.zeros((9, 9, 3), np.uint8))[:-30], 21: b"RIFF\0\0\0\0WEBPVP8 "}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    examples = [example(i, DAMAGED.get(i)) for i in range(IMAGES)]
    examples[3] = example(3, caption="nul \0 in <b>it</b>")
    examples[4] = example(4, caption="long " * 20_000)
    examples[5] = example(5, caption="", concepts=[])
    examples[9]["image"] = examples[8]["image"]  # a duplicate
    folder = tmp_path_factory.mktemp("data")
    return open_corpus(write_corpus(folder, examples, SHARDS, empty=2), "train")


@pytest.fixture(scope="module")
def fields(corpus, tmp_path_factory):
    """Config fields of a small run, flattened."""
    clip = write_clip(tmp_path_factory.mktemp("clip") / "tiny")
    return {
        "corpus.directory": corpus.directory,
        "clip": clip,
        "neighbours": 5,
        "capacity": 8,
        "batch_size": 2,
        "page_images": 4,
        "search_rows": 20,
    }


@pytest.fixture(scope="module")
def finished(fields, tmp_path_factory):
    """Work directory of an undisturbed run, and its summary."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, curate(fields, workdir)


def result(workdir):
    """Bytes of all that a run hands over; hidden files are what a killed writer left."""
    folders = [pathlib.Path(workdir) / name for name in ("annotations", "parquet")]
    files = [path for folder in folders for path in sorted(folder.glob("[!.]*"))]
    return {path.name: path.read_bytes() for path in files}


def embedded(workdir, corpus):
    """Embeddings of images and concepts, as the run stored them."""
    (root,) = (pathlib.Path(workdir) / "embeddings").iterdir()
    files = sorted((root / corpus.fingerprint).iterdir())
    images = np.concatenate([open_arrays(path)["embeddings"] for path in files])
    return images, open_arrays(root / "concepts.safetensors")["embeddings"]


def test_annotations_equal_the_method_one_image_at_a_time(finished, corpus, fields):
    workdir, _ = finished
    images, texts = embedded(workdir, corpus)
    source = examples_of(corpus)
    concepts = [e["caption_concepts"].tolist() for e in source]
    row_of = {e["key"]: row for row, e in enumerate(source)}
    present = np.flatnonzero((images != 0).any(1))
    assert sorted(set(range(IMAGES)) - set(present.tolist())) == sorted(DAMAGED)
    annotations = examples_of(open_annotations(str(workdir / "annotations"), corpus))
    for i, (anchor, found) in enumerate(zip(source, annotations, strict=True)):
        assert found["key"] == anchor["key"]
        near = [row_of[key] for key in found["neighbours"].tolist()]
        if i in DAMAGED:
            assert not near
        else:
            truth = present[oracle.nearest(images[i], images[present], fields["neighbours"])]
            products = images.astype(np.float64) @ images[i].astype(np.float64)
            # A float32 sum orders products that are nearer to each other than this as it happens.
            np.testing.assert_allclose(products[near], products[truth], rtol=0, atol=1e-6)
            assert len(set(near)) == len(near) and set(near) <= set(present.tolist())
        expected = oracle.ranked(images[i], near, images, concepts, texts, GALLERY, capacity=8)
        assert found["concepts"].tolist() == [concept for concept, _, _ in expected]
        np.testing.assert_allclose(found["scores"], [s for _, s, _ in expected], rtol=1e-4)
        clusters = found["clusters"].tolist()
        size = len(expected)
        assert set(clusters) == (set(range(-(-size // 2))) if size > 2 else {-1} if size else set())


def test_embeddings_equal_torch_clip(finished, corpus, fields):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(fields["clip"]).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(fields["clip"])
    tokenizer = transformers.CLIPTokenizer.from_pretrained(fields["clip"])
    images, texts = embedded(finished[0], corpus)
    first = Image.open(io.BytesIO(examples_of(corpus)[0]["image"]))
    prompts = [f"a photo of a {concept}" for concept in GALLERY]
    with torch.no_grad():
        pixels = processor(first, return_tensors="pt")["pixel_values"]
        image = model.get_image_features(pixel_values=pixels).pooler_output[0]
        tokens = tokenizer(prompts, padding=True, return_tensors="pt")
        text = model.get_text_features(**tokens).pooler_output
    # float16 storage keeps 3 digits; the noise image is resized with a rounding less than Pillow's.
    np.testing.assert_allclose(images[0], image / image.norm(), atol=1e-2)
    np.testing.assert_allclose(texts, text / text.norm(dim=-1, keepdim=True), atol=1e-3)


def test_damaged_images_are_counted_and_listed_by_key(finished):
    workdir, summary = finished
    assert summary["unreadable_images"] == [f"key-{i}" for i in sorted(DAMAGED)]
    text = (workdir / "summary.txt").read_text()
    assert "unreadable images          3" in text
    assert all(f'unreadable: "key-{i}"' in text for i in DAMAGED)


def test_summary_counts_what_the_annotations_say(finished, corpus):
    workdir, summary = finished
    annotations = examples_of(open_corpus(str(workdir / "annotations"), "train"))
    captions = [set(e["caption_concepts"].tolist()) for e in examples_of(corpus)]
    found = [e["concepts"].tolist() for e in annotations]
    sizes = [len(f) for f in found]
    assert summary["images"] == IMAGES
    assert summary["mean_concepts_per_image"] == pytest.approx(np.mean(sizes))
    assert summary["share_without_caption_concepts"] == pytest.approx(
        np.mean([not c for c in captions])
    )
    added = [c for f, caption in zip(found, captions, strict=True) for c in f if c not in caption]
    for name, concepts in (("most_frequent", sum(found, [])), ("most_added", added)):
        counts = {GALLERY[c]: concepts.count(c) for c in set(concepts)}
        assert summary[name] == counts
    assert sum(summary["concepts_per_image"].values()) == IMAGES
    assert summary == json.loads((workdir / "summary.json").read_text())


def test_parquet_says_the_same_as_the_dataset(finished):
    workdir, _ = finished
    rows = pyarrow.parquet.read_table(workdir / "parquet").to_pylist()
    annotations = examples_of(open_corpus(str(workdir / "annotations"), "train"))
    for row, found in zip(rows, annotations, strict=True):
        assert row["key"] == found["key"].decode()
        assert row["concept_ids"] == found["concepts"].tolist()
        assert row["concepts"] == [GALLERY[c] for c in found["concepts"]]
        assert row["scores"] == found["scores"].tolist()
        assert row["clusters"] == found["clusters"].tolist()
        assert row["neighbours"] == [key.decode() for key in found["neighbours"]]


def test_page_shows_sampled_images_with_escaped_captions(fields, finished, tmp_path):
    embeddings = str(finished[0] / "embeddings")
    curate(fields, tmp_path, page_images=IMAGES, embeddings=embeddings)
    page = (tmp_path / "examples.html").read_text()
    assert page.count("<article>") == IMAGES
    assert "nul \N{REPLACEMENT CHARACTER} in &lt;b&gt;it&lt;/b&gt;" in page
    assert page.count("unreadable image") == len(DAMAGED)
    assert "long " * 100 not in page
    assert result(tmp_path) == result(finished[0])


def test_interrupted_anywhere_resumes_to_identical_bytes(fields, finished, tmp_path, monkeypatch):
    """Each run dies, without cleaning up, in the middle of its n-th write."""

    class Killed(BaseException):
        pass

    replace, writes_left = os.replace, 0

    def dying_replace(aside, path):
        nonlocal writes_left
        writes_left -= 1
        if writes_left < 0:
            os.truncate(aside, os.path.getsize(aside) // 2)
            os.rename(aside, f"{aside}.tmp")  # so that nothing cleans it up
            raise Killed
        replace(aside, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying_replace)
        for survived in (0, 3, 7, 6, 9):
            writes_left = survived
            with contextlib.suppress(Killed):
                curate(fields, tmp_path)
                break
    curate(fields, tmp_path)
    assert result(tmp_path) == result(finished[0])


def test_sigterm_finishes_the_shard_and_says_how_to_go_on(fields, finished, tmp_path, monkeypatch):
    embed = job.embed_shards

    def interrupted(*args):
        for embedded in embed(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            yield embedded

    with monkeypatch.context() as patch:
        patch.setattr(job, "embed_shards", interrupted)
        with pytest.raises(Stopped, match="run the same command"):
            curate(fields, tmp_path)
    assert len(list(tmp_path.glob("embeddings/*/*/*.safetensors"))) == 1
    curate(fields, tmp_path)
    assert result(tmp_path) == result(finished[0])


def test_sigterm_in_a_search_keeps_the_turns_that_are_done(fields, finished, tmp_path, monkeypatch):
    embeddings = {"embeddings": str(finished[0] / "embeddings")}
    cut_up = {**fields, **embeddings, "tile_rows": 1, "search_rows": IMAGES}
    turns, offer, stop_at = [], SavedSearch.offer, None

    def counted(self, state, now):
        turns.append(state().turn)
        if len(turns) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        offer(self, state, now)

    monkeypatch.setattr(SavedSearch, "offer", counted)
    curate(cut_up, tmp_path / "whole")
    whole = turns.copy()
    turns.clear()
    stop_at = 2
    with pytest.raises(Stopped, match="searching.*run the same command"):
        curate(cut_up, tmp_path / "stopped")
    assert list((tmp_path / "stopped" / "searches").iterdir())
    assert not list((tmp_path / "stopped").glob("reports/*"))
    stop_at = None
    curate(cut_up, tmp_path / "stopped")
    assert len(whole) > 3 and turns == whole  # none again
    assert not list((tmp_path / "stopped" / "searches").iterdir())
    assert result(tmp_path / "stopped") == result(tmp_path / "whole") == result(finished[0])


@pytest.mark.parametrize(
    "value", [np.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (np.inf, -np.inf, 0))]
)
def test_an_embedding_without_direction_is_an_unreadable_image(
    fields, finished, corpus, tmp_path, monkeypatch, value
):
    """Of the damaged images and one more; neighbours and concepts are as if that one were gone."""
    images, seen = Encoder.images, 0

    def broken(self, pixels):
        nonlocal seen
        embeddings = np.array(images(self, pixels))
        for row in range(len(pixels)):
            if seen + row == 10:
                embeddings[row, :: 1 if value == 0 else 5] = value
        seen += len(pixels)
        return embeddings

    monkeypatch.setattr(Encoder, "images", broken)
    summary = curate(fields, tmp_path)
    assert summary["unreadable_images"] == [f"key-{i}" for i in sorted([*DAMAGED, 10])]
    assert summary["unreadable_count"] == len(DAMAGED) + 1
    ours, theirs = (
        examples_of(open_annotations(str(folder / "annotations"), corpus))
        for folder in (tmp_path, finished[0])
    )
    assert ours[10]["neighbours"].size == ours[10]["concepts"].size == 0
    for mine, their in zip(ours, theirs, strict=True):
        assert b"key-10" not in mine["neighbours"]
        assert (mine["concepts"] < len(GALLERY)).all() and np.isfinite(mine["scores"]).all()
        if mine["key"] != b"key-10" and b"key-10" not in their["neighbours"]:
            np.testing.assert_array_equal(mine["concepts"], their["concepts"])
            np.testing.assert_array_equal(mine["neighbours"], their["neighbours"])


def test_corrupted_finished_files_are_redone(fields, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    damaged = [
        next(tmp_path.glob("embeddings/*/*/00002.safetensors")),
        next(tmp_path.glob("embeddings/*/concepts.safetensors")),
        next(tmp_path.glob("annotations/*00003-of-*")),
        next(tmp_path.glob("parquet/*00001-of-*")),
        tmp_path / "reports" / "00004.json",
        tmp_path / "reports" / "tally-00000.json",
        tmp_path / "annotations" / "dataset_info.json",
    ]
    before = [path.read_bytes() for path in damaged]
    for path, content in zip(damaged, before, strict=True):
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    curate(fields, tmp_path)
    assert [path.read_bytes() for path in damaged] == before
    assert result(tmp_path) == result(finished[0])


def test_full_disk_is_one_clear_error_and_leaves_nothing_half_written(
    fields, finished, tmp_path, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left.*free some space.*to continue"):
            curate(fields, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    curate(fields, tmp_path)
    assert result(tmp_path) == result(finished[0])


def test_several_index_corpora_are_joined(fields, corpus, tmp_path):
    others = [
        write_corpus(tmp_path / str(n), [example(100 * n + i) for i in range(20)], shards=2)
        for n in (1, 2)
    ]
    index = tuple({"directory": directory, "split": "train"} for directory in others)
    workdir = tmp_path / "run"
    curate(fields, workdir, index=index, match="substring")
    found = examples_of(open_annotations(str(workdir / "annotations"), corpus))
    known = {e["key"] for directory in others for e in examples_of(open_corpus(directory, "train"))}
    retrieved = {key for e in found for key in e["neighbours"]}
    assert retrieved <= known
    assert {len(key) for key in retrieved} == {len(b"key-1xx")}
    assert any(b"key-1" in key for key in retrieved) and any(b"key-2" in key for key in retrieved)


def test_index_may_be_parts_of_the_corpus_without_embedding_again(
    fields, finished, corpus, tmp_path
):
    parts = ("train[:5shard:3]", "train[5shard:6shard]")  # shards 0, 3 and 5
    index = tuple({"directory": corpus.directory, "split": part} for part in parts)
    embeddings = tmp_path / "embeddings"
    shutil.copytree(finished[0] / "embeddings", embeddings)
    before = sorted(embeddings.rglob("*"))
    curate(fields, tmp_path / "run", index=index, embeddings=str(embeddings))
    assert sorted(embeddings.rglob("*")) == before
    images, _ = embedded(finished[0], corpus)
    keys = [e["key"] for e in examples_of(corpus)]
    shard = np.repeat(np.arange(corpus.num_shards), corpus.shard_lengths)
    rows = np.flatnonzero(np.isin(shard, [0, 3, 5]) & (images != 0).any(1))
    annotations = examples_of(open_annotations(str(tmp_path / "run" / "annotations"), corpus))
    for i, found in enumerate(annotations):
        near = rows[oracle.nearest(images[i], images[rows], 5)] if i not in DAMAGED else []
        assert found["neighbours"].tolist() == [keys[row] for row in near]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus.directory": ""}, "config.corpus.directory is empty"),
        ({"corpus.directory": "/nowhere"}, "no TFDS dataset at /nowhere"),
        ({"clip": ""}, "config.clip is empty"),
        ({"match": "fuzzy"}, "config.match='fuzzy'"),
        ({"prompt": "a photo"}, "config.prompt"),
        ({"prompt": "a {} of {}"}, "one {} and no other braces"),
        ({"neighbours": 0}, "config.neighbours=0"),
        ({"recall": 1.5}, "config.recall=1.5"),
        ({"share": "2/2"}, "config.share='2/2'"),
    ],
)
def test_bad_settings_are_one_line(fields, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        curate(fields, tmp_path, **changes)


def test_an_image_twice_in_the_index_is_refused(fields, tmp_path):
    parts = ("train[:60%]", "train[40%:]")
    index = tuple({"directory": fields["corpus.directory"], "split": part} for part in parts)
    with pytest.raises(UserError, match="config.index: two entries share shards"):
        curate(fields, tmp_path, index=index)


def test_another_gallery_is_refused(fields, tmp_path):
    other = write_corpus(tmp_path / "other", [example(0, concepts=[0])], 1, gallery=["cat"])
    with pytest.raises(UserError, match="another concept gallery"):
        curate(fields, tmp_path / "run", index=({"directory": other, "split": "train"},))
