"""Raw image-text corpora become TFDS datasets, whatever form they come in."""

import bz2
import io

import numpy as np
import pytest
import raw_corpora as raw
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from prepared_corpora import GALLERY, examples, keys_and_captions, prepare, report

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.units import Recipe


def test_tars_become_shards_with_tokens_concepts_and_the_original_bytes(tmp_path):
    for number in range(3):
        raw.webdataset(tmp_path / f"{number:05d}.tar", range(4 * number, 4 * number + 4))
    directory = prepare(tmp_path, tmp_path / "{00000..00002}.tar")
    corpus = open_corpus(directory, "train")
    assert corpus.shard_lengths == (4, 4, 4)
    assert corpus.metadata["gallery"] == list(GALLERY.concepts)
    found = examples(directory)
    tokens = Tokenizer()(f"a dog number {i}" for i in range(12))
    for number, example in enumerate(found):
        assert example["key"].decode() == f"{number:09d}"
        assert example["image"] == raw.picture(number)
        assert example["caption_tokens"].tolist() == [t for t in tokens[number] if t]
        assert example["caption_concepts"].tolist() == [GALLERY.concepts.index("dog")]
    assert report(directory)["kept"] == 12
    assert report(directory)["dropped"] == {}
    assert not list((tmp_path / "tfds").rglob("*unfinished*"))
    loaded = tfds.builder_from_directory(directory).as_dataset(split="train")
    assert next(iter(loaded))["image"].shape == (32, 48, 3)
    for record in tf.data.TFRecordDataset(corpus.shard_files).as_numpy_iterator():
        example = tf.train.Example.FromString(record)
        assert record == example.SerializeToString(deterministic=True)  # whichever process wrote it
    by_name = tfds.load("image_text", data_dir=str(tmp_path / "tfds"), split="train")
    assert len(by_name) == 12


def test_tars_may_hold_any_kind_of_image_and_caption(tmp_path):
    members = [
        ("./deep/a.png", raw.picture(0, kind="PNG")),
        ("./deep/a.text", b"a dog in a PNG"),
        ("b.v2.WEBP", b"not of this pair: the ending is v2.webp"),
        ("b.webp", raw.picture(1, kind="WEBP")),
        ("b.json", b'{"caption": "a dog in a WebP", "url": "x"}'),
        ("b.cls", b"7"),
        ("c.jpeg", raw.picture(2)),
        ("c.caption", b"a dog in a JPEG"),
        ("c.json", b'{"caption": "the text file goes first"}'),
    ]
    raw.write_tar(tmp_path / "0.tgz", members, "w:gz")
    directory = prepare(tmp_path, tmp_path / "0.tgz")
    expected = [
        ("deep/a", "a dog in a PNG"),
        ("b", "a dog in a WebP"),
        ("c", "a dog in a JPEG"),
    ]
    assert keys_and_captions(directory) == expected
    assert all(Image.open(io.BytesIO(e["image"])).format == "JPEG" for e in examples(directory))


@pytest.mark.parametrize("write", [raw.tfrecord, raw.parquet])
def test_img2dataset_files_are_read(tmp_path, write):
    ending = write.__name__
    write(tmp_path / f"00000.{ending}", range(5))
    write(tmp_path / f"00001.{ending}", range(5, 7))
    directory = prepare(tmp_path, tmp_path / f"*.{ending}")
    assert [key for key, _ in keys_and_captions(directory)] == [f"{n:09d}" for n in range(7)]
    assert [example["image"] for example in examples(directory)] == [
        raw.picture(n) for n in range(7)
    ]


