import json
import os
import pathlib
import subprocess
import sys

import pytest

from cocu_jax.demo.job import run_demo
from cocu_jax.demo.ledger import Ledger
from cocu_jax.errors import UserError
from configs import demo

ROOT = pathlib.Path(__file__).parents[2]
_FAST_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

# The demo's own config with every size cut down; the code path is the same.
_TRAIN = {
    "data.image_size": 32,
    "data.lanes": 8,
    "batch_size": 8,
    "total_steps": 2,
    "warmup_steps": 1,
    "log_every": 1,
    "model.image_size": 32,
    "model.text.width": 16,
}
_SMALL = {
    "scenes": {
        "image_size": 32,
        "clip_scenes": 32,
        "pretrain_scenes": 32,
        "selection_scenes": 16,
        "validation_scenes": 16,
    },
    "curate": {"neighbours": 8, "batch_size": 8, "page_images": 2},
    "clip": _TRAIN
    | {"model.vision_width": 16, "model.vision_layers": 1, "model.projection_dim": 16},
    "pretrain": _TRAIN
    | {
        "eval_every": 0,
        "evaluation.crop": 32,
        "evaluation.stride": 32,
        "evaluation.resize_long_short": "(32, 32)",
        "model.width": 16,
        "model.projection_hidden": 16,
        "model.projection_dim": 16,
        "model.depths": "(1, 0, 0)",
        "model.groups": "(4, 4)",
    },
}


def start_demo(workdir, *more):
    """Runs the README's command on one device, with small sizes; returns the finished process."""
    flags = [f"--config.{part}.{k}={v}" for part, f in _SMALL.items() for k, v in f.items()]
    cache = workdir.parent / "compiled"  # the three runs share one program
    flags += [f"--config.{part}.compile_cache={cache}" for part in ("clip", "pretrain")]
    command = [sys.executable, "main.py", "--config=configs/demo.py", f"--workdir={workdir}"]
    environment = os.environ | {
        "XLA_FLAGS": _FAST_TO_COMPILE,
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # evaluations share programs, too
    }
    return subprocess.run(
        [*command, *flags, *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory in which every stage has run."""
    workdir = tmp_path_factory.mktemp("demo") / "run"
    process = start_demo(workdir)
    assert process.returncode == 0, process.stderr
    assert "CoCu - captions only" in process.stdout
    return workdir


def test_every_stage_runs_and_ends_in_the_report(finished):
    report = json.loads((finished / "report.json").read_text())
    assert set(report["runs"]) == {"caption", "cocu", "complete"}
    assert all(0 <= run["miou"] <= 1 for run in report["runs"].values())
    assert 0 <= report["curation"]["precision"] <= 1
    assert (finished / "report.html").stat().st_size > 10_000
    for run in report["runs"]:
        assert list((finished / "seed0" / run).glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_a_finished_run_repeats_nothing_but_the_report(finished):
    kept = [*finished.glob("seed0/*/export/model.safetensors"), finished / "ledger.json"]
    before = [file.stat().st_mtime_ns for file in kept[:-1]], kept[-1].read_text()
    assert start_demo(finished).returncode == 0
    assert len(kept) == 5
    assert ([file.stat().st_mtime_ns for file in kept[:-1]], kept[-1].read_text()) == before


def test_a_workdir_of_another_config_is_refused_in_one_line(finished):
    process = start_demo(finished, "--config.pretrain.learning_rate=0.5")
    assert process.returncode == 2
    line = process.stderr.strip().splitlines()[-1]
    assert line.startswith(f"error: {finished}: made with config.pretrain.learning_rate=")
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_misspelt_field_is_one_line(tmp_path):
    process = start_demo(tmp_path / "run", "--config.stags=all")
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1].startswith("error: in the flags or the config")
    assert "Traceback" not in process.stderr


def test_a_missing_earlier_stage_is_named(tmp_path):
    config = demo.get_config()
    config.stages = "curate"
    with pytest.raises(UserError, match="stage scenes has not finished.*--config.stages=scenes"):
        run_demo(config, str(tmp_path))


def test_an_unknown_stage_is_refused_before_anything_is_written(tmp_path):
    config = demo.get_config()
    config.stages = "scenes,paint"
    with pytest.raises(UserError, match="no stage 'paint'"):
        run_demo(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        run_demo(demo.get_config(), str(tmp_path / "file" / "below"))


def test_ledger_counts_interrupted_attempts_and_survives_reopening(tmp_path):
    class Interrupted(Exception):
        pass

    ledger = Ledger(tmp_path / "ledger.json")
    with pytest.raises(Interrupted), ledger.stage("clip"):
        raise Interrupted
    assert not Ledger(tmp_path / "ledger.json").finished("clip")
    with Ledger(tmp_path / "ledger.json").stage("clip") as entry:
        entry["quality"] = 1
    again = Ledger(tmp_path / "ledger.json")
    assert again.finished("clip")
    assert again.entries["clip"]["quality"] == 1
