"""Names of files, members and paths as Windows, macOS and people write them."""

import gzip
import tarfile
import zipfile

import pytest
import raw_corpora as raw
from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.folders import folder_rows
from data_prep.image_text.formats import Dropped, Reading
from data_prep.image_text.lists import list_rows
from data_prep.image_text.sources import find_units
from data_prep.image_text.tars import read_tar
from data_prep.image_text.zips import check_zip, read_zip

WINDOWS, UNIX = 0, 3
HIDDEN = "hidden file or folder (its name begins with a dot)"


def rows(path, **reading):
    return list(list_rows(epath.Path(path), Reading(**reading)))


class Member(zipfile.ZipInfo):
    """A member whose name is written in code page 437 and not marked as UTF-8."""

    def _encodeFilenameFlags(self):
        return self.filename.encode("cp437"), self.flag_bits


def packed(path, names: dict[bytes, bytes], system: int) -> str:
    """A zip whose names are these very bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in names.items():
            member = Member(name.decode("cp437"))
            member.create_system = system
            archive.writestr(member, content)
    return str(path)


@pytest.mark.parametrize(
    ("names", "system", "keys"),
    [
        ([b"my.photos\\a dog", b"d\\e\\b"], WINDOWS, ["d/e/b", "my.photos/a dog"]),
        (["Köln/Straße".encode()], UNIX, ["Köln/Straße"]),
        ([b"caf\x82"], WINDOWS, ["café"]),  # of code page 437, and no UTF-8
        ([b"a\\b"], UNIX, ["a\\b"]),  # where a backslash is a letter as any other
    ],
)
def test_names_in_zips_are_those_that_were_packed(names, system, keys, tmp_path):
    members = {b"my.photos\\": b""} if system == WINDOWS else {b"__MACOSX/._a.jpg": b"?"}
    for number, name in enumerate(names):
        members |= {name + b".jpg": raw.picture(number), name + b".txt": b"a dog"}
    path = packed(tmp_path / "x.zip", members, system)
    check_zip(path, Reading())
    found = list(read_zip(path, "", Reading()))
    assert [e.key for e in found if not isinstance(e, Dropped)] == keys
    dropped = [e.reason for e in found if isinstance(e, Dropped)]
    assert dropped == [] if system == WINDOWS else [HIDDEN]


@pytest.mark.parametrize("header", ["image;caption", "sep=;\r\nImage;Caption"])
def test_a_list_that_excel_wrote_on_windows_is_read(header, tmp_path):
    (tmp_path / "my images" / "Füße").mkdir(parents=True)
    (tmp_path / "my images" / "Füße" / "a 1.jpg").write_bytes(raw.picture(0))
    text = f'{header}\r\nmy images\\Füße\\a 1.jpg;"a dog; a ""big"" one"\r\n'
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8-sig"))
    [row] = rows(tmp_path / "list.csv")
    assert row["key"] == "my images/Füße/a 1.jpg"
    assert row["path"] == f"{tmp_path}/my images/Füße/a 1.jpg"
    assert row["captions"] == ['a dog; a "big" one']


@pytest.mark.parametrize("name", ["list.jsonl", "list.json", "list.csv"])
def test_a_list_is_unpacked_if_it_is_packed_whatever_its_name(name, tmp_path):
    (tmp_path / "0.jpg").write_bytes(raw.picture(0))
    texts = {"list.csv": "image,caption\n0.jpg,a dog\n"}
    text = texts.get(name, '{"image": "0.jpg", "caption": "a dog"}\n').encode()
    for path, content in ((name, gzip.compress(text)), (f"{name}.gz", text)):
        (tmp_path / path).write_bytes(content)
        assert [row["captions"] for row in rows(tmp_path / path)] == [["a dog"]]


def test_folder_of_images_that_is_not_there_is_told(tmp_path):
    (tmp_path / "list.csv").write_text("image,caption\na.jpg,a dog\n")
    with pytest.raises(UserError, match=r"--images /nowhere: no such folder"):
        rows(tmp_path / "list.csv", images="/nowhere")


def test_links_instead_of_paths_are_told(tmp_path):
    (tmp_path / "list.csv").write_text("image,caption\nhttps://x.y/a.jpg,a dog\n")
    with pytest.raises(UserError, match="a list of links .*img2dataset"):
        rows(tmp_path / "list.csv")


def test_links_to_folders_above_and_hidden_folders_lead_nowhere(tmp_path):
    for folder in ("deep", ".ipynb_checkpoints"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("photos/a", "photos/deep/b", "photos/.ipynb_checkpoints/a-1", "elsewhere/c"):
        (tmp_path / f"{name}.jpg").write_bytes(raw.picture(0))
        (tmp_path / f"{name}.txt").write_bytes(b"a dog")
    (tmp_path / "photos" / "deep" / "above").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "there").symlink_to(tmp_path / "elsewhere")
    found = list(folder_rows(epath.Path(tmp_path / "photos"), Reading()))
    assert [row["key"] for row in found if "key" in row] == ["a", "deep/b", "there/c"]
    dropped = [(row["dropped"], row["place"]) for row in found if "dropped" in row]
    assert dropped == [(HIDDEN, f"{tmp_path}/photos/.ipynb_checkpoints")]


@pytest.mark.parametrize("name", ["{1,2} dogs [all].tar", "{not closed.tar"])
def test_a_source_of_that_very_name_is_no_pattern(name, tmp_path):
    raw.webdataset(tmp_path / name, [0])
    [unit] = find_units([str(tmp_path / name)], epath.Path(tmp_path), None, Reading())
    assert unit.path == str(tmp_path / name)


def test_links_in_tars_are_counted(tmp_path):
    """As `tar` packs a file that it has packed under another name before."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("a.jpg", raw.picture(0)), ("a.txt", b"a dog"), ("b.txt", b"a dog")):
            (tmp_path / name).write_bytes(content)
        (tmp_path / "b.jpg").hardlink_to(tmp_path / "a.jpg")
        (tmp_path / "c.jpg").symlink_to("a.jpg")
        for name in ("a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg"):
            tar.add(tmp_path / name, name)
    whole, linked, alone = read_tar(str(tmp_path / "x.tar"), Reading())
    assert (whole.key, whole.image) == ("a", raw.picture(0))
    assert (linked.key, linked.image) == ("b", None) and "--dereference" in linked.no_image
    assert alone.reason == "no caption"
