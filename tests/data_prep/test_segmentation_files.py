"""Miniature replicas of the official layouts, in their real formats, by class name."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from cocu_jax.errors import UserError
from data_prep.segmentation.files import find_samples
from data_prep.segmentation.ids import IGNORE, context
from data_prep.segmentation.prepare import read_sample
from eval.benchmarks import get_benchmark

SIZE = (12, 8)  # width, height

# Raw id -> class name by the datasets' own documentation; None is ignored.
COCO_STUFF = {
    0: "person", 12: "stop sign", 31: "tie", 89: "toothbrush", 91: "banner", 123: "grass",
    156: "sky-other", 168: "tree", 181: "wood", 255: None,
}  # fmt: skip
COCO_OBJECT = {
    0: "person", 12: "stop sign", 31: "tie", 89: "toothbrush", 91: "background",
    181: "background", 11: "background", 255: "background",
}  # fmt: skip
EXPECTED = {
    "voc": {0: "background", 1: "aeroplane", 15: "person", 20: "monitor", 255: None},
    "context": {0: "background", 1: "airplane", 37: "person", 59: "wood", 255: None},
    "coco_object": COCO_OBJECT,
    "coco_stuff": COCO_STUFF,
    "cityscapes": {7: "road", 26: "car", 33: "bicycle", 4: None, 0: None, 255: None},
    "ade20k": {0: None, 1: "wall", 3: "sky", 150: "flag"},
    "imagenet_s_50": {0: "background", 1: "goldfish", 50: "agaric", 1000: None},
    "imagenet_s_300": {0: "background", 1: "tench", 256: "throne", 300: "bolete", 1000: None},
    "imagenet_s_919": {0: "background", 1: "tench", 2: "goldfish", 919: "toilet tissue"},
}


def write_image(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def stripes(ids, size=SIZE):
    """A mask with every id in it."""
    return np.resize(np.array(ids), (size[1], size[0]))


def write_labels(path, raw, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(raw.astype(np.uint8), mode="L")
    if palette:
        image = image.convert("P")
        image.putdata(raw.reshape(-1).tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    image.save(path)


def write_split(path, keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}\n" for key in keys))


def replica(name, root):
    """Two images of each layout; the second one's mask is the first's mirrored."""
    raw = stripes(list(EXPECTED[name]))
    keys = {
        "voc": ("2007_000033", "2007_000042"),
        "context": ("2008_000002", "2008_000003"),
        "cityscapes": ("frankfurt_000000_000294", "munster_000001_000019"),
        "ade20k": ("ADE_val_00000001", "ADE_val_00000002"),
    }.get(name, ("000000000139", "000000000285"))
    if name.startswith("imagenet_s"):
        keys = ("ILSVRC2012_val_00000009", "ILSVRC2012_val_00000015")
    for key, mask in zip(keys, (raw, raw[:, ::-1]), strict=True):
        if name in ("voc", "context"):
            top = root / "VOCdevkit" / ("VOC2012" if name == "voc" else "VOC2010")
            folder = "SegmentationClass" if name == "voc" else "SegmentationClassContext"
            write_image(top / f"JPEGImages/{key}.jpg")
            write_labels(top / f"{folder}/{key}.png", mask, palette=name == "voc")
            split = "Segmentation" if name == "voc" else "SegmentationContext"
            write_split(top / f"ImageSets/{split}/val.txt", keys)
        elif name.startswith("coco"):
            write_image(root / f"images/val2017/{key}.jpg")
            write_labels(root / f"annotations/val2017/{key}.png", mask)
        elif name == "cityscapes":
            city = key.split("_")[0]
            write_image(root / f"leftImg8bit/val/{city}/{key}_leftImg8bit.png")
            write_labels(root / f"gtFine/val/{city}/{key}_gtFine_labelIds.png", mask)
        elif name == "ade20k":
            write_image(root / f"ADEChallengeData2016/images/validation/{key}.jpg")
            write_labels(root / f"ADEChallengeData2016/annotations/validation/{key}.png", mask)
        else:
            write_image(root / f"validation/n01443537/{key}.JPEG", format="JPEG")
            colours = np.stack([mask % 256, mask // 256, np.zeros_like(mask)], -1).astype(np.uint8)
            path = root / f"validation-segmentation/n01443537/{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(path)
    return keys


@pytest.mark.parametrize("name", EXPECTED)
def test_every_official_layout_is_read_by_class_name(name, tmp_path):
    keys = replica(name, tmp_path)
    samples = find_samples(name, str(tmp_path))
    assert [sample.key for sample in samples] == list(keys)
    classes = get_benchmark(name).classes
    raw = stripes(list(EXPECTED[name]))
    for sample, mask in zip(samples, (raw, raw[:, ::-1]), strict=True):
        content, found = read_sample(sample)
        assert content == sample.image.read_bytes()
        named = [None if c == IGNORE else classes[c] for c in found.reshape(-1)]
        assert named == [EXPECTED[name][number] for number in mask.reshape(-1)]


def test_context_json_equals_its_masks(tmp_path):
    """Regions of PASCAL in Detail's categories, later ones over earlier ones."""
    top = tmp_path / "VOC2010"
    write_image(top / "JPEGImages/2008_000002.jpg")
    people, sky = np.zeros(SIZE[::-1], np.uint8), np.zeros(SIZE[::-1], np.uint8)
    sky[:5], people[3:7, 2:9] = 1, 1

    def region(mask, category, number=2008000002):
        packed = run_lengths.encode(np.asfortranarray(mask))
        packed["counts"] = packed["counts"].decode()
        return {"image_id": number, "category_id": category, "segmentation": packed}

    image = {"file_name": "2008_000002.jpg", "image_id": 2008000002, "phase": "val"}
    image |= {"height": SIZE[1], "width": SIZE[0]}
    other = image | {"file_name": "2008_000009.jpg", "image_id": 2008000009, "phase": "train"}
    regions = [region(sky, 360), region(people, 284), region(people, 2, 2008000009)]
    content = {"images": [other, image], "annos_segmentation": regions}
    (top / "trainval_merged.json").write_text(json.dumps(content))
    (sample,) = find_samples("context", str(tmp_path))
    _, mask = read_sample(sample)
    classes = get_benchmark("context").classes
    expected = np.where(people, "person", np.where(sky, "sky", "background"))
    np.testing.assert_array_equal(np.array(classes)[mask], expected)


