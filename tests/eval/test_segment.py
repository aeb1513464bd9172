"""`cocu_jax.segment` and its Python API, from encoded files to files."""

import dataclasses
import errno
import io
import json
import os
import pathlib
import shutil
import weakref

import numpy as np
import pytest
import torch
from miniature import CLASSES, make_images, make_model
from PIL import Image
from pycocotools import mask as coco_mask
from small_clip import small_clip

from benchmarks import dense_oracle
from cocu_jax import files, segment
from cocu_jax.errors import UserError
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import save_groupvit
from cocu_jax.models.weights.image_processing import CLIP_MEAN, CLIP_STD
from cocu_jax.segmentation import Segmenter
from eval.fonts import choose_font

pytestmark = pytest.mark.usefixtures("small_tiles")

NAMES = CLASSES[1:]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    save_groupvit(make_model(), str(run / "export"))
    return str(run)


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return Segmenter.load(checkpoint, NAMES)


@pytest.fixture
def photos(tmp_path):
    """A folder with landscape, portrait and one-pixel-high images, and two other files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    sizes = [(50, 80), (80, 50), (1, 4000)]
    for (image, _), name in zip(make_images(sizes, 3), "abc", strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(images, checkpoint, output, *flags):
    arguments = [*map(str, images), "--classes", ", ".join(NAMES), "--checkpoint", checkpoint]
    return segment.main([*arguments, "--output", str(output), *flags])


def test_a_folder_is_segmented_and_unreadable_files_give_one_line_errors(
    photos, checkpoint, tmp_path, capsys
):
    assert run([photos], checkpoint, tmp_path / "out", "--scores", "--masks", "coco") == 2
    output, errors = capsys.readouterr()
    assert errors.count("\n") == 1 and "broken.jpg" in errors and len(output.splitlines()) == 3
    for stem, size in (("a", (50, 80)), ("b", (80, 50)), ("c", (1, 4000))):
        labels = np.asarray(Image.open(tmp_path / f"out/{stem}_labels.png"))
        assert labels.shape == size
        record = json.loads((tmp_path / f"out/{stem}.json").read_text())
        shares = np.bincount(labels.reshape(-1), minlength=len(NAMES)) / labels.size
        assert [entry["name"] for entry in record["classes"]] == list(NAMES)
        assert [entry["share"] for entry in record["classes"]] == pytest.approx(shares, abs=1e-4)
        for kind in ("overlay", "groups_1", "groups_2"):
            assert max(Image.open(tmp_path / f"out/{stem}_{kind}.png").size) >= 960
        masks = json.loads((tmp_path / f"out/{stem}_masks.json").read_text())["annotations"]
        assert {mask["category_id"] for mask in masks} == set(np.unique(labels).tolist())
        for mask in masks:
            decoded = coco_mask.decode(mask["segmentation"])
            np.testing.assert_array_equal(decoded, labels == mask["category_id"])
            assert mask["area"] == decoded.sum()
        with np.load(tmp_path / f"out/{stem}_scores.npz") as arrays:
            assert arrays["scores"].dtype == np.float16 and list(arrays["classes"]) == list(NAMES)
            assert len(arrays["scores"]) == len(NAMES)


def test_the_python_api_equals_the_command(segmenter, photos, checkpoint, tmp_path, capsys):
    assert run([photos / "*[ab].png"], checkpoint, tmp_path) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for name in "ab":
        result = segmenter(photos / f"{name}.png")
        written = np.asarray(Image.open(tmp_path / f"{name}_labels.png"))
        np.testing.assert_array_equal(result.labels, written)
        pixels = np.asarray(Image.open(photos / f"{name}.png"))
        for same in (pixels, Image.fromarray(pixels)):
            np.testing.assert_array_equal(segmenter(same).labels, written)
        overlay = np.asarray(Image.open(tmp_path / f"{name}_overlay.png"))
        np.testing.assert_array_equal(np.asarray(result.overlay()), overlay)
    same = segmenter(torch.tensor(pixels)).labels
    np.testing.assert_array_equal(same, written)


def cut(picture: Image.Image, format: str) -> Image.Image:
    """A picture whose end is missing, which Pillow notices late."""
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return Image.open(io.BytesIO(buffer.getvalue()[:-900]))


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros(3, np.uint8),
        [[[1, 2, 3]]],
        b"\xff\xd8\xff",
        io.BytesIO(b"\xff\xd8\xff"),
        None,
        Image.new("RGB", (0, 3)),
        Image.new("F", (3, 3)),
        Image.new("La", (3, 3)),
        cut(Image.effect_noise((80, 80), 90), "JPEG"),
    ],
    ids=lambda photo: f"{type(photo).__name__}-{getattr(photo, 'mode', '')}",
)
def test_what_is_no_photo_is_one_line(segmenter, photo):
    with pytest.raises(UserError) as caught:
        segmenter(photo)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


@pytest.mark.parametrize("classes", ["dog", [], [""], [" , "], ["dog", 3], ["dog", "dog"]], ids=str)
def test_what_are_no_classes_is_one_line(classes):
    with pytest.raises(UserError, match="class"):
        Segmenter.load("nowhere", classes)


def test_photos_come_from_a_bucket_and_results_go_there(photos, checkpoint, bucket, tmp_path):
    (photos / "broken.jpg").unlink()
    shutil.copytree(photos, bucket.folder / "photos")
    assert run(["gs://bucket/photos"], checkpoint, "gs://bucket/folder") == 0
    assert run(["gs://bucket/photos/*.png"], checkpoint, "gs://bucket/pattern") == 0
    assert run([photos], checkpoint, tmp_path / "local") == 0
    local = {file.name for file in (tmp_path / "local").iterdir()}
    for place in ("folder", "pattern"):
        found = {file.name for file in (bucket.folder / place).iterdir()}
        assert found == local and "a_overlay.png" in found
    same = (f"{place}/b_labels.png" for place in ("folder", "pattern"))
    written = (tmp_path / "local/b_labels.png").read_bytes()
    assert all((bucket.folder / name).read_bytes() == written for name in same)


def test_scores_decide_the_labels(segmenter):
    """At its own size, a photo's labels are the argmax of its scores."""
    ((image, _),) = make_images([(32, 53)], 3)  # the size that the model sees
    result = segmenter(image)
    assert result.scores.shape == (len(NAMES), 32, 53)
    best = result.scores.astype(np.float32)
    chosen = np.take_along_axis(best, result.labels[None].astype(int), 0)[0]
    assert (best.max(0) - chosen).max() <= 2**-10 and len(np.unique(result.labels)) > 1


