"""The benchmark for GPUs: it needs no TensorFlow, and every part of it runs."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = ("benchmarks", "cocu_jax", "configs", "eval")
# What a machine with JAX and torch has, with what these require; and what the models import.
ALLOWED = {
    *("jax", "flax", "optax", "numpy", "torch", "transformers"),
    *("ml_dtypes", "absl", "etils", "huggingface_hub", "tokenizers", "safetensors", "regex"),
    *("ml_collections", "pydantic", "jaxtyping", "ftfy"),
}
BLOCKED = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard", "apache_beam")


def imported(file: pathlib.Path) -> set[str]:
    """Every module that a file may import, wherever in it; of ours also parents and children."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_benchmark_of_accelerators_imports_no_tensorflow_in_any_of_its_modules():
    waiting, seen, foreign = {"benchmarks.accelerator.__main__"}, set(), set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        if module.split(".")[0] not in OURS:
            foreign.add(module.split(".")[0])
            continue
        path = ROOT.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            waiting |= imported(file) - seen if file.exists() else set()
    assert {"cocu_jax.training.step", "cocu_jax.curation.search"} <= seen
    assert foreign - set(sys.stdlib_module_names) <= ALLOWED


@pytest.mark.slow
def test_every_part_runs_where_tensorflow_does_not_exist(tmp_path):
    for module in BLOCKED:
        (tmp_path / f"{module}.py").write_text("raise ImportError('blocked')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1800
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert lines[0]["jax"] and lines[0]["card"]
    assert [line for line in lines if "error" in line] == []
    ratios = {line["metric"] for line in lines if line.get("unit") == "ratio"}
    expected = ("step, batch 256", "step, batch 1024", "search", "CLIP B/32", "CLIP L/14")
    assert {f"{name}: ours / torch" for name in expected} <= ratios
    agreement = {m["metric"]: m["value"] for m in lines if "against the CPU" in str(m)}
    assert list(agreement.values()) == [0, 0]  # a CPU against itself


@pytest.mark.slow
def test_part_that_is_stopped_leaves_a_line(capsys):
    from benchmarks.accelerator.__main__ import Runner

    Runner(seconds=1, tiny=True).run(["agreement"])
    error, time = map(json.loads, capsys.readouterr().out.splitlines())
    assert error["part"] == "agreement" and error["error"].startswith("the time is up")
    assert time["seconds"] < 30


# A part that leaves a process behind which holds its output open, and fails as JAX's programs do.
PART = """
import subprocess, sys
left = subprocess.Popen(["sleep", "600"]).pid
print(f'{{"metric": "left: ours", "value": {left}}}', flush=True)
sys.exit("RuntimeError: out of memory")
"""


@pytest.mark.slow  # imports torch
def test_part_that_leaves_processes_behind_is_not_waited_for(tmp_path, monkeypatch, capsys):
    from benchmarks.accelerator.__main__ import Runner

    folder = tmp_path / "benchmarks/accelerator"
    folder.mkdir(parents=True)
    (folder / "__main__.py").write_text(PART)
    monkeypatch.chdir(tmp_path)
    Runner(seconds=60, tiny=True).run(["agreement"])
    left, error, time = map(json.loads, capsys.readouterr().out.splitlines())
    assert error["error"] == "exit code 1: RuntimeError: out of memory"
    assert time["seconds"] < 30
    command = pathlib.Path(f"/proc/{left['value']}/cmdline")
    assert not command.exists() or "sleep" not in command.read_text()  # gone, or unreaped


# A part that measures for a while, and tells when.
MEASURING = """
import time
from benchmarks.accelerator.measure import card
with card():
    print('{"part": "begins"}', flush=True)
    time.sleep(1)
    print('{"part": "ends"}', flush=True)
"""


@pytest.mark.slow  # imports torch
def test_parts_side_by_side_use_the_card_one_after_the_other(tmp_path, monkeypatch, capsys):
    from benchmarks.accelerator.__main__ import Runner
    from benchmarks.accelerator.measure import CARD_LOCK

    script = tmp_path / "part"
    script.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c '{MEASURING.replace(chr(39), chr(34) * 3)}'\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv(CARD_LOCK, str(tmp_path / "lock"))
    Runner(seconds=60, tiny=True).run(["agreement", "search", "attention"], side_by_side=3)
    lines = [json.loads(line)["part"] for line in capsys.readouterr().out.splitlines()]
    told = [line for line in lines if line in ("begins", "ends")]
    assert told == ["begins", "ends"] * 3


@pytest.mark.slow
def test_reason_of_a_failing_part_is_its_last_line(monkeypatch, capsys):
    import jax

    from benchmarks.accelerator import __main__ as benchmark

    part = benchmark.PARTS["agreement"]._replace(run=lambda tiny: jax.jit(lambda x: x @ x)(1.0))
    monkeypatch.setitem(benchmark.PARTS, "agreement", part)
    with pytest.raises(SystemExit, match="^ValueError|^TypeError") as stopped:
        benchmark.run_here("agreement", tiny=True)
    assert "JAX has removed" not in str(stopped.value)
    assert "Traceback" in capsys.readouterr().err
