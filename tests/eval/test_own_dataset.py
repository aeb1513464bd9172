"""Folders of photos and masks of one's own, prepared, then evaluated from a checkpoint on disk."""

import importlib

import numpy as np
import pytest
from miniature import make_images, make_model
from PIL import Image

from cocu_jax.models.weights.huggingface import save_groupvit
from data_prep.segmentation.own_files import OwnFiles
from data_prep.segmentation.prepare import prepare_own
from eval.job import evaluate

pytestmark = pytest.mark.usefixtures("small_tiles")


@pytest.mark.slow  # compiles the evaluation for two shapes
def test_own_photos_and_masks_are_evaluated_to_the_pixel(tmp_path):
    for number, (image, labels) in enumerate(make_images([(40, 60), (60, 40)], 3)):
        for folder, pixels, ending in (("photos", image, "png"), ("masks", labels, "png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{number}.{ending}")
    (tmp_path / "classes.txt").write_text("background\ngrass\nriver\n")
    files = OwnFiles(*(str(tmp_path / name) for name in ("photos", "masks", "classes.txt")))
    directory = prepare_own("mine", files, True, str(tmp_path / "tfds"))
    save_groupvit(make_model(), str(tmp_path / "run/export"))
    config = importlib.import_module("configs.evaluate").get_config()
    config.checkpoint = str(tmp_path / "run")
    config.custom.update(crop=32, stride=16, resize_long_short=())
    config.update(benchmarks=directory, pictures=0, windows_per_forward=2)
    [(name, figures)] = evaluate(config, str(tmp_path / "workdir")).items()
    assert figures["images"] == 2
    assert list(figures["iou"]) == ["background", "grass", "river"]
    matrix = np.load(tmp_path / f"workdir/results/{name}.npy")[0]
    truth = [np.asarray(Image.open(file)) for file in (tmp_path / "masks").iterdir()]
    counts = [sum(int((mask == label).sum()) for mask in truth) for label in range(3)]
    assert matrix.sum(axis=1).tolist() == counts
