"""Miniature raw corpora in the formats people have."""

import io
import json
import tarfile
import urllib.parse
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from PIL import Image


def picture(number: int, size=(48, 32), kind="JPEG", mode="RGB", **options) -> bytes:
    """An encoded image that no other number gives."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image = image.quantize(dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_tar(path, members: list[tuple[str, bytes]], mode="w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def webdataset(path, numbers, caption="a dog number {}", mode="w") -> None:
    """A tar as img2dataset writes it: jpg, json, txt."""
    members = []
    for number in numbers:
        text = caption.format(number)
        fields = {"key": f"{number:09d}", "caption": text, "url": "http://example.com"}
        members += [
            (f"{number:09d}.jpg", picture(number)),
            (f"{number:09d}.json", json.dumps(fields).encode()),
            (f"{number:09d}.txt", text.encode()),
        ]
    write_tar(path, members, mode)


def tfrecord(path, numbers) -> None:
    """img2dataset's TFRecords."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in numbers:
            fields = {
                "key": f"{number:09d}".encode(),
                "jpg": picture(number),
                "caption": f"a cat number {number}".encode(),
                "status": b"success",
            }
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in fields.items()
            }
            feature["width"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[48]))
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def parquet(path, numbers) -> None:
    """img2dataset's Parquet files."""
    rows = {
        "key": [f"{number:09d}" for number in numbers],
        "caption": [f"a horse number {number}" for number in numbers],
        "jpg": [picture(number) for number in numbers],
        "width": [48 for _ in numbers],
    }
    pq.write_table(pa.table(rows), path)


def yfcc_line(number: int, title: str, description: str) -> str:
    """One line of yfcc100m_dataset: 25 columns, texts URL-quoted."""
    fields = [""] * 25
    fields[0], fields[1], fields[2] = str(number), str(9000 + number), f"{number:032x}"
    fields[8], fields[9] = urllib.parse.quote_plus(title), urllib.parse.quote_plus(description)
    return "\t".join(fields)


def write_zip(path, members: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
