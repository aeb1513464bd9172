"""What is read out of a compiled program, against programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cocu_jax.errors import UserError
from cocu_jax.training.ahead_of_time import compile_for
from cocu_jax.training.mesh import make_mesh
from cocu_jax.training.program_text import collectives_of, memory_traffic
from cocu_jax.training.slices import parse_slice

# As the TPU compiler writes them: S(1) is memory on the chip, one gather in two steps.
TPU_PROGRAM = """
%step (p: f32[8,2]) -> f32[8,2] {
  %p = f32[8,2]{1,0:T(8,128)S(1)} parameter(0)
  %gather.1 = f32[8,2]{1,0:S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%body (s: f32[16]) -> f32[16] {
  %s = f32[16]{0} parameter(0)
  ROOT %negate = f32[16]{0} negate(%s)
}

ENTRY %main (x: f32[100,10]) -> f32[16] {
  %x = f32[100,10]{1,0:T(8,128)} parameter(0)
  %slice-start = ((f32[100,10]{1,0:T(8,128)}), f32[5,10]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %slice-done = f32[5,10]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %copy-start = (f32[5,10]{1,0:T(8,128)}, f32[5,10]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%slice-done)
  %fusion = (f32[16]{0}, bf16[4]{0:T(128)S(1)}) fusion(%slice-done), kind=kLoop, calls=%step
  %first = f32[16]{0} get-tuple-element(%fusion), index=0
  %done = f32[8,2]{1,0:S(1)} all-gather(%fusion), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
  ROOT %while = f32[16]{0} while(%first), body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501


def test_traffic_counts_main_memory_only_and_loops_as_often_as_they_run():
    slice_read, copy_written, fusion_written = 4 * 50, 4 * 50, 4 * 16
    gather_read = 4 * 16
    loop = 3 * 2 * 4 * 16
    expected = slice_read + copy_written + fusion_written + gather_read + loop
    assert memory_traffic(TPU_PROGRAM) == expected


def test_steps_of_one_transfer_count_once():
    (gather,) = collectives_of(TPU_PROGRAM)
    assert (gather.kind, gather.group, gather.count, gather.bytes) == ("all-gather", 4, 1, 64)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2)])
def test_collectives_of_a_real_program_are_found_with_group_and_size(data, fsdp):
    mesh = make_mesh(data, fsdp, 8)

    def place(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    gathered = jax.jit(lambda x: x, in_shardings=place(("data", "fsdp")), out_shardings=place())
    summed = jax.jit(lambda x: x.sum(0), in_shardings=place("data"), out_shardings=place())
    shape = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    (gather,) = collectives_of(gathered.lower(shape).compile().as_text())
    assert (gather.kind, gather.group, gather.bytes) == ("all-gather", 8, 64 * 32 * 4)
    (reduce,) = collectives_of(summed.lower(shape).compile().as_text())
    assert (reduce.kind, reduce.group, reduce.bytes) == ("all-reduce", data, 32 * 4)
    assert reduce.sent == pytest.approx(2 * 128 * (data - 1) / data)


def test_slices_have_the_shapes_they_are_sold_in():
    shapes = {name: parse_slice(name).shape for name in ("v5e-256", "v5e-4", "v6e-256")}
    assert shapes == {"v5e-256": (16, 16), "v5e-4": (2, 2), "v6e-256": (16, 16)}
    assert parse_slice("v5p-128").shape == (4, 4, 4)  # named by cores
    assert parse_slice("v4-8").shape == (2, 2, 1)


@pytest.mark.parametrize("name", ["v5e", "v9-256", "v5e-3", "v4-7", "v5e-1"])
def test_slices_that_are_not_sold_are_refused(name):
    with pytest.raises(UserError, match=f"--compile_for={name}: "):
        parse_slice(name)


@pytest.mark.slow
def test_small_step_compiles_for_a_tpu_with_the_work_and_the_links_that_were_counted(tiny_config):
    pytest.importorskip("libtpu")
    config = tiny_config()
    config.batch_size = 64
    cost = compile_for(config, "v5e-16")["train step"]
    assert {(c.kind, c.group) for c in cost.collectives} <= {("all-reduce", 16), ("all-gather", 16)}
    assert sum(c.count for c in cost.collectives if c.kind == "all-gather") == 2
    assert cost.traffic > 0 and cost.memory < 1e9
