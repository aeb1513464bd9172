"""What is read out of a compiled program, against programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cocu_jax.errors import UserError
from cocu_jax.training.ahead_of_time import compile_for
from cocu_jax.training.mesh import make_mesh
from cocu_jax.training.plan import make_plan
from cocu_jax.training.program_text import (
    Transfer,
    collectives_of,
    memory_traffic,
    moves_of,
    transfers_of,
)
from cocu_jax.training.slices import parse_slices
from configs import cocu

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

%below (s: f32[16]) -> pred[] {
  %s = f32[16]{0} parameter(0)
  %four = s32[]{:T(128)} constant(4), metadata={op_name="while"}
  ROOT %lt = pred[]{:T(512)} compare(%s, %four), direction=LT
}

ENTRY %main (x: f32[100,10]) -> f32[16] {
  %x = f32[100,10]{1,0:T(8,128)} parameter(0)
  %slice-start = ((f32[100,10]{1,0:T(8,128)}), f32[5,10]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %slice-done = f32[5,10]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %copy-start = (f32[5,10]{1,0:T(8,128)}, f32[5,10]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%slice-done)
  %fusion = (f32[16]{0}, bf16[4]{0:T(128)S(1)}) fusion(%slice-done), kind=kLoop, calls=%step
  %first = f32[16]{0} get-tuple-element(%fusion), index=0
  %done = f32[8,2]{1,0:S(1)} all-gather(%fusion), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
  %counted = f32[16]{0} while(%first), condition=%below, body=%body
  ROOT %while = f32[16]{0} while(%counted), body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501


def test_traffic_counts_main_memory_only_and_loops_as_often_as_they_run():
    slice_read, copy_written, fusion_written = 4 * 50, 4 * 50, 4 * 16
    gather_read = 4 * 16
    loops = (4 + 3) * 2 * 4 * 16
    expected = slice_read + copy_written + fusion_written + gather_read + loops
    assert memory_traffic(TPU_PROGRAM) == expected


def test_largest_moves_come_first_and_add_up_to_the_traffic():
    moves = moves_of(TPU_PROGRAM)
    assert [move.instruction.operation for move in moves[:2]] == ["negate", "negate"]
    assert moves == sorted(moves, key=lambda move: -move.bytes)
    assert sum(move.bytes for move in moves) == memory_traffic(TPU_PROGRAM)


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


# Two sums of gradients that are scattered, of one channel, and one that is not.
TPU_PROGRAM_THAT_SCATTERS = """
%all-reduce-scatter.4 (input.4: bf16[384,384]) -> bf16[96,384] {
  %input.4 = bf16[384,384]{1,0} parameter(0)
  %all-reduce.705 = bf16[384,384]{1,0} all-reduce(%input.4), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = bf16[96,384]{1,0} dynamic-slice(%all-reduce.705, %place)
}