@pytest.mark.parametrize(
    "number,name", [(2, "airplane"), (115, "door"), (427, "monitor"), (458, "wood")]
)
def test_context_categories_are_in_class_order(number, name):
    assert get_benchmark("context").classes[context()[number]] == name


def test_converted_masks_are_taken_where_they_are(tmp_path):
    write_image(tmp_path / "coco/images/val2017/000000000139.jpg")
    made = stripes([0, 1, 80, 255])
    write_labels(tmp_path / "coco/annotations/val2017/000000000139_instanceTrainIds.png", made)
    (sample,) = find_samples("coco_object", str(tmp_path))
    np.testing.assert_array_equal(read_sample(sample)[1], np.where(made == 255, 0, made))
    write_image(tmp_path / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png")
    train = stripes([0, 18, 255])
    write_labels(tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelTrainIds.png", train)
    (sample,) = find_samples("cityscapes", str(tmp_path))
    np.testing.assert_array_equal(read_sample(sample)[1], np.where(train == 255, IGNORE, train))


def test_large_imagenet_s_images_keep_their_bytes_and_masks_their_size(tmp_path):
    write_image(tmp_path / "validation/n01443537/a.JPEG", size=(1500, 700), format="JPEG")
    halves = np.zeros((700, 1500, 3), np.uint8)
    halves[:, 750:] = (44, 1, 0)  # 44 + 256
    path = tmp_path / "validation-segmentation/n01443537/a.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(halves).save(path)
    (sample,) = find_samples("imagenet_s_300", str(tmp_path))
    image, mask = read_sample(sample)
    assert image == sample.image.read_bytes() and mask.shape == (700, 1500)
    np.testing.assert_array_equal(np.unique(mask[:, :750]), [0])
    np.testing.assert_array_equal(np.unique(mask[:, 750:]), [300])


def test_another_split_of_imagenet_s_is_refused(tmp_path):
    write_image(tmp_path / "validation/n02114548/a.JPEG", format="JPEG")  # of 919, not of 300
    (tmp_path / "validation-segmentation").mkdir()
    with pytest.raises(UserError, match="n02114548: no class of ImageNet-S-300 .*this split"):
        find_samples("imagenet_s_300", str(tmp_path))
    assert len(find_samples("imagenet_s_919", str(tmp_path))) == 1


def break_root(top):
    (top / "VOCdevkit").rename(top / "elsewhere")


def break_split(top):
    (top / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()


def break_image(top):
    (top / "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg").unlink()


def truncate_image(top):
    path = top / "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg"
    path.write_bytes(path.read_bytes()[:200])


def enlarge_image(top):
    path = top / "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg"
    Image.new("1", (9000, 8000)).save(path, "PNG")  # 9 kB, and 216 MB once it is decoded


def enlarge_mask(top):
    path = top / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png"
    Image.new("L", (9000, 8000)).save(path)


def break_mask(top):
    (top / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png").unlink()


def wrong_id(top):
    mask = top / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png"
    write_labels(mask, np.full(SIZE[::-1], 21))


def wrong_size(top):
    write_image(top / "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg", size=(8, 12))


def coloured_mask(top):
    write_image(top / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png")


@pytest.mark.parametrize(
    "damage,words",
    [
        (break_root, ("JPEGImages", "--root must hold VOCdevkit")),
        (break_split, ("ImageSets/Segmentation/val.txt",)),
        (break_image, ("2007_000033.jpg", "no such file")),
        (truncate_image, ("2007_000033.jpg", "not a readable image")),
        (enlarge_image, ("2007_000033.jpg", "9000 x 8000 is more than 64,000,000 pixels")),
        (enlarge_mask, ("2007_000033.png", "9000 x 8000 is more than 64,000,000 pixels")),
        (break_mask, ("2007_000033.png", "no such file")),
        (wrong_id, ("2007_000033.png", "holds id 21", "--benchmark")),
        (wrong_size, ("2007_000033.jpg", "8 x 12", "12 x 8")),
        (coloured_mask, ("2007_000033.png", "RGB", "palette or label")),
    ],
)
def test_errors_name_the_file_and_the_remedy_in_one_line(damage, words, tmp_path):
    replica("voc", tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        for sample in find_samples("voc", str(tmp_path)):
            read_sample(sample)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_wrong_json_is_named(tmp_path):
    top = tmp_path / "VOC2010"
    write_image(top / "JPEGImages/2008_000002.jpg")
    (top / "trainval_merged.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="trainval_merged.json"):
        find_samples("context", str(tmp_path))
