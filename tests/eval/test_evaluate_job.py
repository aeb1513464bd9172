"""The evaluate job, from a checkpoint on disk to its result files."""

import importlib
import json
import shutil

import numpy as np
import pytest
from etils import epath
from miniature import make_images, make_model
from PIL import Image
from sklearn.metrics import confusion_matrix
from small_clip import small_clip
from two_processes import run_two_processes

from cocu_jax.errors import UserError
from cocu_jax.files import safe_name
from cocu_jax.models.weights.huggingface import save_groupvit
from data_prep.imagenet import prepare_imagenet
from data_prep.segmentation.prepare import prepare_segmentation
from eval.benchmarks import benchmarks, get_benchmark, prepared_benchmarks
from eval.job import _with_own_name, evaluate
from eval.presets import preset
from eval.submission import write_prediction
from eval.tasks import Task

pytestmark = pytest.mark.usefixtures("small_tiles")

SIZES = [(40, 60), (41, 61), (39, 58)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A training run with an export."""
    run = tmp_path_factory.mktemp("run")
    save_groupvit(make_model(), str(run / "export"))
    return str(run)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Cityscapes in miniature, prepared."""
    root = tmp_path_factory.mktemp("cityscapes")
    ids = np.array(get_benchmark("cityscapes").submission_ids + (0,))
    for number, (image, labels) in enumerate(make_images(SIZES, 19)):
        for folder, kind, pixels in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", ids[np.where(labels == 255, 19, labels)]),
        ):
            path = root / folder / f"val/ulm/ulm_{number}_{kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    prepare_segmentation("cityscapes", str(root), str(root / "tfds"))
    return str(root / "tfds")


@pytest.fixture(scope="module")
def make_config(checkpoint, data_dir):
    return lambda: _config(checkpoint, data_dir)


@pytest.fixture
def config(make_config):
    return make_config()


