"""Both readers against Pillow and against each other, from files of every kind."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from image_files import encode, jpegs, other_files, photograph, turned_jpegs, unreadable_files
from PIL import Image, ImageOps

from cocu_jax.errors import UserError
from cocu_jax.input import image_graph, images

READABLE = jpegs() | turned_jpegs() | other_files()
UNREADABLE = unreadable_files()

decode = tf.function(image_graph.decode, input_signature=[tf.TensorSpec([], tf.string)])


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)])
def decode_part(encoded, window):
    return image_graph.decode(encoded, lambda height, width: window)


def by_pillow(encoded):
    """What a user of Pillow sees on a white page, written the long way round."""
    image = Image.open(io.BytesIO(encoded))
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) // 256).astype(np.uint8)[..., None], 3, -1)
    try:
        image = ImageOps.exif_transpose(image)
    except SyntaxError:  # of damaged EXIF
        pass
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    colours, alpha = rgba[..., :3], rgba[..., 3:] / 255
    return np.rint(colours * alpha + 255 * (1 - alpha)).astype(np.uint8)


@pytest.mark.parametrize("name", READABLE)
def test_both_readers_give_pillows_pixels(name):
    want = by_pillow(READABLE[name])
    np.testing.assert_array_equal(images.decode_image(READABLE[name]), want)
    np.testing.assert_array_equal(decode(READABLE[name]).numpy(), want)


def test_the_table_holds_every_turn_and_no_plain_duplicate():
    upright = by_pillow(READABLE["exif 1 little endian"])
    turned = [by_pillow(READABLE[f"exif {i} big endian"]) for i in range(1, 9)]
    assert len({array.tobytes() for array in turned}) == 8
    np.testing.assert_array_equal(turned[5], np.rot90(upright, -1))
    assert by_pillow(READABLE["xmp turned"]).shape == turned[7].shape == (83, 57, 3)
    grey = images.decode_image(READABLE["png 16 bit grey"])
    assert 100 < grey.mean() < 160 and grey.std() > 40  # not white


def test_decoding_outside_a_graph_does_not_trace_one_for_every_image(caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    encoded = encode(photograph(20, 30), "PNG")
    for _ in range(12):
        image_graph.decode(encoded)
    assert not caplog.records


@pytest.mark.parametrize("name", UNREADABLE)
def test_both_readers_refuse(name):
    with pytest.raises(images.UnreadableImage, match=r"^[^\n]+$"):
        images.decode_image(UNREADABLE[name])
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(UNREADABLE[name])


@pytest.mark.parametrize("kind", ["jpeg", "exif", "png", "gif"])
def test_a_part_is_the_part_of_the_whole(kind):
    files = {
        "jpeg": [READABLE[f"jpeg {s}"] for s in ("420", "422", "444", "420 progressive", "grey")],
        "exif": [READABLE[f"exif {i} big endian"] for i in range(2, 9)],
        "png": [READABLE["png rgba"]],
        "gif": [READABLE["gif"], READABLE["exif of a cmyk image"]],
    }
    rng = np.random.default_rng(0)
    for encoded in files[kind]:
        whole = images.decode_image(encoded)
        for _ in range(12):
            height, width = (int(rng.integers(1, length + 1)) for length in whole.shape[:2])
            top = int(rng.integers(0, whole.shape[0] - height + 1))
            left = int(rng.integers(0, whole.shape[1] - width + 1))
            got = decode_part(encoded, tf.constant([top, left, height, width])).numpy()
            np.testing.assert_array_equal(got, whole[top : top + height, left : left + width])


def test_usual_files_are_read_without_python(monkeypatch):
    def no_python(encoded):
        raise AssertionError("Python was called")

    monkeypatch.setattr(image_graph, "decode_image", no_python)
    usual = [name for name in READABLE if name.startswith(("jpeg 4", "jpeg grey", "exif 6"))]
    usual += ["png", "png rgba", "png grey", "png palette", "jpeg icc", "jpeg comment"]
    for name in usual:
        decode(READABLE[name])
    with pytest.raises(tf.errors.OpError):
        decode(READABLE["gif"])


def test_limits_hold_on_both_sides(monkeypatch):
    encoded = encode(photograph(20, 30), "PNG")
    for limit, value in (("MAX_PIXELS", 599), ("MAX_BYTES", len(encoded) - 1)):
        for module in (images, image_graph):
            monkeypatch.setattr(module, limit, value)
        with pytest.raises(images.UnreadableImage, match=f"more than {value:,} (pixels|bytes)"):
            images.decode_image(encoded)
        for kind in ("PNG", "JPEG", "GIF"):
            with pytest.raises(tf.errors.InvalidArgumentError):
                image_graph.decode(encode(photograph(200, 30), kind))
        monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    images.decode_image(encoded)


def test_an_unreadable_file_is_one_line_that_names_it(tmp_path):
    for number, (name, content) in enumerate(UNREADABLE.items()):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            images.read_image(file)
        assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value), name
    for missing in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            images.read_image(missing)


def test_bombs_cost_no_memory(tmp_path):
    """In a process of its own, whose largest size the system keeps."""
    (tmp_path / "bomb.png").write_bytes(UNREADABLE["png bomb"])
    assert len(UNREADABLE["png bomb"]) < 600_000
    code = f"""
import resource
from cocu_jax.input.images import read_image
size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = size()
try:
    read_image({str(tmp_path / "bomb.png")!r})
except Exception as error:
    print(type(error).__name__, size() - before < 20_000)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert output.split() == ["UserError", "True"]
