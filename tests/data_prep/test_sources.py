"""Every source that docs/data_preparation.md lists, in the layout in which people have it."""

import gzip
import json
import pathlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_corpora as raw
from prepared_corpora import GALLERY, examples, report

from data_prep.__main__ import main

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "data_preparation.md"


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(raw.picture(number))


def img2dataset_tars(root):
    """`--output_format webdataset`: metadata and statistics lie beside the tars."""
    for shard in range(2):
        numbers = range(3 * shard, 3 * shard + 3)
        raw.webdataset(root / f"cc3m/0000{shard}.tar", numbers)
        metadata(root / f"cc3m/0000{shard}.parquet", numbers)
        (root / f"cc3m/0000{shard}_stats.json").write_text('{"count": 3}')
    return {f"{n:09d}": [f"a dog number {n}"] for n in range(6)}


def hub_webdataset(root):
    """`pixparse/cc3m-wds`, as huggingface_hub downloads it."""
    for shard in range(2):
        raw.webdataset(root / f"cc3m-wds/cc3m-train-000{shard}.tar", [2 * shard, 2 * shard + 1])
    (root / "cc3m-wds/_info.json").write_text("{}")
    (root / "cc3m-wds/README.md").write_text("# Conceptual captions")
    return {f"{n:09d}": [f"a dog number {n}"] for n in range(4)}


def img2dataset_files(root):
    """`--output_format files`, its default: the tables repeat what is in the folders."""
    for shard in range(2):
        numbers = range(3 * shard, 3 * shard + 3)
        folder = root / f"files/0000{shard}"
        write_images(folder, [f"{n:09d}.jpg" for n in numbers])
        for n in numbers:
            (folder / f"{n:09d}.txt").write_text(f"a dog number {n}")
            (folder / f"{n:09d}.json").write_text(json.dumps({"caption": f"a dog number {n}"}))
        metadata(root / f"files/0000{shard}.parquet", numbers)
        (root / f"files/0000{shard}_stats.json").write_text('{"count": 3}')
    return {f"0000{n // 3}/{n:09d}": [f"a dog number {n}"] for n in range(6)}


def metadata(path, numbers):
    columns = {"url": "http://example.com/{}.jpg", "key": "{:09d}", "caption": "a dog number {}"}
    rows = {name: [text.format(n) for n in numbers] for name, text in columns.items()}
    pq.write_table(pa.table(rows | {"status": ["success" for _ in numbers]}), path)


def img2dataset_tables(root):
    """`--output_format parquet`."""
    raw.parquet(root / "00000.parquet", range(3))
    return {f"{n:09d}": [f"a horse number {n}"] for n in range(3)}


def img2dataset_tfrecords(root):
    """`--output_format tfrecord`."""
    raw.tfrecord(root / "00000.tfrecord", range(3))
    return {f"{n:09d}": [f"a cat number {n}"] for n in range(3)}


def hub_table(root):
    """A dataset of the hub with the image feature and a list of captions; no keys."""
    (root / "data").mkdir()
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for part in range(2):
        numbers = range(2 * part, 2 * part + 2)
        columns = {
            "image": pa.array([{"bytes": raw.picture(n), "path": None} for n in numbers], image),
            "caption": [[f"a dog number {n}", f"the dog, again {n}"] for n in numbers],
            "sentids": [[str(n)] for n in numbers],
        }
        name = f"test-0000{part}-of-00002-bd3a4f0e.parquet"
        pq.write_table(pa.table(columns), root / "data" / name)
    return {
        f"test-0000{n // 2}-of-00002-bd3a4f0e/{n % 2:08d}": [
            f"a dog number {n}",
            f"the dog, again {n}",
        ]
        for n in range(4)
    }


def own_table(root):
    """Columns of any name, integers as keys."""
    columns = {
        "picture": [raw.picture(n) for n in range(3)],
        "alt": [f"a dog number {n}" for n in range(3)],
        "sku": [70 + n for n in range(3)],
    }
    pq.write_table(pa.table(columns), root / "shop.parquet")
    return {f"{70 + n}": [f"a dog number {n}"] for n in range(3)}


