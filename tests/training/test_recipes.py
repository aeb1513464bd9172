"""The published recipes at their published size, through `main.py`, on a few pictures.

The corpora lie as `data_prep` and `configs/curate.py` leave them. Only batch, length and the number
of evaluated images are smaller than what a pod would run.
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from miniature_corpus import encode, picture, write_annotations, write_corpus
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cocu_jax.models.weights.huggingface import load_groupvit
from cocu_jax.training.metrics import read_metrics
from data_prep.segmentation.prepare import prepare_segmentation

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> pathlib.Path:
    """Three corpora with annotations, and PASCAL VOC: `config.data_root`."""
    root = tmp_path_factory.mktemp("data")
    images = [encode(picture(i, 256, 256)) for i in range(24)]
    (root / "annotations").mkdir()
    for name in ("cc3m", "cc12m", "yfcc14m"):
        directory = write_corpus(root / "image_text", (16, 8), name, images)
        annotations = write_annotations(root / "curated" / name, directory, name=name)
        pathlib.Path(annotations).rename(root / "annotations" / name)
    voc = root / "raw/VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for key in ("2007_000033", "2007_000042"):
        Image.fromarray(picture(0, 90, 120)).save(voc / f"JPEGImages/{key}.jpg")
        labels = np.repeat(np.array([[0, 12, 255]], np.uint8), 40, axis=1).repeat(90, axis=0)
        Image.fromarray(labels).save(voc / f"SegmentationClass/{key}.png")
    (voc / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2007_000042\n")
    prepare_segmentation("voc", str(root / "raw"), str(root))
    return root


@pytest.mark.parametrize("recipe", ["cocu.py:cc3m", "cocu.py:cc3m_cc12m_yfcc14m", "groupvit.py"])
def test_published_recipe_trains_evaluates_and_saves(recipe, data_root, tmp_path):
    command = [sys.executable, "main.py", f"--config=configs/{recipe}", f"--workdir={tmp_path}"]
    settings = dict(data_root=data_root, total_steps=20, batch_size=8, log_every=5, eval_every=10)
    settings |= {"checkpoint_every": 10, "evaluation.pictures": 1}
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    environment = os.environ | {"XLA_FLAGS": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split()[-2:] == [str(tmp_path / "metrics.json"), str(tmp_path / "export")]

    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["step"] == 20 and result["skipped_steps"] == 0
    assert 0 <= result["evaluation/miou"] <= 1
    lines = [line for line in read_metrics(tmp_path) if "loss/total" in line]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    wanted = {"loss/contrastive", "loss/multi_label", "temperature/contrastive", "learning_rate"}
    wanted |= {"temperature/multi_label", "gradient_norm", "images_per_second", "input_wait"}
    wanted |= {"group_entropy/stage1", "group_entropy/stage2"}
    assert wanted <= lines[-1].keys()
    # Chance is log(8) for captions and about log(24) and log(8), averaged, for prompts; at the
    # recipe's learning rate for a batch of 8, twenty steps do not lead far from it.
    chance = math.log(8) + (math.log(24) + math.log(8)) / 2
    assert all(abs(line["loss/total"] - chance) < 1 for line in lines)
    assert len({line["temperature/contrastive"] for line in lines}) == 4
    steps = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert steps == {"10", "20"}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "evaluation/2007_000033" in events.Tags()["tensors"]
    assert load_groupvit(str(tmp_path / "export")).config.width == 384
