"""Two processes put their rows on a mesh whose devices lie in another order than the processes."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# As on a v5e-16, whose mesh is a ring through the chips: a host's chips are no neighbours in it.
PROGRAM = """
import sys

import jax
import numpy as np

rank, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
from cocu_jax.training.mesh import make_mesh, put_batch

devices = [jax.devices()[place] for place in (0, 5, 1, 4, 7, 2, 6, 3)]
mesh = make_mesh(-1, 2, 16, devices)
own = np.arange(8) + 100 * rank
batch = put_batch(mesh, {"row": own, "image": own[:, None] * np.ones((8, 3), int), "key": own})
assert batch["row"].shape == (16,) and batch["image"].shape == (16, 3)
held = [int(x) for shard in batch["row"].addressable_shards for x in shard.data]
assert sorted(held) == own.tolist(), held
for row, image in zip(batch["row"].addressable_shards, batch["image"].addressable_shards):
    assert row.device == image.device
    np.testing.assert_array_equal(np.asarray(image.data), np.asarray(row.data)[:, None] * [1, 1, 1])
whole = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))(batch["row"])
assert sorted(np.asarray(whole).tolist()) == [*range(8), *range(100, 108)]
"""


def test_every_row_lies_once_on_a_device_of_the_process_that_has_read_it():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(port)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