def kaggle_flickr8k(root):
    names = ["1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg"]
    write_images(root / "flickr8k/Images", names)
    captions = [
        "A child in a pink dress is climbing up a set of stairs in an entry way .",
        "A black dog, and a spotted dog are fighting",
        "A little girl climbing into a wooden playhouse .",
    ]
    rows = [
        f'{name},"{text}"' if "," in text else f"{name},{text}"
        for name in names
        for text in captions
    ]
    (root / "flickr8k/captions.txt").write_text("\n".join(["image,caption", *rows, ""]))
    return {name: captions for name in names}


def kaggle_flickr30k(root):
    names = ["1000092795.jpg", "10002456.jpg"]
    write_images(root / "flickr30k/flickr30k_images", names)
    captions = ["Two young guys with shaggy hair look at their hands .", "Two men, in green shirts"]
    rows = [f"{name}| {n}|  {text}" for name in names for n, text in enumerate(captions)]
    text = "\n".join(["image_name| comment_number| comment", *rows])
    (root / "flickr30k/results.csv").write_text(text)
    return {name: captions for name in names}


def flickr8k_token(root):
    """The archive as it was first handed out, with its folder's name."""
    names = ["1305564994_00513f9a5b.jpg", "1351764581_4d4fb1b40f.jpg"]
    write_images(root / "Flicker8k_Dataset", names)
    captions = ["A man in street racer armor .", "Two racers drive a white bike down a road ."]
    rows = [f"{name}#{n}\t{text}" for name in names for n, text in enumerate(captions)]
    (root / "Flickr8k.token.txt").write_text("\n".join(rows))
    return {name: captions for name in names}


def coco_captions(root):
    names = ["000000179765.jpg", "000000190236.jpg"]
    write_images(root / "coco/val2017", names)
    ids = [179765, 190236]
    texts = ["A black Honda motorcycle", "An office cubicle with four chairs"]
    more = ["A motorcycle parked in grass", "The office has a desk"]
    pairs = [*zip(ids, texts, strict=True), *zip(ids, more, strict=True)]  # not adjacent
    content = {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": i, "file_name": name, "height": 32, "width": 48}
            for i, name in zip(ids, names, strict=True)
        ],
        "annotations": [
            {"image_id": i, "id": n, "caption": text} for n, (i, text) in enumerate(pairs)
        ],
    }
    (root / "coco/annotations").mkdir()
    (root / "coco/annotations/captions_val2017.json").write_text(json.dumps(content))
    return {name: [*pair] for name, *pair in zip(names, texts, more, strict=True)}


def karpathy_split(root):
    names = ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000060623.jpg"]
    write_images(root / "coco/val2014", names)
    captions = ["A man with a red helmet.", "Man riding a motor bike."]
    images = [
        {
            "filepath": "val2014",
            "filename": name,
            "imgid": n,
            "split": "test",
            "sentences": [{"tokens": text.split(), "raw": text, "imgid": n} for text in captions],
        }
        for n, name in enumerate(names)
    ]
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return {f"val2014/{name}": captions for name in names}


def openclip_list(root):
    """OpenCLIP's default: tabs, `filepath` and `title`, in a file called .csv."""
    write_images(root / "img", ["im age 0é.jpg", "1.jpg"])
    text = (
        'filepath\ttitle\nimg/im age 0é.jpg\t"a red dog, with a ""blue"" hat"\nimg/1.jpg\t9" dog\n'
    )
    (root / "pairs.csv").write_text(text)
    return {"img/im age 0é.jpg": ['a red dog, with a "blue" hat'], "img/1.jpg": ['9" dog']}


