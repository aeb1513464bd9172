"""Speed of GroupViT's training step against `transformers` on torch: the same work, the same cores.

    python -m benchmarks.model_step [--batch 8] [--rounds 5]

One step is images, one caption and three prompts each, both losses, published sizes, float32. All
contestants run in turn, round after round; a ratio is the median over rounds of time over time, so
that whatever else the machine does hits both. Captions have 8 to 20 tokens and prompts 6 to 14;
with the text shortcut they run at 32 and 16 positions, else at 77 as torch does. The floor of a
step is the time its matrix products alone would take at the speed of one large product, which runs
in turn with the others. Prints JSON lines.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import jax
import torch
from flax import nnx

from benchmarks import transformers_oracle as oracle
from benchmarks.figures import print_figure
from benchmarks.parity import training_loss
from cocu_jax.host_memory import keep_freed_memory
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys
from cocu_jax.models.text import trim_tokens
from cocu_jax.training.flops import step_flops

_PRODUCT_SIDE = 2048
PRODUCT_FLOPS = 2 * _PRODUCT_SIDE**3


def torch_steps(batch: tuple) -> dict[str, Callable[[], object]]:
    """The forward pass, and the whole step, of transformers' model in training mode."""
    model = oracle.random_groupvit().train()
    scale = torch.tensor(2.6592, requires_grad=True)

    def forward():
        with torch.no_grad():
            return oracle.training_loss(model, scale, *batch)

    def step():
        model.zero_grad()
        oracle.training_loss(model, scale, *batch).backward()

    return {"forward": forward, "forward+backward": step}


def our_steps(batch: tuple) -> dict[str, Callable[[], object]]:
    """The same of our model, without drop-path, which transformers lacks."""
    config = GroupViTConfig(drop_path=0.0)
    model = nnx.jit(lambda: GroupViT(config, rngs=Keys(0)))()
    graph, parameters, stats = nnx.split(model, nnx.Param, ...)
    batch = jax.device_put(batch)

    def loss(parameters, stats, batch):
        model = nnx.merge(graph, parameters, stats, copy=True)
        keys = jax.random.split(jax.random.key(0), len(batch[0]))
        value = training_loss(model, *batch, keys=keys)
        return value, nnx.state(model, nnx.BatchStat)

    def run(function):
        compiled = jax.jit(function).lower(parameters, stats, batch).compile()
        return lambda: jax.block_until_ready(compiled(parameters, stats, batch))

    return {"forward": run(loss), "forward+backward": run(jax.value_and_grad(loss, has_aux=True))}


def large_product() -> Callable[[], object]:
    """A matrix product as fast as these cores do any, torch's, of `PRODUCT_FLOPS`."""
    matrix = torch.randn(_PRODUCT_SIDE, _PRODUCT_SIDE)
    return lambda: matrix @ matrix


def interleaved_times(
    contestants: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after one round to warm up."""
    times = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def report_part(part: str, times: dict[str, list[float]], operations: dict[str, float]) -> None:
    """Ratios, seconds, and the floor of each contestant whose operations are given."""
    for slow, fast, goal in (
        ("torch", "ours", 1.0),
        ("torch", "ours with shortcut", 1.0),
        ("ours", "ours with shortcut", 1.4),
    ):
        ratio = statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))
        print_figure(f"{part}: {slow} / {fast}", ratio, "ratio", goal=goal)
    rate = PRODUCT_FLOPS / min(times.pop("product"))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    print_figure(f"{part}: a large product", rate / 1e9, "GFLOP/s")
    for name, value in seconds.items():
        print_figure(f"{part}: {name}", value, "s", better="lower")
    for name, count in operations.items():
        floor = count / rate
        print_figure(f"{part}: {name}, products", count / 1e9, "GFLOP")
        print_figure(f"{part}: {name}, floor", floor, "s")
        print_figure(
            f"{part}: {name}, floor / time", floor / seconds[name], "share", better="higher"
        )


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    arguments = parser.parse_args()
    size = arguments.batch
    keep_freed_memory()  # as the jobs do; torch's arrays gain by it, too
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    images = oracle.random_images((size, 224, 224))
    captions = oracle.random_tokens((size, 77), (8, 20))
    prompts = oracle.random_tokens((size, 3, 77), (6, 14), seed=1)
    short = images, trim_tokens(captions), trim_tokens(prompts)
    contestants = {
        "torch": torch_steps((images, captions, prompts)),
        "ours": our_steps((images, captions, prompts)),
        "ours with shortcut": our_steps(short),
    }
    operations = {
        "ours": step_flops(GroupViTConfig(), size, (77,) * 4),
        "ours with shortcut": step_flops(GroupViTConfig(), size, (32, 16, 16, 16)),
    }
    for part, share in {"forward": 1 / 3, "forward+backward": 1}.items():
        runs = {name: steps[part] for name, steps in contestants.items()}
        times = interleaved_times(runs | {"product": large_product()}, arguments.rounds)
        counts = {name: share * count for name, count in operations.items()}
        report_part(f"{part}, batch {size}", times, counts)


if __name__ == "__main__":
    main()
