"""Two processes stop at the same moment although one alone receives a signal."""

import signal
import socket
import subprocess
import sys

PROGRAM = """
import sys, time
import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

address, rank = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, rank, local_device_ids=[0])
from cocu_jax.agreement import Agreement

with Agreement() as agreement:
    agreement.on_first(lambda: None)
    print("started", flush=True)
    for step in range(3000):
        if agreement.stop():
            print(step, flush=True)
            break
        reached_preemption_sync_point(step)  # as Orbax does at every checkpoint
        time.sleep(0.005 * (1 + rank))
"""


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROGRAM, address]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen([*command, str(rank)], **pipe) for rank in range(2)]
    assert [process.stdout.readline() for process in processes] == ["started\n"] * 2
    processes[1].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    (one, _), (two, _) = ends
    assert one == two and 0 <= int(one) < 2999