def pandas_list(root):
    """`to_csv(sep="\\t")`: fields with a tab, a line's end or quotes are quoted."""
    write_images(root / "img", [f"{n}.jpg" for n in range(3)])
    text = 'path\tcaption\n0.jpg\t"two\tcats on a\nwooden mat"\n1.jpg\t"He said ""hi"" to it"\n'
    (root / "pairs.tsv").write_text(text + '2.jpg\t"Bring it home" is a song\n')
    captions = ["two cats on a wooden mat", 'He said "hi" to it', '"Bring it home" is a song']
    return {f"{n}.jpg": [text] for n, text in enumerate(captions)}


def json_array(root):
    """LLaVA's lists: an array of objects."""
    write_images(root / "img", ["0.jpg", "1.jpg"])
    rows = [{"id": f"x{n}", "image": f"{n}.jpg", "caption": f"a dog {n}"} for n in range(2)]
    (root / "blip.json").write_text(json.dumps(rows))
    return {f"x{n}": [f"a dog {n}"] for n in range(2)}


def json_lines(root):
    """A Latin-1 line and numbers as keys do no harm."""
    write_images(root, ["0.jpg", "1.jpg", "2.jpg"])
    rows = ['{"id": 7, "file_name": "0.jpg", "text": "a dog 0"}']
    rows.append('{"id": 8.0, "file_name": "1.jpg", "text": ["a café", "a dog 1"]}')
    (root / "metadata.jsonl").write_bytes("\n".join(rows).encode("latin-1"))
    return {"7": ["a dog 0"], "8": ["a café", "a dog 1"]}


def photos(root):
    """Cameras, browsers and caption tools name files in many ways."""
    write_images(root / "photos/deep", ["a.JPG", "b.jfif", "c.v2.jpeg", "e.jpg", "f.jpg"])
    (root / "photos/deep/d.png").write_bytes(raw.picture(9, kind="PNG"))
    (root / "photos/deep/g.avif").write_bytes(raw.picture(9, kind="AVIF"))
    (root / "photos/deep/a.txt").write_text("a dog a\n")
    (root / "photos/deep/b.TXT").write_text("a dog b")
    (root / "photos/deep/c.v2.txt").write_text("a dog c")
    (root / "photos/deep/d.caption").write_text("a dog d")
    (root / "photos/deep/e.txt").write_bytes("a café e".encode("utf-16"))
    (root / "photos/deep/f.txt").write_bytes("a café f".encode("latin-1"))
    (root / "photos/deep/g.json").write_text('{"caption": "a dog g"}')
    texts = {"a": "a dog a", "b": "a dog b", "c.v2": "a dog c", "d": "a dog d"}
    texts |= {"e": "a café e", "f": "a café f", "g": "a dog g"}
    return {f"deep/{stem}": [text] for stem, text in texts.items()}


def odd_tars(root):
    """The same endings in a tar, and an empty text beside the caption's JSON."""
    members = [
        ("a.img", raw.picture(0)),
        ("a.cap", b"a dog a"),
        ("b.JFIF", raw.picture(1)),
        ("b.TXT", b"a dog b"),
        ("c.jpg", raw.picture(2)),
        ("c.txt", b""),
        ("c.json", b'{"caption": "a dog c"}'),
        ("d.jpg", raw.picture(3)),
        ("d.txt", "a café d".encode("latin-1")),
    ]
    raw.write_tar(root / "odd.tar", members)
    return {"a": ["a dog a"], "b": ["a dog b"], "c": ["a dog c"], "d": ["a café d"]}


def dotted_tar(root):
    members = []
    for number in range(3):
        members += [
            (f"photo.v{number}.jpg", raw.picture(number)),
            (f"photo.v{number}.txt", b"a dog"),
        ]
    raw.write_tar(root / "dots.tar", members)
    return {f"photo.v{number}": ["a dog"] for number in range(3)}


def named_tar(root):
    members = []
    for number in range(3):
        members += [
            (f"s{number}.input.jpg", raw.picture(number)),
            (f"s{number}.outputs.txt", b"a dog"),
        ]
    raw.write_tar(root / "nested/deep/named.tar", members)
    return {f"s{number}": ["a dog"] for number in range(3)}


