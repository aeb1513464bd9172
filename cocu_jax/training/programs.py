"""The fastest of several equivalent programs of the training step, by chip.

For TPUs the choices follow the costs that the compiler reports: `python -m benchmarks.step_programs
--chip v5e` compiles all programs and prints them. For GPUs they follow `benchmarks.accelerator`.
"""

import dataclasses

from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig

# Fields of a model's settings, by JAX's name of the chip. Other devices use the config unchanged.
# Recomputation avoids that activations are written to the chip's main memory and read back, which
# takes two to three times the traffic. Fused attention keeps the attention weights on the chip; at
# large batches per chip this saves as much again.
PROGRAMS = {
    "TPU v4": {"remat": True, "fused_attention": True},
    "TPU v5 lite": {"remat": True, "fused_attention": True},
    "TPU v5": {"remat": True, "fused_attention": True},
    "TPU v6 lite": {"remat": True, "fused_attention": True},
    "TPU7x": {"remat": True, "fused_attention": True},
}


# Options of the compiler, by JAX's name of the platform. XLA merges products of one matrix with
# several others: queries with keys and values, and captions with prompts, which have the same
# weights. The copies that join and part the factors take more time than the merging saves.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_dot_merger_threshold_mb": 0}}


def tune(settings: GroupViTConfig | CLIPConfig, device_kind: str) -> GroupViTConfig | CLIPConfig:
    """The same model with the programs that are fastest on the device."""
    fields = {field.name for field in dataclasses.fields(settings)}
    chosen = PROGRAMS.get(device_kind, {})
    return dataclasses.replace(settings, **{k: v for k, v in chosen.items() if k in fields})
