"""Runs of `main.py` that are killed, told to stop, or lose one of two processes: same bits after.

Two processes find each other as Slurm jobs do, over the loopback interface.
"""

import os
import pathlib
import pprint
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cocu_jax.training.checkpoints import Checkpoints
from cocu_jax.training.metrics import read_metrics
from cocu_jax.training.plan import make_plan
from cocu_jax.training.records import data_facts

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_SECONDS = 600.0


@pytest.fixture
def config(scenes_config):
    config = scenes_config.copy_and_resolve_references()
    config.total_steps = 200
    config.log_every = 1
    config.checkpoint_every = 10
    return config


def start(config, workdir, processes: int = 1):
    """Starts `main.py` on a config, as one process or as the tasks of a Slurm job."""
    file = workdir.parent / f"{workdir.name}.py"
    corpora = [dict(corpus) for corpus in config.data.corpora]
    fields = config.to_dict()
    fields["data"]["corpora"] = corpora
    file.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    config = ml_collections.ConfigDict({pprint.pformat(fields)})\n"
        "    config.data.corpora = tuple(map(ml_collections.ConfigDict, config.data.corpora))\n"
        "    return config\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "main.py", f"--config={file}", f"--workdir={workdir}"]
    started = []
    for rank in range(processes):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}"
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_PORT": str(port),
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(processes),
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NUM_NODES": str(processes),
            }
        output = (workdir.parent / f"{workdir.name}.{rank}.log").open("ab")
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        )
    return started


def finish(processes, workdir) -> None:
    for rank, process in enumerate(processes):
        code = process.wait(DEADLINE_SECONDS)
        log = (workdir.parent / f"{workdir.name}.{rank}.log").read_text()
        assert code == 0, log[-3000:]


def wait_for_step(step: int, processes, workdir) -> bool:
    """Waits until the log has reached `step`; False if the run ended before."""
    for _ in range(int(DEADLINE_SECONDS / 0.02)):
        if any(line["step"] >= step for line in read_metrics(workdir)[-1:]):
            return True
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.02)
    raise TimeoutError(f"step {step} was not reached")


def kill(processes) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def final_arrays(config, workdir) -> list[np.ndarray]:
    plan = make_plan(config, 64)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep, data_facts(config))
    restored = checkpoints.restore(plan.targets())
    checkpoints.close()
    assert restored.step == config.total_steps
    return jax.tree.leaves(jax.device_get(restored.state))


def assert_same_end(config, one, other) -> None:
    for value, wanted in zip(final_arrays(config, one), final_arrays(config, other), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_run_killed_ten_times_ends_in_the_bits_of_one_that_was_not(config, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start(config, straight), straight)
    moments = random.Random(0)
    for step in sorted(moments.sample(range(1, 199), 10)):
        processes = start(config, killed)
        assert wait_for_step(step, processes, killed)
        time.sleep(moments.uniform(0, 0.1))
        kill(processes)
    finish(start(config, killed), killed)
    assert_same_end(config, straight, killed)
    steps = [line["step"] for line in read_metrics(killed)]
    assert steps == list(range(1, 201))


def test_sigterm_saves_exits_with_zero_and_the_run_goes_on(config, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    config.checkpoint_every = 0
    finish(start(config, straight), straight)
    processes = start(config, stopped)
    assert wait_for_step(20, processes, stopped)
    processes[0].send_signal(signal.SIGTERM)
    finish(processes, stopped)
    assert "stopped and saved after step" in (tmp_path / "stopped.0.log").read_text()
    assert not (stopped / "metrics.json").exists()
    finish(start(config, stopped), stopped)
    assert_same_end(config, straight, stopped)


def test_two_processes_of_which_one_is_killed_end_in_the_same_bits(config, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start(config, straight, processes=2), straight)
    processes = start(config, killed, processes=2)
    assert wait_for_step(50, processes, killed)
    kill(processes[1:])
    kill(processes[:1])  # it cannot go on alone; a cluster would end it too
    finish(start(config, killed, processes=2), killed)
    assert_same_end(config, straight, killed)


def test_checkpoint_that_one_of_two_processes_cannot_read_is_passed_over_by_both(config, tmp_path):
    straight, damaged = tmp_path / "straight", tmp_path / "damaged"
    config.total_steps, config.mesh.fsdp = 40, 4  # each process reads parameters of its own
    finish(start(config, straight, processes=2), straight)
    processes = start(config, damaged, processes=2)
    assert wait_for_step(31, processes, damaged)
    kill(processes)
    newest = max(int(p.name) for p in (damaged / "checkpoints").iterdir() if p.name.isdigit())
    files = (damaged / f"checkpoints/{newest}/state/ocdbt.process_1/d").iterdir()
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    finish(start(config, damaged, processes=2), damaged)
    readers = [
        rank
        for rank in range(2)
        if "cannot be read" not in (tmp_path / f"damaged.{rank}.log").read_text()
    ]
    assert readers == [0]
    assert_same_end(config, straight, damaged)


def test_sigterm_to_one_of_two_processes_saves_and_stops_both(config, tmp_path):
    workdir = tmp_path / "run"
    processes = start(config, workdir, processes=2)
    assert wait_for_step(20, processes, workdir)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, workdir)
    logs = [(tmp_path / f"run.{rank}.log").read_text() for rank in range(2)]
    assert all("stopped and saved after step" in log for log in logs)
    finish(start(config, workdir, processes=2), workdir)


def test_one_process_and_two_end_within_rounding_of_each_other(config, tmp_path):
    config.total_steps, one, two = 20, tmp_path / "one", tmp_path / "two"
    finish(start(config, one), one)
    finish(start(config, two, processes=2), two)
    for value, wanted in zip(final_arrays(config, one), final_arrays(config, two), strict=True):
        # float32 sums in another order, through 20 AdamW steps.
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-5)
