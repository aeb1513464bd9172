"""Raw image-text corpora become TFDS datasets, whatever form they come in."""

import bz2
import io
import json
import re
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import raw_corpora as raw
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus, read_shard
from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer
from cocu_jax.stopping import Stopped
from data_prep.gallery import Gallery
from data_prep.image_text import Preparation, prepare_image_text
from data_prep.image_text_images import ImageRecipe
from data_prep.image_text_units import Recipe, UnitPreparer

GALLERY = Gallery.build(["dog", "cat", "horse", "person"])


def prepare(tmp_path, *sources, recipe=None, **options) -> str:
    recipe = recipe or Recipe(ImageRecipe(), GALLERY)
    preparation = Preparation(recipe=recipe, sources=tuple(map(str, sources)), **options)
    return prepare_image_text("custom", preparation, str(tmp_path / "tfds"))


def examples(directory: str, split="train") -> list[dict]:
    corpus = open_corpus(directory, split)
    return [
        example
        for shard in range(corpus.num_shards)
        for example in read_shard(corpus, shard).as_numpy_iterator()
    ]


def report(directory: str) -> dict:
    return json.loads((epath.Path(directory) / "report.json").read_text())


def keys_and_captions(directory: str) -> list[tuple[str, str]]:
    return [(e["key"].decode(), e["caption"].decode()) for e in examples(directory)]


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
    assert report(directory) == {
        "units": 1,
        "kept": 1,
        "bytes": report(directory)["bytes"],
        "dropped": {"caption under two words": 1},
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


def test_every_drop_is_counted_by_its_reason(tmp_path):
    dog = b"a dog outside"
    whole = raw.picture(0)
    raw.write_tar(
        tmp_path / "a.tar",
        [
            ("good.jpg", whole),
            ("good.txt", dog),
            ("short.jpg", whole),
            ("short.txt", b" dog - "),
            ("silent.jpg", whole),
            ("blind.txt", dog),
            ("cut.jpg", whole[: len(whole) // 2]),
            ("cut.txt", dog),
            ("noise.jpg", b"\x00" * 100),
            ("noise.txt", dog),
        ],
    )
    raw.write_tar(
        tmp_path / "b.tar",
        [("good.jpg", raw.picture(1)), ("good.txt", dog), ("x.jpg", whole), ("x.txt", dog)],
    )
    directory = prepare(tmp_path, tmp_path / "a.tar", tmp_path / "b.tar")
    assert report(directory)["dropped"] == {
        "undecodable image": 2,
        "caption under two words": 1,
        "no caption": 1,
        "no image": 1,
        "duplicate key": 1,
    }
    assert [(e["key"], e["image"]) for e in examples(directory)] == [
        (b"good", whole),
        (b"x", whole),
    ]
    qualified = Recipe(ImageRecipe(), GALLERY, qualify_keys=True)
    directory = prepare(tmp_path / "2", tmp_path / "a.tar", tmp_path / "b.tar", recipe=qualified)
    assert [key for key, _ in keys_and_captions(directory)] == ["a/good", "b/good", "b/x"]


def test_damaged_file_gives_what_can_be_read_and_is_named(tmp_path):
    raw.webdataset(tmp_path / "0.tar", range(8))
    with tarfile.open(tmp_path / "0.tar") as tar:  # cut in the middle of the sixth image
        image = [member for member in tar if member.name.endswith(".jpg")][5]
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[: image.offset_data + image.size // 2])
    raw.webdataset(tmp_path / "1.tar", range(8, 10))
    (tmp_path / "2.tar").write_bytes(b"not a tar")
    directory = prepare(tmp_path, tmp_path / "*.tar")
    damaged = report(directory)["damaged units"]
    assert [name.split(": ")[0] for name in damaged] == [
        str(tmp_path / n) for n in ("0.tar", "2.tar")
    ]
    corpus = open_corpus(directory, "train")
    assert corpus.num_shards == 2
    assert 2 <= corpus.shard_lengths[0] < 8
    assert corpus.shard_lengths[1] == 2


@pytest.mark.parametrize(
    ("damage", "kept", "words"),
    [
        (lambda content, end: content[:end], 4, "no end mark"),
        (lambda content, end: content[: end + 100], 4, "no end mark|damaged header"),
        (lambda content, end: content[:end] + b"x" * 512 + content[end:], 4, "damaged header"),
        (lambda content, end: content + content, 4, "goes on after its end mark"),
        (lambda content, end: content[: end + 1024], 4, None),  # no padding behind the end mark
    ],
)
def test_tar_that_was_cut_between_members_or_joined_is_named(tmp_path, damage, kept, words):
    raw.webdataset(tmp_path / "0.tar", range(4))
    with tarfile.open(tmp_path / "0.tar") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 512 * -(-last.size // 512)
    (tmp_path / "0.tar").write_bytes(damage((tmp_path / "0.tar").read_bytes(), end))
    directory = prepare(tmp_path, tmp_path / "0.tar")
    assert report(directory)["kept"] == kept
    damaged = report(directory)["damaged units"]
    assert len(damaged) == (words is not None)
    for line in damaged:
        assert line.startswith(f"{tmp_path}/0.tar: ") and re.search(words, line)


def test_files_in_buckets_are_read(tmp_path, monkeypatch):
    """The bucket is a folder that only `epath` knows by its address."""

    class Bucket(epath.backend._OsPathBackend):
        def open(self, path, mode):
            return super().open(self.local(path), mode)

        def exists(self, path):
            return super().exists(self.local(path))

        def isdir(self, path):
            return super().isdir(self.local(path))

        def glob(self, path):
            folder = str(tmp_path)
            return [p.replace(folder, "gs://bucket") for p in super().glob(self.local(path))]

        def listdir(self, path):
            return super().listdir(self.local(path))

        def local(self, path):
            return str(path).replace("gs://bucket", str(tmp_path))

    monkeypatch.setattr(epath.backend, "tf_backend", Bucket())
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("a0.tar", "a1.tar", "b.tar", "more/c.tar")):
        raw.webdataset(tmp_path / name, [number])
    raw.parquet(tmp_path / "d.parquet", [4])
    names = ("a{0..1}.tar", "b*.tar", "more", "d.parquet")
    directory = prepare(tmp_path, *(f"gs://bucket/{name}" for name in names))
    assert [key for key, _ in keys_and_captions(directory)] == [f"{n:09d}" for n in range(5)]
    with pytest.raises(UserError, match="gs://bucket/x.tar: no such file"):
        prepare(tmp_path / "2", "gs://bucket/x.tar")


def test_stopped_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    for number in range(4):
        raw.webdataset(tmp_path / f"{number}.tar", range(3 * number, 3 * number + 3))
    expected = keys_and_captions(prepare(tmp_path / "at once", tmp_path / "*.tar"))

    done = []
    original = UnitPreparer.prepare

    def failing(self, unit, target):
        if len(done) == 2:
            raise RuntimeError("the machine is gone")
        done.append(unit.path)
        original(self, unit, target)

    monkeypatch.setattr(UnitPreparer, "prepare", failing)
    with pytest.raises(UserError, match="the machine is gone"):
        prepare(tmp_path, tmp_path / "*.tar")
    with pytest.raises(UserError, match="begun with other sources or settings"):
        prepare(tmp_path, tmp_path / "{0..2}.tar")
    monkeypatch.setattr(UnitPreparer, "prepare", lambda *a: (done.append(a[1].path), original(*a)))
    directory = prepare(tmp_path, tmp_path / "*.tar")
    assert keys_and_captions(directory) == expected
    assert sorted(done) == [str(tmp_path / f"{number}.tar") for number in range(4)]


def test_stop_request_keeps_finished_units(tmp_path, monkeypatch):
    for number in range(3):
        raw.webdataset(tmp_path / f"{number}.tar", [number])
    stopped = threading.Event()

    class OneStop:
        def __enter__(self):
            self.requested = True
            return self

        def __exit__(self, *_):
            stopped.set()

    monkeypatch.setattr("data_prep.image_text_beam.StopRequest", OneStop)
    with pytest.raises(Stopped, match="of 3 files; run the same command to go on"):
        prepare(tmp_path, tmp_path / "*.tar")
    monkeypatch.undo()
    assert stopped.is_set()
    assert len(keys_and_captions(prepare(tmp_path, tmp_path / "*.tar"))) == 3


@pytest.mark.slow  # every process imports TensorFlow and Beam
def test_several_processes_give_what_one_gives(tmp_path):
    for number in range(3):
        raw.webdataset(tmp_path / f"{number}.tar", range(3 * number, 3 * number + 3))
    one = prepare(tmp_path / "1", tmp_path / "*.tar")
    two = prepare(tmp_path / "2", tmp_path / "*.tar", workers=2)
    assert [e["image"] for e in examples(one)] == [e["image"] for e in examples(two)]
    assert open_corpus(one, "train").fingerprint == open_corpus(two, "train").fingerprint


@pytest.mark.slow  # two worker processes, each of which imports TensorFlow and Beam
def test_command_prepares_all_kinds_of_files_with_two_workers(tmp_path):
    raw.webdataset(tmp_path / "a0.tar", range(3))
    raw.webdataset(tmp_path / "a1.tar.gz", range(3, 6), mode="w:gz")
    raw.tfrecord(tmp_path / "b.tfrecord", range(6, 9))
    raw.parquet(tmp_path / "c.parquet", range(9, 12))
    for number in range(12, 15):
        (tmp_path / f"{number}.webp").write_bytes(raw.picture(number, kind="WEBP"))
    lines = [f"{number:09d}\t{number}.webp\ta <b>bird</b> number {number}" for number in (12, 13)]
    table = [
        "key\tpath\tcaption",
        *lines,
        "000000014\t14.webp\tbird",
        "000000000\t12.webp\tnot new",
    ]
    (tmp_path / "d.tsv").write_text("\n".join(table))
    command = [sys.executable, "-m", "data_prep", "image_text", "custom", "--name=mixed"]
    flags = [f"--data_dir={tmp_path}/tfds", "--workers=2", "--resize=pad", "--size=64"]
    sources = [
        f"{tmp_path}/{name}" for name in ("a0.tar", "*.gz", "b.tfrecord", "c.parquet", "d.tsv")
    ]
    done = subprocess.run([*command, *flags, "--sources", *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    directory = done.stdout.splitlines()[0]
    assert "image_text/mixed" in directory
    kinds = ["dog"] * 6 + ["cat"] * 3 + ["horse"] * 3 + ["bird"] * 2
    expected = [(f"{n:09d}", f"a {kind} number {n}") for n, kind in enumerate(kinds)]
    assert keys_and_captions(directory) == expected
    assert report(directory)["dropped"] == {"caption under two words": 1, "duplicate key": 1}
    for example in examples(directory):
        assert Image.open(io.BytesIO(example["image"])).size == (64, 64)
    again = subprocess.run(
        [*command, *flags, "--sources", *sources], capture_output=True, text=True
    )
    assert again.returncode == 0 and again.stdout == done.stdout


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "absent.tar", r"absent\.tar: no such file"),
        (lambda p: "*.tar", r"\*\.tar: no file matches"),
        (lambda p: "{0..3.tar", r"braces do not match"),
        (lambda p: p.joinpath("x.rar").write_bytes(b"") and "" or "x.rar", r"x\.rar: unknown kind"),
        (lambda p: p.joinpath("empty").mkdir() or "empty", r"empty: no tars"),
        (lambda p: p.joinpath("x.zip").write_bytes(b"") and "" or "x.zip", r"give YFCC's table"),
        (
            lambda p: p.joinpath("x.csv").write_text("a,b\n1,2\n") and "x.csv",
            r"no column path or image",
        ),
        (
            lambda p: p.joinpath("x.csv").write_text("path,b\n1,2\n") and "x.csv",
            r"no column caption",
        ),
        (lambda p: p.joinpath("x.jsonl").write_text("{}x\n") and "x.jsonl", r"x\.jsonl: line 1"),
    ],
)
def test_wrong_source_is_named_in_one_line(tmp_path, make, message):
    source = tmp_path / make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        prepare(tmp_path, source)
    assert "\n" not in str(caught.value)


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    raw.webdataset(tmp_path / "0.tar", range(2), caption="dog")
    with pytest.raises(UserError, match="no pair is left to write; .*caption under two words"):
        prepare(tmp_path, tmp_path / "0.tar")
