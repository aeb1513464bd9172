"""Meshes of TPU slices and GPU hosts, by devices that carry what a cloud's devices carry."""

import collections

import pytest
from jax.sharding import NamedSharding

from benchmarks.fake_devices import gpu_devices, tpu_devices
from cocu_jax.errors import UserError
from cocu_jax.training.mesh import BATCH, make_mesh

# Machines on which `jax.make_mesh` stops for some size of `fsdp`.
MACHINES = {
    "v4 4x4x4": tpu_devices("TPU v4", (4, 4, 4)),
    "v5e-16": tpu_devices("TPU v5 lite", (4, 4, 1)),
    "v5e-256": tpu_devices("TPU v5 lite", (16, 16, 1)),
    "v5p 4x4x4": tpu_devices("TPU v5", (4, 4, 4)),
    "v5p 4x4x8": tpu_devices("TPU v5", (4, 4, 8)),
    "v6e-256": tpu_devices("TPU v6 lite", (16, 16, 1)),
    "tpu7x 4x4x4": tpu_devices("TPU7x", (4, 4, 4), cores=2),
    "2 x v5e-256": tpu_devices("TPU v5 lite", (16, 16, 1), slices=2),
    "4 x tpu7x 4x4x12": tpu_devices("TPU7x", (4, 4, 12), cores=2, slices=4),
    "4 hosts of 8 GPUs": gpu_devices(4),
    "4 hosts of 8 GPUs, a process each": gpu_devices(4, processes=8),
}


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("machine", MACHINES)
def test_each_process_holds_its_share_of_rows_and_fsdp_stays_in_a_slice(machine, fsdp):
    devices = MACHINES[machine]
    batch = 3 * len(devices)
    mesh = make_mesh(-1, fsdp, batch, devices)

    assert mesh.shape == {"data": len(devices) // fsdp, "fsdp": fsdp}
    rows = collections.defaultdict(list)
    for device, (part, _) in NamedSharding(mesh, BATCH).devices_indices_map((batch, 1)).items():
        rows[device.process_index] += range(part.start, part.stop)
    share = batch // len({device.process_index for device in devices})
    assert {len(part) for part in rows.values()} == {share}
    assert sorted(sum(rows.values(), [])) == list(range(batch))

    if fsdp <= collections.Counter(device.slice_index for device in devices)[0]:
        assert all(len({device.slice_index for device in group}) == 1 for group in mesh.devices)
    else:  # whole hosts
        assert all(len({device.slice_index for device in group}) == 2 for group in mesh.devices)


def test_neighbours_along_fsdp_are_neighbours_in_the_torus():
    mesh = make_mesh(-1, 4, 256, MACHINES["v6e-256"])
    for group in mesh.devices:
        steps = [
            sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))
            for one, other in zip(group, group[1:], strict=False)
        ]
        assert steps == [1, 1, 1]


@pytest.mark.parametrize(
    ("fsdp", "devices", "message"),
    [
        (
            3,
            gpu_devices(3),
            r"config.mesh.fsdp=3: it must divide the 8 devices of a slice",
        ),
        (1, gpu_devices(2)[:-4], r"the processes have 4 to 8 devices each"),
        (1, gpu_devices(2, processes=8)[:-4], r"slices of different sizes \(\[4, 8\] devices\)"),
    ],
)
def test_machines_that_no_mesh_fits_are_refused_in_one_line(fsdp, devices, message):
    with pytest.raises(UserError, match=message) as caught:
        make_mesh(-1, fsdp, 8 * len(devices), devices)
    assert "\n" not in str(caught.value)
