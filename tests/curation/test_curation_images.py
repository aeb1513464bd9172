import io
import os
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from curation_corpus import encoded, example, write_clip, write_corpus
from image_files import jpegs, turned_jpegs
from PIL import Image, ImageOps

from cocu_jax.curation.embed import Encoder, embed_shards
from cocu_jax.curation.images import image_batches, square_pixels
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from cocu_jax.models.weights.huggingface import load_clip
from cocu_jax.models.weights.image_processing import ImageProcessing, write_processing

SIZE = 32


def png_header(width, height):
    """A PNG that promises more pixels than it has."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 1_000)
    chunks += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg_header(width, height):
    """A small JPEG whose frame header says otherwise."""
    data = bytearray(encoded(np.zeros((8, 8, 3), np.uint8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def picture(height, width):
    """Waves of colour, smooth as photographs are."""
    y, x = np.mgrid[:height, :width] / 7.0
    waves = [np.sin(x + y / 3), np.sin(y - x / 4), np.cos(x / 2) * np.sin(y / 2)]
    return np.uint8(128 + 100 * np.stack(waves, -1))


@pytest.mark.parametrize("shape", [(57, 81), (81, 57), (32, 32), (11, 200), (1, 1), (300, 33)])
@pytest.mark.parametrize(
    "processing",
    [ImageProcessing(SIZE), ImageProcessing(SIZE, keep_aspect=False, resample="bilinear")],
    ids=["clip", "squeezed"],
)
def test_pixels_equal_hugging_faces_image_processor(shape, processing):
    image = encoded(picture(*shape), "PNG")
    reference = transformers.CLIPImageProcessorPil(**write_processing(processing))
    theirs = reference(Image.open(io.BytesIO(image)), return_tensors="np")["pixel_values"][0]
    mean, std = (np.array(x)[:, None, None] for x in (processing.mean, processing.std))
    theirs = np.rint((theirs * std + mean) * 255).transpose(1, 2, 0)
    ours = square_pixels(tf.constant(image), processing).numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_jpegs_of_all_kinds_have_the_embeddings_of_the_torch_pipeline(tmp_path):
    """From the same files; also the very pixels that transformers sees."""
    files = jpegs() | turned_jpegs()
    for damaged in ("exif cut off", "exif garbage", "exif points outside"):  # transformers raises
        del files[damaged]
    examples = [example(number, image) for number, image in enumerate(files.values())]
    corpus = open_corpus(write_corpus(tmp_path / "corpus", examples, 1), "train")
    folder = write_clip(tmp_path / "clip")
    clip, processing = load_clip(folder)
    reference = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    images = [ImageOps.exif_transpose(Image.open(io.BytesIO(file))) for file in files.values()]
    inputs = torch.cat([reference(image, return_tensors="pt").pixel_values for image in images])
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model.visual_projection(model.vision_model(inputs).pooler_output).numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)

    (batch,) = image_batches(corpus, [0], processing, len(files)).as_numpy_iterator()
    mean, std = np.float32(processing.mean), np.float32(processing.std)
    seen = np.rint((inputs.numpy().transpose(0, 2, 3, 1) * std + mean) * 255)
    np.testing.assert_array_equal(batch["pixels"], seen)
    ((_, shard),) = embed_shards(Encoder(clip, processing, 2), corpus, [0], processing)
    assert shard.readable.all()
    cosines = (shard.embeddings.astype(np.float32) * theirs).sum(1)
    assert cosines.min() > 1 - 1e-3, min(zip(cosines, files, strict=True))


PIXELS = picture(40, 50)
READABLE = {
    "jpeg": encoded(PIXELS),
    "png": encoded(PIXELS, "PNG"),
    "webp": encoded(PIXELS, "WEBP"),
    "lossless webp": encoded(PIXELS, "WEBP", lossless=True),
    "gif": encoded(PIXELS, "GIF"),
    "bmp": encoded(PIXELS, "BMP"),
    "grey": encoded(PIXELS, mode="L"),
    "cmyk": encoded(PIXELS, mode="CMYK"),
    "alpha": encoded(PIXELS, "PNG", "RGBA"),
    "1x1": encoded(PIXELS[:1, :1], "PNG"),
}
UNREADABLE = {
    "zero bytes": b"",
    "text": b"<html>not found</html>",
    "truncated jpeg": encoded(PIXELS)[:-200],
    "truncated png": encoded(PIXELS, "PNG")[:-200],
    "cut in the header": encoded(PIXELS)[:8],
    "png bomb": png_header(20_000, 20_000),
    "jpeg bomb": jpeg_header(20_000, 20_000),
    "empty image": png_header(0, 5),
}


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    images = [*READABLE.values(), *UNREADABLE.values()] + [READABLE["jpeg"]]
    examples = [example(i, image) for i, image in enumerate(images)]
    corpus = open_corpus(write_corpus(tmp_path_factory.mktemp("images"), examples, 1), "train")
    return list(image_batches(corpus, [0], ImageProcessing(SIZE), batch=4).as_numpy_iterator())


def test_damaged_images_are_flagged_and_nothing_else_changes(batches):
    readable = np.concatenate([batch["readable"] for batch in batches])
    names = [*READABLE, *UNREADABLE, "last"]
    assert [name for name, flag in zip(names, readable, strict=True) if not flag] == [*UNREADABLE]
    keys = np.concatenate([batch["key"] for batch in batches])
    assert keys.tolist() == [f"key-{i}".encode() for i in range(len(names))]


def test_readable_formats_show_the_same_picture(batches):
    pixels = np.concatenate([batch["pixels"] for batch in batches]).astype(int)
    pictures = dict(zip([*READABLE, *UNREADABLE], pixels, strict=False))
    for name in ("png", "lossless webp", "bmp", "alpha"):
        np.testing.assert_array_equal(pictures[name], pictures["bmp"])
    for name in ("jpeg", "webp"):
        assert np.abs(pictures[name] - pictures["bmp"]).mean() < 4  # lossy, but the same picture
    assert (pictures["grey"][..., 0] == pictures["grey"][..., 1]).all()
    assert (pictures["1x1"] == PIXELS[0, 0]).all()
    assert all((pictures[name] == 0).all() for name in UNREADABLE)


class Blind:
    """An encoder that looks at nothing."""

    batch, width = 2, 3

    def images(self, pixels):
        return np.ones((self.batch, 3), np.float16)


def drop_last_record(file):
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records[:-1]:
            writer.write(record)


@pytest.mark.parametrize(
    "damage",
    [
        drop_last_record,
        os.remove,
        lambda file: file.write_bytes(file.read_bytes()[:-50]),
        lambda file: file.write_bytes(b"\0" + file.read_bytes()[1:]),
    ],
    ids=["a record too few", "missing", "truncated", "overwritten"],
)
def test_a_damaged_file_is_named_and_the_shards_before_it_are_embedded(tmp_path, damage):
    examples = [example(i) for i in range(12)]
    corpus = open_corpus(write_corpus(tmp_path, examples, shards=3), "train")
    damage(pathlib.Path(corpus.shard_files[1]))
    done = {}
    with pytest.raises(UserError, match=re.escape(corpus.shard_files[1])):
        for shard, embedded in embed_shards(Blind(), corpus, [0, 1, 2], ImageProcessing(SIZE)):
            done[shard] = embedded
    assert list(done) == [0]