def test_yfcc_zips_are_joined_with_the_table(tmp_path):
    table = [
        raw.yfcc_line(1, "A dog", "On the beach."),
        raw.yfcc_line(2, "No+plus", ""),
        raw.yfcc_line(3, "", ""),
        raw.yfcc_line(4, "Not in subset", ""),
    ]
    (tmp_path / "table.bz2").write_bytes(bz2.compress("\n".join(table).encode()))
    (tmp_path / "subset.tsv").write_text("".join(f"{n}\t{9000 + n}\t{n:032x}\n" for n in (3, 2, 1)))
    raw.write_zip(
        tmp_path / "000.zip",
        [
            ("000/readme.txt", b"hello"),
            (f"000/{1:032x}.jpg", raw.picture(1)),  # by hash
            ("000/9002.jpg", raw.picture(2)),  # by id
            ("000/9003.jpg", raw.picture(3)),
            ("000/9004.jpg", raw.picture(4)),
        ],
    )
    yfcc = (str(tmp_path / "table.bz2"), str(tmp_path / "subset.tsv"))
    directory = prepare(tmp_path, tmp_path / "000.zip", yfcc=yfcc)
    not_listed = "photo without caption in YFCC's table, or not in the subset"
    dropped = {not_listed: 2, "no photo by its ending": 1, "caption under two words": 1}
    places = {not_listed: "9003.jpg", "no photo by its ending": "readme.txt"}
    places["caption under two words"] = "9002.jpg"
    assert report(directory) == {
        "units": 1,
        "kept": 1,
        "captions": 1,
        "bytes": report(directory)["bytes"],
        "dropped": dropped,
        "first dropped": {why: f"{tmp_path}/000.zip: 000/{name}" for why, name in places.items()},
        "damaged units": [],
    }
    assert keys_and_captions(directory) == [("9001", "A dog. On the beach")]


def test_lists_and_folders_are_read(tmp_path):
    images = tmp_path / "images" / "deep"
    images.mkdir(parents=True)
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(raw.picture(number))
    (images / "0.txt").write_text("a dog outside\n")
    (images / "1.json").write_text('{"caption": "a cat inside"}')
    directory = prepare(tmp_path / "folder", tmp_path / "images")
    assert keys_and_captions(directory) == [("deep/0", "a dog outside"), ("deep/1", "a cat inside")]
    assert report(directory)["dropped"] == {"no caption": 2}

    lists = {
        "pairs.csv": 'filepath,title\nimages/deep/0.jpg,"a dog, outside"\n',
        "pairs.tsv": 'id\timage\tcaption\n7\timages/deep/1.jpg\ta "cat" inside\n',
        "pairs.jsonl": '{"path": "images/deep/2.jpg", "text": "a third picture"}\n\n',
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
    directory = prepare(tmp_path / "lists", *(tmp_path / name for name in lists))
    assert keys_and_captions(directory) == [
        ("images/deep/0.jpg", "a dog, outside"),
        ("7", 'a "cat" inside'),
        ("images/deep/2.jpg", "a third picture"),
    ]


def test_files_in_buckets_are_read(tmp_path, bucket):
    for name in ("more", "part1"):
        (bucket.folder / name).mkdir()
    for number, name in enumerate(("a0.tar", "a1.tar", "b.tar", "more/c.tar", "part1/d.tar")):
        raw.webdataset(bucket.folder / name, [number])
    raw.parquet(bucket.folder / "e.parquet", [5])
    names = ("a{0..1}.tar", "b*.tar", "more", "part?/*.tar", "e.parquet")
    directory = prepare(tmp_path, *(f"gs://bucket/{name}" for name in names))
    assert [key for key, _ in keys_and_captions(directory)] == [f"{n:09d}" for n in range(6)]
    with pytest.raises(UserError, match="gs://bucket/x.tar: no such file"):
        prepare(tmp_path / "2", "gs://bucket/x.tar")


def test_long_caption_keeps_its_end_token(tmp_path):
    raw.webdataset(tmp_path / "0.tar", [0], caption="dog " * 200)
    [example] = examples(prepare(tmp_path, tmp_path / "0.tar"))
    assert len(example["caption_tokens"]) == 77
    assert example["caption_tokens"][[0, -1]].tolist() == [SOT, EOT]


def test_pictures_are_made_square(tmp_path):
    raw.webdataset(tmp_path / "0.tar", [0])
    shapes = {}
    for resize in ("pad", "resize"):
        recipe = Recipe(ImageRecipe(resize, 64), GALLERY)
        [example] = examples(prepare(tmp_path / resize, tmp_path / "0.tar", recipe=recipe))
        shapes[resize] = np.asarray(Image.open(io.BytesIO(example["image"])))
        assert shapes[resize].shape == (64, 64, 3)
    assert shapes["pad"][:8].min() > 240
    assert shapes["resize"][:8].min() < 240
