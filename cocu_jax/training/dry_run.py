"""Checks everything that a run needs without a work directory: `main.py --config=… --dry_run`.

Opens data, annotations and evaluations, reads one batch and draws it, compiles the step, and runs
two steps if the memory suffices.
"""

import os
import tempfile
import time

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from PIL import Image, ImageDraw, ImageFont

from cocu_jax.errors import UserError
from cocu_jax.input.pipeline import count_examples, train_batches
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.training.compiled import Cost, cost_of
from cocu_jax.training.config import check_config
from cocu_jax.training.evaluation import open_evaluations
from cocu_jax.training.hardware import chip_of
from cocu_jax.training.initial import initial_arrays
from cocu_jax.training.mesh import put_batch
from cocu_jax.training.plan import Plan, make_plan

_PICTURES = 8  # examples of the batch that are drawn


def dry_run(config: ml_collections.ConfigDict) -> None:
    """Prints parameters, data, memory and time, and draws a batch into a temporary file.

    Args:
        config: see `configs/cocu.py`.

    Raises:
        UserError: config, data, annotations or evaluations cannot be used, or the step does not fit
            in the accelerator's memory.
    """
    check_config(config)
    evaluations = open_evaluations(config)
    examples = count_examples(config.data)
    plan = make_plan(config, examples)
    given = initial_arrays(plan, config.init_from, config.init_partial)
    processes = jax.process_index(), jax.process_count()
    batch = next(
        train_batches(config.data, config.batch_size, config.seed, 0, *processes, with_keys=True)
    )
    first = jax.process_index() == 0
    if first:
        print(parameter_overview.get_parameter_overview(plan.shapes.params, include_stats=False))
        print(_summary(plan, config, examples))
        if given:
            print(f"{len(given)} arrays are initialised from {config.init_from}")
        for evaluation in evaluations:
            images = evaluation.settings.limit or evaluation.corpus.num_examples
            print(f"{evaluation.prefix}: {images} images of {evaluation.corpus.directory}")
        print(f"picture of a batch: {_draw(batch)}")
    arrays = put_batch(plan.mesh, batch)
    start = time.monotonic()
    program = plan.step.lower(plan.targets(), arrays).compile()
    lines = _time_and_memory(plan, program, arrays, time.monotonic() - start)
    if first:
        print("\n".join(lines), flush=True)


def _summary(plan: Plan, config: ml_collections.ConfigDict, examples: int) -> str:
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.shape.items())
    kind = plan.mesh.devices.flat[0].device_kind
    return (
        f"{examples} examples in {len(config.data.corpora)} corpora; {plan.total_steps} steps of "
        f"{config.batch_size}, {plan.total_steps * config.batch_size / examples:.2f} epochs\n"
        f"{plan.mesh.size} devices ({kind}), mesh {mesh}, {jax.process_count()} processes"
    )


def _time_and_memory(plan: Plan, program, arrays, compile_seconds: float) -> list[str]:
    cost = cost_of(program)
    device = plan.mesh.local_devices[0]
    memory, where = _memory_of(device, len(plan.mesh.local_devices))
    lines = [f"step compiled in {compile_seconds:.0f} s; memory {_gigabytes(cost.memory, memory)}"]
    if chip := chip_of(device.device_kind):
        lines.append(
            f"at least {1e3 * max(cost.seconds(chip).values()):.1f} ms per step (roofline)"
        )
    if memory and cost.memory > memory:
        if where == "host":  # such as a laptop on which the run of a pod is prepared
            return [*lines, "no step was run: it does not fit in this host's memory"]
        raise UserError(
            f"the step needs {_gigabytes(cost.memory, memory)} of a device's memory; use "
            "config.accumulate, config.model.remat, config.mesh.fsdp or a smaller batch"
        )
    return [*lines, _timed(plan, program, arrays, cost)]


def _timed(plan: Plan, program, arrays, cost: Cost) -> str:
    state, metrics = program(plan.init(), arrays)
    jax.block_until_ready(metrics)
    start = time.monotonic()
    _, metrics = program(state, arrays)
    loss = float(metrics["loss/total"])
    seconds = time.monotonic() - start
    images = arrays["image"].shape[0]
    return f"{1e3 * seconds:.0f} ms per step, {images / seconds:.1f} images/s; loss {loss:.3f}"


def _memory_of(device: jax.Device, local: int) -> tuple[int | None, str]:
    """Bytes of memory that a device may use, and whether it is the host's or the device's own."""
    if device.platform == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // local, "host"
    return (device.memory_stats() or {}).get("bytes_limit"), "device"


def _gigabytes(used: int, available: int | None) -> str:
    return f"{used / 1e9:.2f} GB" + (f" of {available / 1e9:.2f} GB" if available else "")


def _draw(batch: dict[str, np.ndarray]) -> str:
    """Draws the first examples, each image beside its texts; returns the path of the PNG file."""
    tokenizer, font = Tokenizer(), ImageFont.load_default(size=14)
    side = max(batch["image"].shape[1], 96)
    count = min(_PICTURES, len(batch["image"]))
    sheet = Image.new("RGB", (side + 900, count * (side + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for row in range(count):
        top = row * (side + 8)
        sheet.paste(Image.fromarray(batch["image"][row]).resize((side, side)), (0, top))
        texts = [tokenizer.decode(batch["caption"][row])]
        for prompt in batch.get("prompts", np.zeros((count, 0, 0)))[row]:
            texts.append(f"- {tokenizer.decode(prompt) if prompt.any() else 'its caption'}")
        lines = [batch["key"][row].decode(errors="replace"), *texts]
        pen.multiline_text((side + 12, top), "\n".join(lines), fill="black", font=font)
    file, path = tempfile.mkstemp(prefix="cocu-batch-", suffix=".png")
    with os.fdopen(file, "wb") as picture:
        sheet.save(picture, "PNG")
    return path