def test_a_clip_gives_the_labels_and_scores_of_torch(tmp_path, capsys):
    """From a JPEG to the files; a CLIP has no groups."""
    theirs = small_clip()
    theirs.save_pretrained(tmp_path / "clip")
    ((image, _),) = make_images([(48, 71)], 3)  # the size that the model sees
    Image.fromarray(image).save(tmp_path / "photo.jpg", quality=90)
    flags = ("--scores", "--templates", "simple", "--dense", "maskclip")
    assert run([tmp_path / "photo.jpg"], str(tmp_path / "clip"), tmp_path / "out", *flags) == 0
    assert "photo_overlay.png" in capsys.readouterr().out

    mean, std = np.array(CLIP_MEAN), np.array(CLIP_STD)
    pixels = (np.asarray(Image.open(tmp_path / "photo.jpg")) / 255 - mean) / std
    pixels = torch.tensor(pixels.astype(np.float32)).permute(2, 0, 1)
    prompts = Tokenizer()([f"a photo of a {name}." for name in NAMES])
    words = dense_oracle.word_embeddings(theirs, prompts, 1)
    logits = dense_oracle.logits(theirs, pixels, words, "maskclip", 32, 16, (48, 71))
    with np.load(tmp_path / "out/photo_scores.npz") as arrays:
        difference = np.abs(arrays["scores"] - (40 * logits).softmax(0).numpy())
    assert difference.max() < 2**-10  # float16
    labels = np.asarray(Image.open(tmp_path / "out/photo_labels.png"))
    two = logits.topk(2, 0).values
    clear = (two[0] - two[1] > 1e-6).numpy()
    assert clear.mean() > 0.99 and len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels[clear], logits.argmax(0).numpy()[clear])
    written = {file.name for file in (tmp_path / "out").iterdir()}
    kinds = ("overlay.png", "labels.png", "scores.npz")
    assert written == {"photo.json", *(f"photo_{kind}" for kind in kinds)}


