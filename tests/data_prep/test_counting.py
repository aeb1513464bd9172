"""Nothing vanishes: captions kept and pairs dropped are, in sum, what was there."""

import bz2
import io
import json
import tarfile
import tracemalloc
import urllib.parse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_corpora as raw
import tensorflow as tf
from etils import epath
from PIL import Image
from prepared_corpora import GALLERY, keys_and_captions, prepare, report

from cocu_jax.errors import UserError
from data_prep.image_text import formats, list_lines
from data_prep.image_text.formats import Reading
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.tars import read_tar
from data_prep.image_text.units import Recipe

DOG = b"a dog outside"
DOTTED = (
    "name with several dots; give --dotted_keys if keys have dots, "
    "or name the endings by --image_column and --caption_column"
)
APART = "members of a pair are not adjacent; repack the archive sorted by name"

HIDDEN = "hidden file or folder (its name begins with a dot)"
UNKNOWN = "no image or caption by its ending; name endings by --image_column and --caption_column"


def tar(root):
    """Eleven pairs or halves of them, whatever they are called."""
    image = raw.picture(0)
    members = [
        *[(f"photo.v{n}.{end}", c) for n in range(2) for end, c in (("jpg", image), ("txt", DOG))],
        ("in.input.jpg", image),
        ("in.outputs.txt", DOG),
        ("a1.jpg", image),
        ("a2.jpg", image),
        ("b.xyz", b"?"),
        (".hidden.jpg", image),
        ("good.jpeg", image),
        ("good.text", DOG),
        ("bytes.jpg", raw.picture(1)),
        ("bytes.txt", "собака на пляже".encode("cp1251")),
        ("half.jpg", image),
        ("words.json", b'{"caption": "a dog"}'),
        ("a1.txt", DOG),
        ("a2.txt", DOG),
        ("number.jpg", image),
        ("number.json", b'{"caption": 7}'),
    ]
    raw.write_tar(root / "x.tar", members)
    dropped = {DOTTED: 3, APART: 2, UNKNOWN: 1, HIDDEN: 1}
    dropped |= {"text is not UTF-8; save it as UTF-8": 1, "no caption": 1, "no image": 1}
    return "x.tar", 1, dropped | {"caption is no text": 1}


def folder(root):
    root = root / "photos"
    root.mkdir()
    for name in ("a.jpg", "A.v1.JPG", "b.png", "c.heic", "d.jpg", "e.jpg", ".f.jpg"):
        (root / name).write_bytes(raw.picture(0))
    for name in ("a.txt", "A.v1.CAPTION", "alone.txt", "c.txt"):
        (root / name).write_bytes(DOG)
    (root / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (root / "d.txt").write_bytes(b"\xff\xfe\0")
    (root / "e.txt").write_bytes(b"dog")
    (root / "notes.pdf").write_bytes(b"%PDF")
    (root / "empty.jpg").write_bytes(b"")
    (root / "empty.txt").write_bytes(DOG)
    (root / "camera.json").write_text('{"model": "X100"}')  # no caption in it: metadata
    dropped = {"no image": 1, "HEIC image; convert it": 1, "text is not UTF-8; save it as UTF-8": 1}
    dropped |= {"caption under two words": 1, "no image or caption by its ending": 1}
    dropped |= {"undecodable image": 1}
    return "photos", 2, dropped | {HIDDEN: 1, "no caption": 1}


def table(root):
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (root / "x.jpg").write_bytes(raw.picture(7))
    rows = {
        "image": pa.array(
            [
                {"bytes": raw.picture(0), "path": None},
                {"bytes": None, "path": "x.jpg"},
                {"bytes": None, "path": "y.jpg"},
                None,
                {"bytes": b"junk", "path": None},
                {"bytes": raw.picture(1), "path": None},
                {"bytes": raw.picture(1), "path": None},
            ],
            image,
        ),
        "caption": [
            ["a dog", "two dogs"],
            ["a dog"],
            ["a dog"],
            ["a dog"],
            ["a dog", "a cat"],
            None,
        ]
        + [["a cat", "cat"]],
        "key": [1, 2, 3, 4, 5, 6, None],
    }
    pq.write_table(pa.table(rows), root / "x.parquet")
    return "x.parquet", 3, {"no image": 2, "undecodable image": 2, "no caption": 1, "no key": 2}


def records(root):
    """TFRecords with a list of texts, a number, and nothing."""

    def feature(value):
        if isinstance(value, float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=value))

    rows = [[DOG, b"two dogs"], 2.5, [], [b"\x81\x8d\x8f\x90 \xff"]]
    with tf.io.TFRecordWriter(str(root / "x.tfrecord")) as writer:
        for number, caption in enumerate(rows):
            fields = {"key": [b"%d" % number], "jpg": [raw.picture(0)], "caption": caption}
            fields = {name: feature(value) for name, value in fields.items()}
            example = tf.train.Example(features=tf.train.Features(feature=fields))
            writer.write(example.SerializeToString())
    dropped = {"caption is no text": 1, "no caption": 1, "text is not UTF-8; save it as UTF-8": 1}
    return "x.tfrecord", 2, dropped