def _config(checkpoint, data_dir):
    config = importlib.import_module("configs.evaluate").get_config()
    config.checkpoint, config.data_dir = checkpoint, data_dir
    config.pictures = 1
    config.save_predictions = True
    config.windows_per_forward = 2
    config.custom.update(crop=32, stride=16, resize_long_short=())
    config.benchmarks = f"{data_dir}/segmentation/cityscapes"
    return config


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """A finished run with pictures and predictions, and what it returned."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, evaluate(make_config(), str(folder))


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_job_writes_table_json_markdown_pictures_and_predictions(config, finished, capsys):
    tmp_path, results = finished
    assert evaluate(config, str(tmp_path)) == results
    ((name, figures),) = results.items()
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert figures["images"] == len(SIZES)
    assert 0 <= figures["miou"] <= figures["group_bound_miou"] <= 1
    output = capsys.readouterr().out
    assert "mIoU" in output and f"{100 * figures['miou']:.1f}" in output
    markdown = (tmp_path / "results.md").read_text()
    assert all(f"| {name} |" in markdown for name in get_benchmark("cityscapes").classes)
    assert len(list((tmp_path / "pictures" / name).glob("*.png"))) == 1
    assert list((tmp_path / "tensorboard").iterdir())
    predictions = sorted((tmp_path / "predictions" / name).glob("*.png"))
    labels = [labels for _, labels in make_images(SIZES, 19)]
    matrix = np.zeros((19, 19), np.int64)
    for file, truth in zip(predictions, labels, strict=True):
        found = Image.open(file)
        assert found.mode == "P" and found.size == truth.shape[::-1]
        counted = truth != 255
        matrix += confusion_matrix(truth[counted], np.asarray(found)[counted], labels=range(19))
    np.testing.assert_array_equal(np.load(tmp_path / f"results/{name}.npy")[0], matrix)


def marker(*args, **kwargs):
    raise RuntimeError("evaluated")


def test_finished_benchmarks_are_not_evaluated_again(config, workdir, finished, monkeypatch):
    monkeypatch.setattr("eval.job.evaluate_segmentation", marker)
    assert evaluate(config, str(workdir)) == finished[1]


@pytest.mark.parametrize("content", ['{"miou": 0.1, "ident', "", "[]", "\x00"])
def test_a_truncated_result_is_evaluated_again(config, workdir, content, monkeypatch):
    """The evaluation is replaced by a marker, because only its start matters."""
    (file,) = (workdir / "results").glob("*.json")
    file.write_text(content)
    monkeypatch.setattr("eval.job.evaluate_segmentation", marker)
    with pytest.raises(RuntimeError, match="evaluated"):
        evaluate(config, str(workdir))


def test_other_class_names_under_the_same_path_are_evaluated_again(config, workdir):
    file = workdir.parent / "names.txt"
    names = get_benchmark("cityscapes").classes
    file.write_text("\n".join(names))
    config.update(pictures=0, class_names=str(file))
    ((name, before),) = evaluate(config, str(workdir)).items()
    assert before["changes"] == {"class_names": "names"} and "class_names" in name
    file.write_text("\n".join(names[::-1]))
    after = evaluate(config, str(workdir))[name]
    assert list(after["iou"]) == list(names[::-1]) and after["iou"] != before["iou"]


@pytest.mark.slow
def test_results_with_changed_settings_are_stored_and_labelled_separately(
    config, workdir, finished, capsys
):
    (plain,) = finished[1]
    config.update(pictures=0, softmax=True)
    ((name, figures),) = evaluate(config, str(workdir)).items()
    assert name == f"{plain}-softmax_True" and figures["changes"] == {"softmax": True}
    assert "softmax=True" in capsys.readouterr().out
    assert "softmax=True" in (workdir / "results.md").read_text()
    assert {file.stem for file in (workdir / "results").glob("*.json")} == {plain, name}
    config.bg_thresh = 0.5
    with pytest.raises(UserError, match="has no background class"):
        evaluate(config, str(workdir))


@pytest.mark.parametrize("key", ["../escaped", "a/b", "/tmp/absolute", ".hidden", "Köln 1"])
def test_files_named_by_keys_stay_in_the_folder(key, tmp_path):
    from eval.job import _write_pictures

    folder = tmp_path / "deep/run"
    _write_pictures(epath.Path(folder), "voc", {key: Image.new("RGB", (4, 4))})
    write_prediction(
        epath.Path(folder) / "predictions", safe_name(key), np.zeros((4, 4), int), [0], [[0, 0, 0]]
    )
    written = [file for file in tmp_path.rglob("*.png")]
    assert {file.parent for file in written} == {folder / "pictures/voc", folder / "predictions"}
    assert not any(file.name.startswith(".") for file in written)


_PROCESS = """
from configs.evaluate import get_config
from eval.job import _with_own_name, evaluate
config = get_config()
config.checkpoint, config.data_dir, workdir = sys.argv[2:]
config.pictures, config.save_predictions, config.windows_per_forward = 1, True, 2
config.custom.update(crop=32, stride=16, resize_long_short=())
config.benchmarks = f"{config.data_dir}/segmentation/cityscapes"
((_, figures),) = evaluate(config, workdir).items()
assert figures["images"] == 3
"""


def test_a_clip_has_no_groups_and_keeps_results_of_other_checkpoints(
    config, workdir, finished, tmp_path
):
    small_clip().save_pretrained(tmp_path / "clip")
    config.checkpoint, config.dense = str(tmp_path / "clip"), "sclip"
    ((before, groupvit),) = finished[1].items()

    ((name, figures),) = evaluate(config, str(workdir)).items()

    assert figures["changes"] == {"dense": "sclip"}
    assert figures["images"] == 3 and figures["group_bound_miou"] is None
    assert 0 <= figures["miou"] <= 1
    assert json.loads((workdir / "results.json").read_text()) == {before: groupvit, name: figures}
    lines = (workdir / "results.md").read_text().partition("side by side")[2].splitlines()
    for shown in (groupvit, figures):
        (row,) = (line for line in lines if line.startswith(f"| {shown['checkpoint']}"))
        assert row.endswith(f"| {100 * shown['miou']:.1f} |")
    assert len(list((workdir / "pictures" / name).glob("*.png"))) == 1


def test_another_checkpoint_does_not_replace_a_result(config, finished):
    ((name, _),) = finished[1].items()
    task, results = Task(name, "", None, {}), epath.Path(finished[0]) / "results"
    assert _with_own_name(task, results, config.checkpoint) == task
    other = _with_own_name(task, results, "elsewhere").name
    assert other.startswith(f"{name}-") and other == _with_own_name(task, results, "elsewhere").name
    assert _with_own_name(task, results, "third").name not in (name, other)


def test_presets_change_sizes_thresholds_and_prompts():
    voc, cityscapes = (get_benchmark(name).protocol for name in ("voc", "cityscapes"))

    assert preset("groupvit", "voc", voc) == voc
    tcl = preset("tcl", "voc", voc), preset("tcl", "voc", voc, pamr=True)
    naclip = preset("naclip", "voc", voc), preset("naclip", "cityscapes", cityscapes)
    sizes = [(p.crop, p.stride, p.resize_long_short) for p in (*tcl, *naclip)]
    assert sizes[:2] == [(448, 224, (2048, 448))] * 2
    assert sizes[2:] == [(224, 112, (2048, 336)), (224, 112, (2048, 560))]
    assert [p.bg_thresh for p in (*tcl, *naclip)] == [0.5, 0.4, 0.1, None]
    assert (naclip[0].templates, naclip[0].logit_scale) == ("full", 40)
    assert [p.mode for p in (*tcl, *naclip)] == ["slide", "slide", "whole", "slide"]
    assert (tcl[1].pamr_dilations, naclip[1].pamr_dilations) == ((1, 2, 4, 8, 12, 24), (8, 16))
    with pytest.raises(UserError, match="config.protocol='nacl': choose one of groupvit, tcl, "):
        preset("nacl", "voc", voc)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(config, checkpoint, data_dir, tmp_path):
    results = evaluate(config, str(tmp_path / "1"))
    run_two_processes(_PROCESS, checkpoint, data_dir, str(tmp_path / "2"))
    assert json.loads((tmp_path / "2/results.json").read_text()) == results
    files = {
        number: {
            str(file.relative_to(tmp_path / number)): file.read_bytes()
            for file in (tmp_path / number).rglob("ulm_*.png")
        }
        for number in "12"
    }
    assert files["1"] == files["2"] and len(files["1"]) == len(SIZES) + 1


@pytest.mark.slow
def test_job_classifies_imagenet(config, tmp_path, capsys):
    for number, (image, _) in enumerate(make_images(SIZES, 2)):
        path = tmp_path / f"val/n0144076{4 if number else 3}/ILSVRC2012_val_{number:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    with pytest.raises(UserError, match="of class n01440763, which ImageNet-1k lacks"):
        prepare_imagenet(str(tmp_path), str(tmp_path / "tfds"))
    (tmp_path / "val/n01440763").rename(tmp_path / "val/n15075141")
    prepare_imagenet(str(tmp_path), str(tmp_path / "tfds"))
    config.update(data_dir=str(tmp_path / "tfds"), benchmarks="imagenet")
    figures = evaluate(config, str(tmp_path / "run"))["imagenet"]
    assert figures["images"] == len(SIZES) and 0 <= figures["top1"] <= figures["top5"] <= 1
    assert "top-5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"benchmarks": "voc"}, "data_prep segmentation --benchmark voc"),
        ({"benchmarks": "vox"}, "'vox' is neither a benchmark nor a directory"),
        ({"benchmarks": "voc", "data_dir": ""}, "config.data_dir is empty"),
        ({"checkpoint": ""}, "no checkpoint given"),
    ],
)
def test_missing_inputs_give_one_line_errors(config, settings, words, tmp_path):
    config.update(settings)
    with pytest.raises(UserError, match=words) as error:
        evaluate(config, str(tmp_path))
    assert "\n" not in str(error.value)


def test_published_settings_are_those_of_the_benchmarks():
    own = prepared_benchmarks().values()
    sizes = {b.name: (len(b.classes), b.split_size, b.protocol.crop) for b in own}
    assert sizes == {
        "voc": (21, 1449, 448),
        "context": (60, 5105, 448),
        "coco_object": (81, 5000, 448),
        "imagenet_s_50": (51, 752, 448),
        "imagenet_s_300": (301, 4097, 448),
        "imagenet_s_919": (920, 12419, 448),
        "cityscapes": (19, 500, 448),
        "ade20k": (150, 2000, 224),
        "coco_stuff": (171, 5000, 224),
    }
    thresholds = {n: b.protocol.bg_thresh for n, b in benchmarks().items() if b.protocol.bg_thresh}
    assert thresholds == {
        "voc": 0.95, "context": 0.35, "coco_object": 0.95,
        "imagenet_s_50": 0.95, "imagenet_s_300": 0.75, "imagenet_s_919": 0.75,
    }  # fmt: skip
