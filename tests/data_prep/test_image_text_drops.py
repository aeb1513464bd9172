"""What is wrong with a corpus is dropped and counted, or named in one line."""

import re
import tarfile

import pytest
import raw_corpora as raw
from etils import epath
from prepared_corpora import GALLERY, examples, keys_and_captions, prepare, report

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from data_prep.__main__ import main
from data_prep.image_text.formats import Reading
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.sources import find_units
from data_prep.image_text.tars import read_tar
from data_prep.image_text.units import Recipe


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "absent.tar", r"absent\.tar: no such file"),
        (lambda p: "*.tar", r"\*\.tar: no file matches"),
        (lambda p: "{0..3.tar", r"braces do not match"),
        (lambda p: p.joinpath("x.rar").write_bytes(b"") and "" or "x.rar", r"x\.rar: unknown kind"),
        (lambda p: p.joinpath("empty").mkdir() or "empty", r"empty: no tars"),
        (
            lambda p: p.joinpath("x.zip").write_bytes(b"") and "" or "x.zip",
            "x.zip: cannot",
        ),
        (
            lambda p: p.joinpath("x.csv").write_text("a,b\n1,2\n") and "x.csv",
            r"no column path or image",
        ),
        (
            lambda p: p.joinpath("x.csv").write_text("path,b\n1,2\n") and "x.csv",
            r"no column caption",
        ),
        (lambda p: p.joinpath("x.csv").write_text("path,caption\n") and "x.csv", r"nothing in it"),
        (lambda p: p.joinpath("x.jsonl").write_text("{}x\n") and "x.jsonl", r"x\.jsonl: line 1"),
        (lambda p: p.joinpath("x.jsonl").write_text("") or "x.jsonl", r"nothing in it"),
        (lambda p: p.joinpath("x.csv").write_bytes(b"path,text\ra,b") and "x.csv", "old Macs"),
        (
            lambda p: (
                p.joinpath("x/y").mkdir(parents=True) or raw.webdataset(p / "x/y/z.tar", [0]) or "x"
            ),
            r"no tars.*give '.*x/\*\*/\*\.tar'",
        ),
        (
            lambda p: p.joinpath("x.tar").write_bytes(b"") or "x.tar",
            r"1 of 1 files damaged \(first: .*x\.tar: ",
        ),
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


def test_names_that_cannot_be_opened_are_one_line(tmp_path, capsys):
    with pytest.raises(UserError, match="--sources: one of the names is empty"):
        find_units([""], epath.Path(tmp_path), None, Reading())
    for flags, message in (
        (f"--sources s3://bucket/x.tar --data_dir {tmp_path}", "'s3' not implemented"),
        (f"--sources {tmp_path} --data_dir {tmp_path} --split train[:9]", "--split 'train[:9]'"),
        (f"--sources {tmp_path} --data_dir {tmp_path} --beam '", "--beam ': No closing quotation"),
    ):
        with pytest.raises(SystemExit):
            main(["image_text", "custom", *flags.split()])
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and told[0].startswith("error: ") and message in told[0]


def test_tar_in_a_tar_is_told(tmp_path):
    raw.webdataset(tmp_path / "inner.tar", [0])
    raw.write_tar(tmp_path / "x.tar", [("inner.tar", (tmp_path / "inner.tar").read_bytes())])
    [dropped] = read_tar(str(tmp_path / "x.tar"), Reading())
    assert dropped.reason.startswith("an archive within the archive; unpack it")
