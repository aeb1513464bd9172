"""The published training step in bfloat16 on one card."""

import jax
import torch

from benchmarks.accelerator.measure import (
    card,
    seconds_of,
    torch_backend,
    torch_device,
    wait_for_jax,
    wait_for_torch,
)
from benchmarks.figures import print_figure, print_line
from benchmarks.steps import comparable_config, random_batch, torch_step
from cocu_jax.training.compiled import cost_of
from cocu_jax.training.hardware import chip_of
from cocu_jax.training.mesh import put_batch
from cocu_jax.training.plan import make_plan

# Sizes at which everything runs and nothing is measured.
_TINY_BATCH = 4
_TINY_VISION = dict(depths=[1, 1, 1], hidden_size=48, intermediate_size=96, num_attention_heads=2)
_TINY_TEXT = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=2)


def config_of(batch: int, tiny: bool, dtype: str = "bfloat16"):
    """The comparable recipe, or a toy of its structure."""
    config = comparable_config(_TINY_BATCH if tiny else batch, dtype)
    config.tuned = False
    if tiny:
        config.model.depths, config.model.width, config.model.heads = (1, 1, 1), 48, 2
        config.model.text.layers, config.model.text.width, config.model.text.heads = 1, 32, 2
        config.data.image_size = 64
    return config


def ours(batch: int, remat: bool, tiny: bool) -> None:
    """Images/s, utilisation, roofline and memory of our step on the first device."""
    config = config_of(batch, tiny)
    config.model.remat = remat
    device = jax.devices()[:1]
    plan = make_plan(config, examples=1000 * config.batch_size, devices=device)
    rows = put_batch(plan.mesh, random_batch(config))
    lowered = plan.step.lower(plan.targets(), rows)
    state = [plan.init()]

    def step() -> dict:
        state[0], metrics = program(state[0], rows)
        return metrics

    with card():
        program = lowered.compile()
        seconds = seconds_of(step, wait_for_jax, tiny)
    name = f"step, batch {batch}: ours, {'recomputed' if remat else 'kept'}"
    print_figure(name, config.batch_size / seconds, "images/s")
    print_line({"metric": f"{name}, attention", "is": plan.attention})
    cost = cost_of(program)
    print_figure(f"{name}, memory of the program", cost.memory / 1e9, "GB", better="lower")
    peak = (device[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        print_figure(f"{name}, peak memory", peak / 1e9, "GB", better="lower")
    print_figure(f"{name}, traffic", cost.traffic / 1e9, "GB", better="lower")
    if chip := chip_of(device[0].device_kind):
        used = plan.flops / seconds / chip.flops
        print_figure(f"{name}, utilisation", 100 * used, "%", goal=30)
        # XLA does not count the operations of cuBLAS and cuDNN.
        least = {"compute": plan.flops / chip.flops, "memory": cost.traffic / chip.bandwidth}
        for bound, limit in least.items():
            print_figure(f"{name}, least time by {bound}", 1e3 * limit, "ms", better="lower")
        print_figure(f"{name}, time", 1e3 * seconds, "ms", better="lower")


def torchs(batch: int, tiny: bool) -> None:
    """Images/s and memory of torch's step: compiled, bfloat16 products, fused AdamW.

    Compiling takes minutes, so the step as it is comes first.
    """
    config = config_of(batch, tiny)
    sizes = {}
    if tiny:
        sizes = dict(vision=dict(_TINY_VISION, image_size=64), text=_TINY_TEXT)
    torch.set_float32_matmul_precision("high")
    for name, backend in {"torch, not compiled": None, "torch": torch_backend(tiny)}.items():
        step = torch_step(
            random_batch(config),
            device=torch_device(),
            half=True,
            backend=backend,
            fused=torch.cuda.is_available(),
            **sizes,
        )
        step()  # compiles
        with card():
            seconds = seconds_of(step, wait_for_torch, tiny)
        print_figure(f"step, batch {batch}: {name}", config.batch_size / seconds, "images/s")
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
            print_figure(f"step, batch {batch}: {name}, peak memory", peak, "GB", better="lower")
            torch.cuda.reset_peak_memory_stats()
        del step
