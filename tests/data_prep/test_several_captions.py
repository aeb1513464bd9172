"""Several captions of an image: one example that has them all, of which training draws one."""

import collections
import itertools
import json

import numpy as np
import pytest
import raw_corpora as raw
from ml_collections import ConfigDict
from prepared_corpora import GALLERY, examples, prepare, report
from scipy import stats

from cocu_jax.input.corpus import open_corpus
from cocu_jax.input.pipeline import train_batches
from cocu_jax.models.tokenizer import Tokenizer
from data_prep.__main__ import main
from data_prep.gallery.gallery import Gallery

CAPTIONS = [
    "a dog outside",
    "the cat of number {}",
    "a horse and a dog run",
    "somebody, number {}, stands there",
    "two dogs play",
]
TOKENIZER = Tokenizer()


def captions_of(number: int) -> list[str]:
    return [caption.format(number) for caption in CAPTIONS]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four images as Kaggle's Flickr8k has them; the fourth has one caption."""
    root = tmp_path_factory.mktemp("flickr8k")
    (root / "Images").mkdir()
    lines = ["image,caption"]
    for number in range(4):
        (root / "Images" / f"100{number}_ab.jpg").write_bytes(raw.picture(number))
        for caption in captions_of(number)[: 5 if number < 3 else 1]:
            text = f'"{caption}"' if "," in caption else caption
            lines.append(f"100{number}_ab.jpg,{text}")
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    flags = f"--sources {root}/captions.txt --images {root}/Images --data_dir {root}/tfds"
    gallery = root / "gallery.json"
    GALLERY.save(str(gallery))
    main(f"image_text custom {flags} --workers 1 --order source --gallery {gallery}".split())
    return str(root / "tfds/image_text/custom/1.0.0")


def test_all_captions_are_kept_and_the_image_once(corpus):
    assert open_corpus(corpus, "train").num_examples == 4
    for number, example in enumerate(examples(corpus)):
        own = captions_of(number)[: 5 if number < 3 else 1]
        tokens = [[t for t in row if t] for row in TOKENIZER(own).tolist()]
        assert example["image"] == raw.picture(number)
        assert example["caption"].decode().split("\n") == own
        assert example["caption_tokens"].tolist() == sum(tokens, [])
        assert example["caption_lengths"].tolist() == [*map(len, tokens)]
    found = report(corpus)
    assert (found["kept"], found["captions"], found["dropped"]) == (4, 16, {})


def test_concepts_are_those_of_all_captions(corpus):
    pooled = [
        [GALLERY.concepts[i] for i in example["caption_concepts"]] for example in examples(corpus)
    ]
    assert pooled == [["dog", "cat", "horse", "dogs"]] * 3 + [["dog"]]


def test_training_draws_one_caption_an_epoch_with_equal_chances(corpus):
    data = ConfigDict(
        dict(
            corpora=(ConfigDict(dict(directory=corpus, split="train")),),
            concepts="none",
            caption_length=16,
            image_size=16,
            augment="none",
            lanes=1,
            window=4,
        )
    )
    epochs = 60

    def drawn(start=0, seed=0):
        batches = train_batches(data, 4, seed=seed, start_step=start, with_keys=True)
        for epoch, batch in enumerate(itertools.islice(batches, epochs - start), start):
            for key, row in zip(batch["key"], batch["caption"], strict=True):
                yield epoch, key.decode(), tuple(row.tolist())

    counts = collections.defaultdict(collections.Counter)
    every = list(drawn())
    for _, key, row in every:
        counts[key][row] += 1
    for number in range(4):
        own = captions_of(number)[: 5 if number < 3 else 1]
        rows = [tuple(row) for row in TOKENIZER(own, 16).tolist()]
        seen = counts[f"100{number}_ab.jpg"]
        assert set(seen) == set(rows)
        assert stats.chisquare([seen[row] for row in rows]).pvalue > 1e-4 or len(rows) == 1
    assert list(drawn(start=50)) == [row for row in every if row[0] >= 50]


def test_gallery_counts_every_caption(corpus, tmp_path, capsys):
    output = tmp_path / "gallery.json"
    main(f"gallery --corpus {corpus} --output {output} --min_count 3 --size 10".split())
    assert "dog" in Gallery.load(str(output)).concepts


def test_captions_of_an_image_may_stand_anywhere_and_repeat(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(raw.picture(ord(name)))
    rows = [("a", "a dog"), ("b", "a cat"), ("a", "the horse"), ("b", "a cat"), ("a", "dog")]
    lines = [json.dumps({"image": f"{name}.jpg", "caption": text}) for name, text in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    directory = prepare(tmp_path, tmp_path / "list.jsonl")
    assert [e["caption"] for e in examples(directory)] == [b"a dog\nthe horse", b"a cat"]
    assert report(directory)["dropped"] == {"repeated caption": 1, "caption under two words": 1}
    assert np.array_equal(examples(directory)[1]["caption_lengths"], [4])
