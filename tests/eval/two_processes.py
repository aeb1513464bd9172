"""Runs a program as two JAX processes with two devices each, on this machine."""

import os
import socket
import subprocess
import sys

_START = """
import sys
import jax
jax.distributed.initialize("localhost:{port}", num_processes=2, process_id=int(sys.argv[1]))
"""


def run_two_processes(program: str, *arguments: str) -> None:
    """Runs `program` with its process number and `arguments` in `sys.argv`; it must succeed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        program = _START.format(port=probe.getsockname()[1]) + program
    path = os.pathsep.join([os.getcwd(), os.path.dirname(__file__)])
    settings = os.environ | {"PYTHONPATH": path, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    settings["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(number), *arguments],
            env=settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors[-2000:]
