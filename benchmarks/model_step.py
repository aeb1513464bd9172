"""Speed of GroupViT's training step against `transformers` on torch: the same work, the same cores.

    python -m benchmarks.model_step [--batch 8] [--rounds 5]

One step is images, one caption and three prompts each, both losses, published sizes, float32. All
contestants run in turn, round after round; a ratio is the median over rounds of time over time, so
that whatever else the machine does hits both. Captions have 8 to 20 tokens and prompts 6 to 14;
with the text shortcut they run at 32 and 16 positions, else at 77 as torch does. Prints JSON lines.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import jax
import torch
from flax import nnx

from benchmarks import transformers_oracle as oracle
from benchmarks.parity import training_loss
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import trim_tokens


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
    model = nnx.jit(lambda: GroupViT(config, rngs=nnx.Rngs(0)))()
    graph, parameters, statistics_ = nnx.split(model, nnx.Param, ...)
    batch = jax.device_put(batch)

    def loss(parameters, statistics_, batch):
        model = nnx.merge(graph, parameters, statistics_, copy=True)
        value = training_loss(model, *batch, key=jax.random.key(0))
        return value, nnx.state(model, nnx.BatchStat)

    def run(function):
        compiled = jax.jit(function).lower(parameters, statistics_, batch).compile()
        return lambda: jax.block_until_ready(compiled(parameters, statistics_, batch))

    return {"forward": run(loss), "forward+backward": run(jax.value_and_grad(loss, has_aux=True))}


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


def main() -> None:
    """Prints one JSON line per ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    arguments = parser.parse_args()
    size = arguments.batch
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
    for part in contestants["torch"]:
        runs = {name: steps[part] for name, steps in contestants.items()}
        times = interleaved_times(runs, arguments.rounds)
        for slow, fast, goal in (
            ("torch", "ours", 1.0),
            ("torch", "ours with shortcut", 1.0),
            ("ours", "ours with shortcut", 1.4),
        ):
            ratio = statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))
            line = {"metric": f"{part}, batch {size}: {slow} / {fast}", "value": round(ratio, 3)}
            print(json.dumps({**line, "unit": "ratio", "goal": goal, "better": "higher"}))
        for name, seconds in times.items():
            line = {"metric": f"{part}, batch {size}: {name}", "unit": "s", "better": "lower"}
            print(json.dumps({**line, "value": round(statistics.median(seconds), 3)}), flush=True)


if __name__ == "__main__":
    main()
