"""Starts `main.py` as one process or as several that find each other, and reads what it left.

Several find each other as Slurm jobs do, over the loopback interface.
"""

import os
import pathlib
import pprint
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from cocu_jax.input.pipeline import count_examples
from cocu_jax.training.checkpoints import Checkpoints
from cocu_jax.training.metrics import read_metrics
from cocu_jax.training.plan import make_plan
from cocu_jax.training.records import data_facts

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_SECONDS = 600.0


def start(config, workdir, processes: int = 1, program=None, prefix=(), xla_flags: str = ""):
    """Starts `main.py` on a config, as one process or as the tasks of a Slurm job.

    Args:
        config: of the job.
        workdir: its flag; logs of the processes go beside it.
        processes: how many.
        program: Python to run in place of `main.py`.
        prefix: a command to run all of it with.
        xla_flags: more of them.
    """
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
    script = ["-c", program] if program else ["main.py"]
    command = [*prefix, sys.executable, *script, f"--config={file}", f"--workdir={workdir}"]
    started = []
    for rank in range(processes):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes} {xla_flags}"
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


def final_arrays_by_name(config, workdir) -> dict[str, np.ndarray]:
    plan = make_plan(config, count_examples(config.data))
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep, data_facts(config))
    restored = checkpoints.restore(plan.targets())
    checkpoints.close()
    assert restored.step == config.total_steps
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(restored.state))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def assert_same_end(config, one, other) -> None:
    found, wanted = (final_arrays_by_name(config, workdir) for workdir in (one, other))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)
