"""Speed of the whole training step, and what the loop around it costs.

    python -m benchmarks.train [--batch 8] [--rounds 5] [--corpus DIRECTORY]

Against torch: the published recipe in float32 (forward, backward, clipping, AdamW) on the same
cores as `transformers`' GroupViT with torch's AdamW, in turn, round after round; a ratio is the
median over rounds. Ours runs prompts at the 32 positions that the input gives them, torch all texts
at 77; in further rows torch, too, runs prompts at 32, and both through `torch.compile`. On an
accelerator: images/s and model FLOP utilisation of the bfloat16 step instead
(`benchmarks.accelerator` has torch beside it). With a corpus (of `python -m data_prep scenes`): the
loop with its real input, log and checkpoints against the bare step on a resident batch. Prints JSON
lines.
"""

import argparse
import os
import statistics
import tempfile
import time

import jax
import ml_collections
import torch

from benchmarks.figures import print_figure
from benchmarks.model_step import PRODUCT_FLOPS, interleaved_times, large_product
from benchmarks.steps import comparable_config, our_step, random_batch, torch_step
from cocu_jax.host_memory import keep_freed_memory
from cocu_jax.training.hardware import chip_of
from cocu_jax.training.loop import train
from cocu_jax.training.metrics import read_metrics
from cocu_jax.training.plan import make_plan
from configs import cocu


def against_torch(batch_size: int, rounds: int) -> None:
    """Prints how many times faster ours is, on CPU in float32."""
    config = comparable_config(batch_size, "float32")
    batch = random_batch(config)
    steps = {
        "torch": torch_step(batch, full_prompts=True),
        "torch, prompts at our positions": torch_step(batch),
        "torch, compiled": torch_step(batch, full_prompts=True, backend="inductor", fused=True),
        "torch, compiled, prompts at our positions": torch_step(
            batch, backend="inductor", fused=True
        ),
        "ours": our_step(config, batch),
    }
    times = interleaved_times(steps | {"product": large_product()}, rounds)
    rate = PRODUCT_FLOPS / min(times.pop("product"))
    for name in [name for name in steps if name != "ours"]:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
        goal = 1.0 if name == "torch" else None
        print_figure(f"whole step, batch {batch_size}: {name} / ours", ratio, "ratio", goal)
    for name, seconds in times.items():
        seconds = statistics.median(seconds)
        print_figure(f"whole step, batch {batch_size}: {name}", batch_size / seconds, "images/s")
    flops = make_plan(config, examples=1000 * batch_size).flops
    floor = flops / rate / statistics.median(times["ours"])
    print_figure(f"whole step, batch {batch_size}: products of ours", flops / 1e9, "GFLOP")
    print_figure(f"whole step, batch {batch_size}: a large product", rate / 1e9, "GFLOP/s")
    print_figure(f"whole step, batch {batch_size}: floor / time of ours", floor, "share")


def on_accelerator(batch_size: int, rounds: int) -> None:
    """Prints images/s and utilisation of the published recipe in bfloat16."""
    config = cocu.get_config()
    config.batch_size, config.total_steps, config.warmup_steps = batch_size, 100_000, 1
    step = our_step(config, random_batch(config))
    seconds = statistics.median(interleaved_times({"ours": step}, rounds)["ours"])
    print_figure(f"whole step, batch {batch_size}: ours", batch_size / seconds, "images/s")
    device = jax.devices()[0]
    if chip := chip_of(device.device_kind):
        flops = make_plan(config, examples=1000 * batch_size).flops
        peak = chip.flops * jax.device_count()
        name = f"whole step, batch {batch_size}: model FLOP utilisation, {device.device_kind}"
        print_figure(name, flops / seconds / peak, "share", goal=0.45)


def loop_against_resident_batch(corpus: str, steps: int = 120) -> None:
    """Prints the speed of the demo's run as a share of its bare step's."""
    from configs import demo

    config = demo.get_config().pretrain
    config.data.concepts = "caption"
    spec = dict(directory=corpus, split="pretrain", annotations="")
    config.data.corpora = (ml_collections.ConfigDict(spec),)
    config.total_steps, config.log_every, config.checkpoint_every = steps, 20, 0
    config.evaluation, config.export, config.seed = None, False, 0
    bare = our_step(config, random_batch(config))
    bare()
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir)
        lines = read_metrics(workdir)[2:]  # without compilation
    start = time.perf_counter()
    for _ in range(steps // 2):
        bare()
    speed = steps // 2 * config.batch_size / (time.perf_counter() - start)
    rate = statistics.median(line["images_per_second"] for line in lines)
    print_figure("demo run with input and log: images", rate, "images/s")
    print_figure("demo step on a resident batch: images", speed, "images/s")
    print_figure("demo run / step on a resident batch", rate / speed, "ratio", goal=0.95)
    wait = statistics.median(line["input_wait"] for line in lines)
    print_figure("demo run: share of the time that waits for input", wait, "share", better="lower")


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help="images of a step: 8 on CPU, 1024 elsewhere")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--corpus", help="directory of prepared scenes, for the loop")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if jax.default_backend() == "cpu":
        keep_freed_memory()
        against_torch(arguments.batch or 8, arguments.rounds)
    else:
        on_accelerator(arguments.batch or 1024, arguments.rounds)
    if arguments.corpus:
        loop_against_resident_batch(arguments.corpus)


if __name__ == "__main__":
    main()
