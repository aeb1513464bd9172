"""Which of several equal programs of the step suits a chip, by what its compiler says.

`python -m benchmarks.step_programs --chip v5e` compiles them all and prints the bounds.
"""

import dataclasses

from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig

# Fields of a model's settings by JAX's name of the chip. Other devices run what the config says.
# Without recomputation activations leave the chip's fast memory and come back: two to three times
# the traffic. Attention weights that stay on the chip save as much again at many rows per chip.
PROGRAMS = {
    "TPU v4": {"remat": True, "fused_attention": True},
    "TPU v5 lite": {"remat": True, "fused_attention": True},
    "TPU v5": {"remat": True, "fused_attention": True},
    "TPU v6 lite": {"remat": True, "fused_attention": True},
    "TPU7x": {"remat": True, "fused_attention": True},
}


def tune(settings: GroupViTConfig | CLIPConfig, device_kind: str) -> GroupViTConfig | CLIPConfig:
    """The same model, computed the way that suits the device."""
    fields = {field.name for field in dataclasses.fields(settings)}
    chosen = PROGRAMS.get(device_kind, {})
    return dataclasses.replace(settings, **{k: v for k, v in chosen.items() if k in fields})
