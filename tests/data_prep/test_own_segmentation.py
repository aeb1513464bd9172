"""Images, masks and a list of classes of one's own -> TFDS -> evaluation."""

import numpy as np
import pytest
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus, read_shard
from data_prep.__main__ import main
from data_prep.segmentation.own_files import OwnFiles
from data_prep.segmentation.prepare import prepare_own

KINDS = {"palette": np.uint8, "grey": np.uint8, "wide": np.uint16}


def write_files(root, kind="grey", classes="background\ngrass\nriver\n", ids=(0, 1, 2, 255)):
    """Two photos, one of them lying on its side, and masks of `ids`; links to folders above."""
    rng = np.random.default_rng(0)
    masks = {}
    for key, ending in (("a", "jpg"), ("deep/b", "PNG")):
        for folder in ("photos", "labels"):
            (root / folder / key).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if key == "a" else 1  # to be turned a quarter clockwise
        Image.fromarray(pixels).save(root / f"photos/{key}.{ending}", exif=exif)
        shape = (56, 40) if key == "a" else (40, 56)
        masks[key] = rng.choice(ids, shape).astype(KINDS[kind])
        mask = Image.fromarray(masks[key], mode="P" if kind == "palette" else None)
        if kind == "palette":
            mask.putpalette(list(range(256)) * 3)
        mask.save(root / f"labels/{key}.png")
    for folder in ("photos", "labels"):
        (root / folder / "deep" / "above").symlink_to(root / folder)
    (root / "classes.txt").write_text(classes)
    return masks


def own(root, ignore=255):
    return OwnFiles(str(root / "photos"), str(root / "labels"), str(root / "classes.txt"), ignore)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind_become_classes(tmp_path, kind):
    masks = write_files(tmp_path, kind)
    corpus = open_corpus(
        prepare_own("x", own(tmp_path), True, str(tmp_path / "tfds")), "validation"
    )
    assert corpus.metadata["classes"] == ["background", "grass", "river"]
    assert corpus.metadata["has_background"] is True
    found = {
        example["key"].decode(): example["segmentation"][..., 0]
        for example in read_shard(corpus, 0, decode_images=True).as_numpy_iterator()
    }
    assert list(found) == list(masks)
    for key, mask in masks.items():
        np.testing.assert_array_equal(found[key], mask)


def test_ids_may_have_gaps_and_another_one_may_be_ignored(tmp_path):
    classes = "\ufeff# id, name\r\n7\troad, street\r\n\r\n300\tsky  # above\r\n"
    masks = write_files(tmp_path, "wide", classes, (0, 7, 300))
    files = own(tmp_path, ignore=0)
    corpus = open_corpus(prepare_own("x", files, False, str(tmp_path / "tfds")), "validation")
    assert corpus.metadata["classes"] == ["road, street", "sky"]
    [first, _] = read_shard(corpus, 0, decode_images=True).as_numpy_iterator()
    expected = np.select([masks["a"] == 7, masks["a"] == 300], [0, 1], 255)
    np.testing.assert_array_equal(first["segmentation"][..., 0], expected)


def test_command_makes_a_dataset_that_the_evaluation_can_open(tmp_path, capsys, monkeypatch):
    write_files(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = f"--images {tmp_path}/photos --masks {tmp_path}/labels --classes {tmp_path}/classes.txt"
    command = f"segmentation --benchmark custom --name mine --data_dir=~/tfds {flags}"
    main([*command.split(), "--has_background"])
    directory, count = capsys.readouterr().out.splitlines()
    assert (directory, count) == (f"{tmp_path}/tfds/segmentation/mine/1.0.0", "2 images")
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == ["segmentation"]
    with pytest.raises(SystemExit):
        main(command.split())
    assert "is there already, with other classes" in capsys.readouterr().err
    mask = tmp_path / "labels/a.png"
    Image.fromarray(np.asarray(Image.open(mask)).T[:, ::-1].T).save(mask)  # other pixels, one size
    for name, message in (("mine", "with other images, masks or ids"), ("../mine", "use letters")):
        with pytest.raises(SystemExit):
            main([*command.replace("mine", name).split(), "--has_background"])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "labels/a.png").unlink(), r"a\.jpg: no mask of that name"),
        (lambda p: (p / "classes.txt").write_text("0 a\n1 b\n2 c\n"), "put a tab between"),
        (lambda p: (p / "photos/a.jpg").unlink(), r"a\.png: no image of that name"),
        (
            lambda p: (p / "classes.txt").write_text("background\ngrass\n"),
            r"holds id 2 .*--classes",
        ),
        (lambda p: (p / "classes.txt").write_text("a\na\n"), r"class 'a' or its id 1 is there"),
        (lambda p: (p / "classes.txt").write_text("x\ta\n"), r"'x' cannot be the id"),
        (lambda p: (p / "classes.txt").write_text("255\ta\n"), r"255 is the id .*--ignore"),
        (lambda p: (p / "classes.txt").unlink(), r"classes\.txt: cannot read class names"),
        (
            lambda p: Image.new("RGB", (56, 40)).save(p / "labels/deep/b.png"),
            r"b\.png: a RGB picture",
        ),
        (lambda p: Image.new("L", (9, 9)).save(p / "labels/deep/b.png"), r"b\.png has 9 x 9"),
        (
            lambda p: Image.new("L", (56, 40)).save(p / "labels/a.png"),
            r"40 x 56 pixels once .*EX",
        ),
        (
            lambda p: Image.new("L", (56, 40)).save(p / "labels/deep/b.png", format="JPEG"),
            r"b\.png: a JPEG file",
        ),
    ],
)
def test_wrong_files_are_one_line_and_leave_nothing(tmp_path, spoil, message):
    write_files(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare_own("x", own(tmp_path), True, str(tmp_path / "tfds"))
    with pytest.raises(UserError, match="no TFDS dataset"):
        open_corpus(str(tmp_path / "tfds/segmentation/x"), "validation")
    if (tmp_path / "classes.txt").exists():
        with pytest.raises(UserError, match="the name of a benchmark"):
            prepare_own("voc", own(tmp_path), True, str(tmp_path / "tfds"))