%all-reduce-scatter (input: f32[8]) -> f32[2] {
  %all-reduce.706 = f32[8]{0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[32]) -> f32[32] {
  ROOT %all-reduce.1 = f32[32]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""  # noqa: E501


def test_scattered_sums_are_found_in_computations_of_their_own():
    scatters, reduce = collectives_of(TPU_PROGRAM_THAT_SCATTERS)
    assert (scatters.kind, scatters.group, scatters.count) == ("reduce-scatter", 4, 2)
    assert scatters.bytes == 2 * 96 * 384 + 4 * 2
    assert scatters.sent == 3 / 4 * (2 * 384 * 384 + 4 * 8)
    assert (reduce.kind, reduce.count, reduce.bytes) == ("all-reduce", 1, 128)


# As the compiler writes what crosses from slice to slice: by way of the host, one sum in two steps.
TPU_PROGRAM_OF_TWO_SLICES = """
ENTRY %main (x: f32[32,512]) -> f32[64,512] {
  %x = f32[32,512]{1,0:T(8,128)} parameter(0)
  %t = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-gather.8_0"}
  %send = (f32[32,512]{1,0:T(8,128)}, u32[], token[]) send(%x, %t), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv = (f32[64,512]{1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_GATHER"}
  %sent = token[] send-done(%send), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %got = (f32[64,512]{1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=2, is_host_transfer=true
  %y = f32[64,512]{1,0:T(8,128)} get-tuple-element(%got), index=0
  %z = f32[4,512]{1,0} reduce-scatter(%y), channel_id=6, replica_groups={{0,1},{2,3}}, dimensions={0}
  %send.1 = (bf16[4,512]{1,0}, u32[], token[]) send(%z, %t), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %result = f32[64,512]{1,0} copy(%y)
}
"""  # noqa: E501


def test_bytes_between_slices_are_counted_apart_from_those_inside():
    assert transfers_of(TPU_PROGRAM_OF_TWO_SLICES) == (
        Transfer("all-gather", 1, 4 * 32 * 512),
        Transfer("all-reduce", 1, 2 * 4 * 512),
    )
    (scatter,) = collectives_of(TPU_PROGRAM_OF_TWO_SLICES)
    assert (scatter.kind, scatter.group, scatter.bytes) == ("reduce-scatter", 2, 4 * 4 * 512)
    assert transfers_of(TPU_PROGRAM) == ()


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("v5e-256", 1, (16, 16)),
        ("v5e-4", 1, (2, 2)),
        ("v6e-256", 1, (16, 16)),
        ("v5p-128", 1, (4, 4, 4)),  # named by cores
        ("v4-8", 1, (2, 2, 1)),
        ("v5p-12288", 1, (16, 16, 24)),
        ("tpu7x-128", 1, (4, 4, 4)),
        ("tpu7x-384", 1, (4, 4, 12)),
        ("tpu7x:4x4x4", 1, (4, 4, 4)),
        ("v5e:4x8", 1, (4, 8)),
        ("2xv5e-256", 2, (16, 16)),
        ("4xtpu7x:4x4x8", 4, (4, 4, 8)),
    ],
)
def test_slices_have_the_shapes_they_are_sold_in(name, count, shape):
    slices = parse_slices(name)
    assert (slices.count, slices.shape) == (count, shape)
    assert slices.chip.flops > 1e14


@pytest.mark.parametrize(
    "name",
    ["v5e", "v9-256", "v5e-3", "v5e-24", "v4-7", "v5e-1", "tpu7x-7", "v5p-40", "v5e:4x4x4"]
    + ["v5p:8x8", "0xv5e-16", "2v5e-16", "v5e-"],
)
def test_slices_that_are_not_sold_are_refused(name):
    with pytest.raises(UserError, match=f"--compile_for={name}: "):
        parse_slices(name)


@pytest.mark.slow
def test_small_step_compiles_for_a_tpu_with_the_work_and_the_links_that_were_counted(tiny_config):
    pytest.importorskip("libtpu")
    config = tiny_config()
    config.data.corpora = cocu.get_config().data.corpora  # not read
    config.batch_size = 64
    cost = compile_for(config, "v5e-16")["train step"]
    assert {(c.kind, c.group) for c in cost.collectives} <= {("all-reduce", 16), ("all-gather", 16)}
    assert sum(c.count for c in cost.collectives if c.kind == "all-gather") == 2
    assert cost.traffic > 0 and cost.memory < 1e9


@pytest.mark.slow
def test_two_slices_reduce_over_the_network_what_one_slice_has_summed(tiny_config):
    pytest.importorskip("libtpu")
    config = tiny_config()
    config.data.corpora = cocu.get_config().data.corpora  # not read
    config.batch_size = 64
    config.mesh.fsdp = 2
    cost = compile_for(config, "2xv5e-16")["train step"]
    assert {c.group for c in cost.collectives} <= {2, 8, 16}  # never across slices
    kinds = {transfer.kind for transfer in cost.transfers}
    assert "all-reduce" in kinds and kinds <= {"all-reduce", "all-gather"}
    gradients = 4 * sum(x.size for x in jax.tree.leaves(make_plan(config, 96).shapes.params))
    # At most the gradients once, and the few features of texts.
    assert 0 < sum(t.bytes for t in cost.transfers) < 1.1 * gradients


@pytest.mark.slow
def test_a_chip_of_two_devices_compiles_as_two(tiny_config):
    pytest.importorskip("libtpu")
    config = tiny_config()
    config.data.corpora = cocu.get_config().data.corpora  # not read
    config.batch_size = 64
    cost = compile_for(config, "tpu7x-16")["train step"]
    assert {c.group for c in cost.collectives} == {16}  # 8 chips
    assert cost.memory < 1e9