def zipped_pairs(root):
    """As macOS packs a folder."""
    members = [("pairs/", b""), ("pairs/b.txt", b"a dog b"), ("pairs/a.webp", raw.picture(0))]
    members += [("pairs/b.JPG", raw.picture(1)), ("pairs/a.json", b'{"caption": "a dog a"}')]
    raw.write_zip(root / "pairs.zip", members)
    return {"pairs/a": ["a dog a"], "pairs/b": ["a dog b"]}


def zipped_list(root):
    write_images(root / "img", ["0.jpg", "1.jpg"])
    rows = [json.dumps({"image": f"{n}.jpg", "caption": f"a dog {n}"}) for n in range(2)]
    (root / "list.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return {f"{n}.jpg": [f"a dog {n}"] for n in range(2)}


def webdataset_table(root):
    """WebDataset tars that the hub turned into Parquet: columns are the members' endings."""
    columns = {"__key__": ["a", "b"], "jpg": [raw.picture(n) for n in range(2)]}
    columns |= {"txt": ["a dog a", "a dog b"], "json": [{"sha256": "0"}] * 2}
    pq.write_table(pa.table(columns), root / "train-00000-of-00001.parquet")
    return {"a": ["a dog a"], "b": ["a dog b"]}


SOURCES = {
    img2dataset_tars: "--sources cc3m",
    hub_webdataset: "--sources cc3m-wds/cc3m-train-*.tar",
    img2dataset_files: "--sources files",
    img2dataset_tables: "--sources 00000.parquet",
    img2dataset_tfrecords: "--sources 00000.tfrecord",
    hub_table: "--sources data",
    own_table: "--sources shop.parquet --image_column picture --caption_column alt "
    "--key_column sku",
    kaggle_flickr8k: "--sources flickr8k/captions.txt --images flickr8k/Images",
    kaggle_flickr30k: "--sources flickr30k/results.csv --images flickr30k/flickr30k_images",
    flickr8k_token: "--sources Flickr8k.token.txt --images Flicker8k_Dataset",
    coco_captions: "--sources coco/annotations/captions_val2017.json --images coco/val2017",
    karpathy_split: "--sources dataset_coco.json --images coco",
    openclip_list: "--sources pairs.csv",
    pandas_list: "--sources pairs.tsv --images img",
    json_array: "--sources blip.json --images img",
    json_lines: "--sources metadata.jsonl",
    photos: "--sources photos",
    zipped_pairs: "--sources pairs.zip",
    zipped_list: "--sources list.jsonl.gz --images img",
    webdataset_table: "--sources train-*.parquet",
    odd_tars: "--sources odd.tar",
    dotted_tar: "--sources dots.tar --dotted_keys",
    named_tar: "--sources **/*.tar --image_column input.jpg --caption_column outputs.txt",
}


@pytest.mark.parametrize("write", SOURCES, ids=lambda write: write.__name__)
def test_source_gives_its_images_and_captions(write, tmp_path, monkeypatch, capsys):
    for folder in ("cc3m", "cc3m-wds", "files", "nested/deep"):
        (tmp_path / folder).mkdir(parents=True)
    expected = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    GALLERY.save("gallery.json")
    flags = "--data_dir tfds --workers 1 --gallery gallery.json"
    main(f"image_text custom {flags} {SOURCES[write]}".split())
    directory = capsys.readouterr().out.splitlines()[0]
    found = {e["key"].decode(): e["caption"].decode().split("\n") for e in examples(directory)}
    assert found == {
        key: [text.rstrip() for text in captions] for key, captions in expected.items()
    }
    assert report(directory)["dropped"] == {}
    assert report(directory)["captions"] == sum(map(len, expected.values()))


def test_docs_list_exactly_these_sources():
    listed = {
        flags.replace("'", "")
        for flags in re.findall(r"^\|.*\| `(--sources [^`]*)` \|", DOCS.read_text(), re.MULTILINE)
    }
    assert {flags for flags in listed if "--yfcc" not in flags} == set(SOURCES.values())
