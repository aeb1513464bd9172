"""The three usual ways to keep ImageNet's validation images give the same dataset."""

import io
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus, read_shard
from data_prep.imagenet import imagenet_classes, prepare_imagenet

# name, WordNet id, label, class name
IMAGES = [
    ("ILSVRC2012_val_00000001", "n02123045", 281, "tabby cat"),
    ("ILSVRC2012_val_00000002", "n01440764", 0, "tench"),
    ("ILSVRC2012_val_00000003", "n15075141", 999, "toilet paper"),
]


def jpeg(number):
    pixels = np.full((8 + number, 10, 3), 40 * number, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def by_class(root):
    for number, (name, wnid, *_) in enumerate(IMAGES):
        (root / "val" / wnid).mkdir(parents=True)
        (root / "val" / wnid / f"{name}.JPEG").write_bytes(jpeg(number))


def kaggle(root):
    folder = root / "ILSVRC/Data/CLS-LOC/val"
    folder.mkdir(parents=True)
    for number, (name, *_) in enumerate(IMAGES):
        (folder / f"{name}.JPEG").write_bytes(jpeg(number))
    rows = [f"{name},{wnid} 85 1 499 272 {wnid} 3 3 9 9 " for name, wnid, *_ in IMAGES]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))


def devkit(root):
    """The devkit numbers the classes in an order of its own."""
    data = root / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", float), ("WNID", object)]
    synsets = np.array([(7.0, "n15075141"), (3.0, "n02123045"), (5.0, "n01440764")], dtype=fields)
    scipy.io.savemat(data / "meta.mat", {"synsets": synsets[:, None]})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n5\n7\n")


def archive(root):
    devkit(root)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number, (name, *_) in enumerate(IMAGES):
            member = tarfile.TarInfo(f"{name}.JPEG")
            member.size = len(jpeg(number))
            tar.addfile(member, io.BytesIO(jpeg(number)))


@pytest.mark.parametrize("layout", [by_class, kaggle, archive])
def test_every_layout_gives_the_same_labels(layout, tmp_path):
    layout(tmp_path)
    corpus = open_corpus(prepare_imagenet(str(tmp_path), str(tmp_path / "tfds")), "validation")
    examples = {
        example["key"].decode(): (example["image"], int(example["label"]))
        for example in read_shard(corpus, 0).as_numpy_iterator()
    }
    for number, (name, _, label, class_name) in enumerate(IMAGES):
        assert examples[name] == (jpeg(number), label)
        assert corpus.metadata["classes"][label] == class_name
    assert len(examples) == len(IMAGES)
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == ["imagenet_validation"]


def test_there_are_a_thousand_classes_in_label_order():
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert list(classes) == sorted(classes)


def test_images_without_labels_are_one_line(tmp_path):
    kaggle(tmp_path)
    (tmp_path / "LOC_val_solution.csv").unlink()
    with pytest.raises(UserError, match="devkit"):
        prepare_imagenet(str(tmp_path), str(tmp_path / "tfds"))
    with pytest.raises(UserError, match="no ImageNet validation images"):
        prepare_imagenet(str(tmp_path / "ILSVRC"), str(tmp_path / "tfds"))


def test_an_empty_file_is_one_line(tmp_path):
    by_class(tmp_path)
    next(tmp_path.glob("val/*/*.JPEG")).write_bytes(b"")
    with pytest.raises(UserError, match="the file of ILSVRC2012_val_0000000. is empty"):
        prepare_imagenet(str(tmp_path), str(tmp_path / "tfds"))
