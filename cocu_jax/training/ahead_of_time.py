"""Compiles a run's programs for a TPU slice on any machine, and prints their costs.

`python main.py --config=configs/cocu.py --compile_for=v5e-256` computes nothing and reads no data.
It runs the TPU compiler of the `libtpu` package, which produces the same programs as on the slice.
"""

import time

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import NamedSharding, SingleDeviceSharding

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.keys import Keys
from cocu_jax.training.compiled import Cost, cost_of
from cocu_jax.training.config import check_config
from cocu_jax.training.flops import step_flops
from cocu_jax.training.mesh import BATCH
from cocu_jax.training.plan import Plan, batch_shapes, make_plan
from cocu_jax.training.slices import Slices, parse_slices

_ENCODER_BATCH = 256  # images that curation's CLIP encodes at once on each chip


def compile_for(config: ml_collections.ConfigDict, name: str) -> dict[str, Cost]:
    """Compiles the train step and curation's CLIP image encoder for a slice, and prints costs.

    Args:
        config: a train config, see `configs/cocu.py`; its data is not opened.
        name: a slice or several, such as "v5e-256", "v5p:4x4x6" or "2xv5e-256".

    Returns:
        Costs by name of the program.

    Raises:
        UserError: there is no such slice, or a program does not fit in the memory of its chips.
    """
    if config.job != "train":
        raise UserError(f"--compile_for compiles train configs; config.job is {config.job!r}")
    check_config(config)
    jax.config.update("jax_platforms", "cpu")
    target = parse_slices(name)
    devices = target.devices()
    costs = {}
    start = time.monotonic()
    plan = make_plan(config, examples=100 * config.batch_size, devices=devices)
    costs["train step"] = cost_of(compile_step_for(plan, config))
    sizes = " ".join(f"{axis}={size}" for axis, size in plan.mesh.shape.items())
    print(f"{target.name}: {len(devices)} devices, global batch {config.batch_size}, mesh {sizes}")
    _report("train step", costs["train step"], target, plan.flops / len(devices), start)
    start = time.monotonic()
    costs["CLIP encoder"] = cost_of(_compile_encoder(devices[0]))
    flops = step_flops(CLIPConfig(), _ENCODER_BATCH, ()) / 3
    _report(f"CLIP encoder ({_ENCODER_BATCH} images)", costs["CLIP encoder"], target, flops, start)
    for program, cost in costs.items():
        if cost.memory > target.chip.memory:
            raise UserError(
                f"{program} does not fit in {name}: {cost.memory / 1e9:.1f} GB of "
                f"{target.chip.memory / 1e9:.0f} GB; use config.accumulate, config.model.remat, "
                "config.mesh.fsdp or a smaller batch"
            )
    return costs


def compile_step_for(plan: Plan, config: ml_collections.ConfigDict) -> jax.stages.Compiled:
    """The plan's step, compiled for its devices, which need not exist."""
    sharding = NamedSharding(plan.mesh, BATCH)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in batch_shapes(config).items()
    }
    return plan.step.lower(plan.targets(), batch).compile()


def _compile_encoder(device: jax.Device) -> jax.stages.Compiled:
    """The image encoder of OpenAI's ViT-B/32 in bfloat16, for one chip."""
    model = nnx.eval_shape(lambda: CLIP(CLIPConfig(dtype="bfloat16"), rngs=Keys(0)))
    graphdef, state = nnx.split(model)
    sharding = SingleDeviceSharding(device)
    state, images = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (state, jax.ShapeDtypeStruct((_ENCODER_BATCH, 224, 224, 3), jnp.float32)),
    )
    encode = jax.jit(lambda state, images: nnx.merge(graphdef, state).encode_image(images))
    return encode.lower(state, images).compile()


def _report(program: str, cost: Cost, target: Slices, model_flops: float, start: float) -> None:
    chip, seconds = target.chip, cost.seconds(target.chip)
    bound = max(seconds, key=seconds.get)
    lines = [
        f"{program}, per device (compiled in {time.monotonic() - start:.0f} s)",
        f"  memory       {cost.memory / 1e9:8.2f} GB = {cost.memory / chip.memory:.0%} of "
        f"{chip.memory / 1e9:.0f} GB, of which temporaries {cost.temporaries / 1e9:.2f} GB",
        f"  operations   {cost.flops / 1e12:8.3f} TFLOP; the model's {model_flops / 1e12:.3f}, "
        f"ratio {cost.flops / model_flops:.2f}",
        f"  traffic      {cost.traffic / 1e9:8.2f} GB",
        f"  roofline     {max(seconds.values()) * 1e3:8.2f} ms by {bound} ("
        + ", ".join(f"{name} {value * 1e3:.2f}" for name, value in seconds.items())
        + f"); MFU at most {model_flops / chip.flops / max(seconds.values()):.0%}",
        *_communication_lines(cost),
    ]
    print("\n".join(lines), flush=True)


def _communication_lines(cost: Cost) -> list[str]:
    """Communication between slices (DCN), and within a slice (ICI)."""
    if cost.collectives is None:
        return ["  collectives  unknown: jaxlib cannot read the text of this program"]
    lines = []
    if cost.transfers:
        total = sum(t.bytes for t in cost.transfers)
        lines.append(f"  DCN          {total / 1e6:8.2f} MB sent over the network between slices")
        lines += [f"  {t.kind:<18} {t.count:4d}: {t.bytes / 1e6:.2f} MB" for t in cost.transfers]
    if cost.collectives:
        total = sum(c.sent for c in cost.collectives)
        lines.append(f"  ICI          {total / 1e6:8.2f} MB sent over the links within a slice")
    for c in cost.collectives:
        lines.append(f"  {c.kind:<18} {c.count:4d} in groups of {c.group}: {c.bytes / 1e6:.2f} MB")
        lines += [f"      {label}" for label in c.largest]
    return lines or ["  no collectives"]