def csv_list(root):
    for n in range(3):
        (root / f"{n}.jpg").write_bytes(raw.picture(n))
    lines = [
        b"image,caption",
        b"0.jpg,a dog",
        b'0.jpg,"a dog, too"',
        b"0.jpg,a dog, unquoted",
        b"1.jpg," + b"dog " * 50_000,
        b"2.jpg,\x81\x8d\x8f\x90 \xff\xfe\xfd",
        b"absent.jpg,a dog",
        b",a dog without a picture",
        b'2.jpg,"a quote that never ends',
        b"1.jpg,caf\xe9 au lait",
    ]
    (root / "x.csv").write_bytes(b"\n".join(lines))
    width = "other number of fields than the header; quote fields that hold the separator"
    dropped = {width: 1, "caption over 65,536 letters": 1, "no image": 1, "no key": 1}
    return "x.csv", 4, dropped | {"line is no text (UTF-8 is) or over 1 MiB": 1}


def json_list(root):
    (root / "0.jpg").write_bytes(raw.picture(0))
    rows = ['{"image": "0.jpg", "caption": ["a dog", 3, null, "a\\ud800b c"]}']
    rows += ['{"image": "0.jpg", "caption": NaN}', "not JSON", '{"image": 5, "caption": "a cat"}']
    (root / "x.jsonl").write_text("\n".join(rows))
    return "x.jsonl", 1, {"caption is no text": 3, "line is no JSON object": 1, "no key": 1}


def photos_of_yfcc(root):
    fields = [""] * 25
    fields[1], fields[2], fields[8] = "9001", "f" * 32, urllib.parse.quote_plus("A dog")
    lines = ["\t".join(fields)]
    for photo, title in (("9003", "caf%E9+au+lait"), ("9004", "%81%8D%8F+%FF%90")):
        fields[1], fields[2], fields[8] = photo, photo * 8, title
        lines.append("\t".join(fields))
    (root / "table").write_text("\n".join(lines))
    members = [(f"000/900{n}.jpg", raw.picture(n)) for n in range(1, 5)]
    raw.write_zip(root / "000.zip", [*members, ("a.txt", b"")])
    not_listed = "photo without caption in YFCC's table, or not in the subset"
    return "000.zip", 2, {not_listed: 2, "no photo by its ending": 1}


def zipped(root):
    members = [("a.jpg", raw.picture(0)), ("a.txt", DOG), ("b.jpg", raw.picture(1))]
    members += [("c.txt", DOG), ("__MACOSX/._a.jpg", b"?"), ("read.me", b"?")]
    raw.write_zip(root / "x.zip", members)
    return "x.zip", 1, {HIDDEN: 1, "no caption": 1, "no image": 1, UNKNOWN: 1}


@pytest.mark.parametrize(
    "write",
    [tar, folder, table, records, csv_list, json_list, zipped, photos_of_yfcc],
    ids=lambda write: write.__name__,
)
def test_captions_kept_and_pairs_dropped_are_what_was_there(write, tmp_path):
    source, captions, dropped = write(tmp_path)
    yfcc = (str(tmp_path / "table"), "") if write is photos_of_yfcc else None
    directory = prepare(tmp_path, tmp_path / source, yfcc=yfcc)
    found = report(directory)
    assert found["dropped"] == dropped
    assert found["captions"] == captions
    assert set(found["first dropped"]) == set(dropped)
    assert all(place.startswith(str(tmp_path)) for place in found["first dropped"].values())
    texts = [text for _, text in keys_and_captions(directory)]
    assert texts and not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