def test_photos_are_read_one_after_the_other(segmenter):
    """A thousand photos of 12 megapixels would take 36 GB."""
    (photo, _), *_ = make_images([(32, 53)], 3)
    read, most, finished = 0, 0, 0

    def photos():
        nonlocal read, most
        for number in range(60):
            read, most = read + 1, max(most, read + 1 - finished)
            yield str(number), photo

    engine = dataclasses.replace(segmenter.engine, windows_per_forward=1)
    for _ in dataclasses.replace(segmenter, engine=engine).stream(photos()):
        finished += 1
    assert finished == 60
    assert most <= 30  # three blocks of windows, and a piece of a photo per device
    alive = []

    def fresh():
        pixels = photo.copy()
        alive.append(weakref.ref(pixels))
        return pixels

    names = []
    for result in segmenter.stream((str(i), fresh()) for i in range(3)):
        names.append(result.name)
        assert not any(reference() is not None for reference in alive)
    assert names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"images": "missing.jpg"}, "missing.jpg: no such file"),
        ({"images": __file__}, "not an image"),
        ({"images": "nothing*.jpg"}, "no file matches"),
        ({"images": "https://a.org/b.jpg"}, "https:// cannot be opened"),
        ({"output": "http://a.org"}, "http:// cannot be opened"),
        ({"checkpoint": "https://huggingface.co/a/b"}, "https:// cannot be opened"),
        ({"background": "2"}, "from 0 to 1"),
        ({"short_side": "-3"}, "short_side=-3"),
        ({"classes": " , "}, "--classes is empty"),
        ({"classes": "dog, dog"}, "'dog'"),
        ({"classes": "my/names"}, "my/names: cannot read class names"),
        ({"classes": "names.tx"}, "names.tx: cannot read class names"),
        ({"classes": "background, dog", "background": "0.5"}, "take it out of the classes"),
        ({"checkpoint": "/nowhere"}, "/nowhere"),
        ({"output": __file__}, "choose another --output"),
        ({"dense": "clip"}, "is a GroupViT; dense='clip' is for a CLIP only"),
    ],
)
def test_user_errors_are_one_line(changes, words, checkpoint, tmp_path, capsys):
    picture = tmp_path / "photo.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    options = {"images": str(picture), "classes": "dog", "checkpoint": checkpoint}
    options |= {"output": str(tmp_path)} | changes
    image = options.pop("images")
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert segment.main([image, *flags]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and words in message and "\n" not in message


def test_a_full_disk_gives_a_one_line_error(photos, checkpoint, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_write_local", full)
    assert run([photos / "a.png"], checkpoint, tmp_path / "out") == 2
    message = capsys.readouterr().err.strip()
    assert "No space left on device" in message and "\n" not in message


def test_class_names_are_a_list_or_a_file(tmp_path):
    file = pathlib.Path(tmp_path / "names.txt")
    file.write_bytes("\ufeffdog\n# all green\ngrass # green\nc# code\n犬\n".encode())
    assert segment.parse_classes(str(file)) == ("dog", "grass", "c# code", "犬")
    file.rename(tmp_path / "names")
    assert segment.parse_classes(str(tmp_path / "names"))[0] == "dog"
    assert segment.parse_classes("dog,  traffic light ,") == ("dog", "traffic light")
    assert segment.parse_classes("and/or, st. bernard") == ("and/or", "st. bernard")
    assert segment.parse_classes("dog") == ("dog",)


def test_what_was_written_into_a_folder_of_photos_is_none_of_them(photos):
    for name in ("a.json", "a_overlay.png", "a_groups_2.png", "a_1.png", "z_labels.png"):
        (photos / name).write_bytes(b"")
    for names in ([str(photos)], [str(photos / "*.png")]):
        found = {pathlib.Path(name).name for name in segment.find_images(names)}
        assert found - {"broken.jpg"} == {"a.png", "b.png", "c.png", "a_1.png", "z_labels.png"}
    assert segment.find_images([str(photos / "a_overlay.png")]) == [str(photos / "a_overlay.png")]


def test_images_of_equal_names_do_not_overwrite_each_other():
    assert segment.name_outputs(["x/a.jpg", "x/a.png", "x/b.png"]) == {
        "x/a.jpg": "a_jpg", "x/a.png": "a_png", "x/b.png": "b",
    }  # fmt: skip
    with pytest.raises(UserError, match="two images of this name"):
        segment.name_outputs(["x/a.jpg", "y/a.jpg"])


@pytest.mark.parametrize("name", ["dog", "Köln", "犬", "山水", "개", "كلب", "ёж"])
def test_legends_can_write_the_name(name):
    text, font = choose_font(name, 20)
    assert text == name
    boxes = bytes(font.getmask("\U0010fffe"))
    shapes = [bytes(font.getmask(character)) for character in name]
    assert boxes not in shapes and len(set(shapes)) == len(set(name))