def test_wrong_value_is_told_with_file_and_row(tmp_path):
    (tmp_path / "0.jpg").write_bytes(raw.picture(0))
    rows = [{"image": "0.jpg", "caption": "a dog"}, {"image": "0.jpg", "caption": float("nan")}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [place] = report(prepare(tmp_path, tmp_path / "x.jsonl"))["first dropped"].values()
    assert place.startswith(f"{tmp_path}/x.jsonl: line 2")


def test_wrong_folder_of_a_list_names_the_first_path_tried(tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,a dog\nb.jpg,a cat\n")
    with pytest.raises(UserError, match=f"{tmp_path}/a.jpg first; .*--images FOLDER"):
        prepare(tmp_path, tmp_path / "captions.txt")


def test_folder_beside_a_list_that_has_its_images_is_named(tmp_path):
    """Kaggle's Flickr8k."""
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,a dog\nb.jpg,a cat\n")
    for folder in ("Annotations", "Images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "Images/a.jpg").write_bytes(raw.picture(0))
    with pytest.raises(UserError, match=f"it is in {tmp_path}/Images: give --images {tmp_path}/I"):
        prepare(tmp_path, tmp_path / "captions.txt")


def test_only_the_named_splits_of_a_list_are_taken_and_the_others_counted(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.jpg").write_bytes(raw.picture(ord(name)))
    splits = {"a": "train", "b": "restval", "c": "test"}
    images = [
        {"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": "a dog"}, {"raw": "a c"}]}
        for name, split in splits.items()
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    rows = [f"{name}.jpg,a dog,{split}\n" for name, split in splits.items()]
    (tmp_path / "list.csv").write_text("".join(["filename,caption,split\n", *rows, "d.jpg,a d,\n"]))
    recipe = Recipe(ImageRecipe(), GALLERY, reading=Reading(only_splits=("train", "restval")))
    other = "not of a split that --only_splits names"
    for source, captions, dropped in (("dataset_coco.json", 4, 2), ("list.csv", 2, 2)):
        directory = prepare(tmp_path / source[:4], tmp_path / source, recipe=recipe)
        assert [key for key, _ in keys_and_captions(directory)] == ["a.jpg", "b.jpg"]
        assert report(directory)["captions"] == captions
        assert report(directory)["dropped"] == {other: dropped}
        assert report(directory)["first dropped"][other].endswith("(test)")


def test_table_of_links_is_refused_with_what_to_do(tmp_path):
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["a dog"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column .* among: url, caption; .*img2dataset"):
        prepare(tmp_path, tmp_path / "x.parquet")


@pytest.mark.parametrize("header", ["", "caption\turl\n"])
def test_list_of_links_is_refused_with_what_to_do(header, tmp_path):
    (tmp_path / "Train_GCC-training.tsv").write_text(f"{header}a dog\thttp://x.y/a.jpg\n")
    with pytest.raises(UserError, match="a list of links .*img2dataset"):
        prepare(tmp_path, tmp_path / "Train_GCC-training.tsv")


def test_yfcc_without_its_table_is_refused(tmp_path):
    raw.write_zip(tmp_path / "000.zip", [("000/9001.jpg", raw.picture(0))])
    with pytest.raises(UserError, match="--yfcc yfcc100m_dataset"):
        prepare(tmp_path, tmp_path / "000.zip")
    content = bz2.compress(bytes(range(256)) * 100)
    (tmp_path / "cut.bz2").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.bz2: cannot be read"):
        prepare(tmp_path / "2", tmp_path / "000.zip", yfcc=(str(tmp_path / "cut.bz2"), ""))


def test_pattern_without_a_match_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"\*\*/\*\.tar: no file matches"):
        prepare(tmp_path, tmp_path / "**/*.tar")


def test_unreadable_place_is_told_as_reading_and_unwritable_as_writing(tmp_path, monkeypatch):
    raw.webdataset(tmp_path / "0.tar", [0])
    listed = epath.Path(tmp_path / "photos")
    listed.mkdir()

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(listed), "iterdir", refuse)
    with pytest.raises(UserError, match=r"photos: cannot be read \(Permission denied\)"):
        prepare(tmp_path, listed)
    monkeypatch.undo()
    (tmp_path / "tfds").rename(tmp_path / "aside")
    (tmp_path / "tfds").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="tfds.*: cannot write"):
        prepare(tmp_path, tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("ending", "limit"), [("jpg", "MAX_IMAGE_BYTES"), ("txt", "MAX_TEXT_BYTES")]
)
def test_large_members_are_not_read(tmp_path, monkeypatch, ending, limit):
    """A tar that says its member has a terabyte, and a table with a large cell."""
    monkeypatch.setattr(f"data_prep.image_text.pairing.{limit}", 5_000)
    large = {"jpg": raw.picture(0), "txt": DOG, ending: bytes(6_000)}
    raw.write_tar(tmp_path / "x.tar", [(f"a.{end}", content) for end, content in large.items()])
    [example] = read_tar(str(tmp_path / "x.tar"), Reading())
    assert (example.image is None) == (ending == "jpg")
    assert example.no_image == formats.LARGE_IMAGE or example.faults == (formats.LARGE_TEXT,)


def test_large_cells_and_lines_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.image_text.tables.MAX_IMAGE_BYTES", 5_000)
    rows = {"jpg": [bytes(6_000), raw.picture(0)], "caption": ["a dog", "a dog"]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    assert report(prepare(tmp_path, tmp_path / "x.parquet"))["dropped"] == {formats.LARGE_IMAGE: 1}
    monkeypatch.setattr(list_lines, "MAX_TEXT_BYTES", 100)
    (tmp_path / "x.csv").write_bytes(b"image,caption\n" + b"x" * 250 + b"\na,b\n" + b"y" * 100)
    lines = [*list_lines.read_lines(epath.Path(tmp_path / "x.csv"))]
    assert lines == [(1, "image,caption"), (2, None), (3, "a,b"), (4, None)]


def test_bomb_of_pixels_is_refused_by_its_header(tmp_path):
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG", optimize=True)  # 169 megapixels
    assert len(file.getvalue()) < 50_000
    raw.write_tar(
        tmp_path / "x.tar",
        [("a.png", file.getvalue()), ("a.txt", DOG), ("b.jpg", raw.picture(0)), ("b.txt", DOG)],
    )
    assert report(prepare(tmp_path, tmp_path / "x.tar"))["dropped"] == {"undecodable image": 1}


def test_headers_of_a_tar_do_not_stay_in_memory(tmp_path):
    members = [(f"{n:06d}.{end}", b"") for n in range(3_000) for end in ("jpg", "txt")]
    raw.write_tar(tmp_path / "x.tar", members)
    tracemalloc.start()
    assert sum(1 for _ in read_tar(str(tmp_path / "x.tar"), Reading())) == 3_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert len(tar.getmembers()) == 6_000
    assert peak < 2_500_000  # the headers take 4 MB, the buffer at the end 1 MB


def test_sources_are_listed_once(tmp_path, monkeypatch):
    raw.webdataset(tmp_path / "0.tar", [0])
    (tmp_path / "0.jpg").write_bytes(raw.picture(0))
    (tmp_path / "x.jsonl").write_text('{"image": "0.jpg", "caption": "a dog"}')
    sources = (tmp_path / "x.jsonl", tmp_path / "*.tar")
    monkeypatch.setattr("data_prep.image_text.prepare.assemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, *sources)
    monkeypatch.undo()
    monkeypatch.setattr("data_prep.image_text.prepare.find_units", interrupted)
    directory = prepare(tmp_path, *sources)
    assert report(directory)["kept"] == 2
    with pytest.raises(UserError, match="already, prepared with another --caption_column"):
        recipe = Recipe(ImageRecipe(), GALLERY, reading=Reading(caption_column=("x",)))
        prepare(tmp_path, *sources, recipe=recipe)


def interrupted(*_):
    raise KeyboardInterrupt
