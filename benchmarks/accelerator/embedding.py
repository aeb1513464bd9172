"""CLIP's image encoders in bfloat16, as curation embeds a corpus with them."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from benchmarks.accelerator.measure import (
    card,
    seconds_of,
    torch_backend,
    torch_device,
    wait_for_jax,
    wait_for_torch,
)
from benchmarks.figures import print_figure
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.keys import Keys
from cocu_jax.training.flops import step_flops
from cocu_jax.training.hardware import chip_of

# Patch, width, heads, layers of the image tower; width of the joint space; and images/s that others
# have published for an A100 (80 GB, half precision).
ENCODERS = {
    "B/32": ((32, 768, 12, 12), 512, 2500),
    "B/16": ((16, 768, 12, 12), 512, 1100),
    "L/14": ((14, 1024, 16, 24), 768, 312),
}
_TINY = (32, 64, 2, 2), 32, None
_IMAGES = 256


def embedding(name: str, tiny: bool) -> None:
    """Images/s of one encoder, ours and torch's, from bytes on the card to unit vectors."""
    tower, joint, published = _TINY if tiny else ENCODERS[name]
    images = 2 if tiny else _IMAGES
    pixels = np.random.default_rng(0).integers(256, size=(images, 224, 224, 3), dtype=np.uint8)
    _ours(name, tower, joint, pixels, published, tiny)
    _torchs(name, tower, joint, pixels, tiny)


def _ours(name: str, tower: tuple, joint: int, pixels: np.ndarray, published, tiny: bool) -> None:
    patch, width, heads, layers = tower
    config = CLIPConfig(
        patch_size=patch,
        vision_width=width,
        vision_heads=heads,
        vision_layers=layers,
        projection_dim=joint,
        dtype="bfloat16",
    )
    graph, state = nnx.split(nnx.jit(lambda: CLIP(config, rngs=Keys(0)))())

    @jax.jit
    def encode(state, pixels):
        images = (pixels.astype(jnp.float32) / 255 - 0.5) / 0.25
        features = nnx.merge(graph, state).encode_image(images)
        return (features / jnp.linalg.norm(features, axis=-1, keepdims=True)).astype(jnp.float16)

    placed = jnp.asarray(pixels)
    with card():
        seconds = seconds_of(lambda: encode(state, placed), wait_for_jax, tiny)
    print_figure(f"CLIP {name}: ours", len(pixels) / seconds, "images/s", goal=published)
    if chip := chip_of(jax.devices()[0].device_kind):
        used = step_flops(config, len(pixels), ()) / 3 / chip.flops / seconds
        print_figure(f"CLIP {name}: ours, utilisation", 100 * used, "%")


def _torchs(name: str, tower: tuple, joint: int, pixels: np.ndarray, tiny: bool) -> None:
    patch, width, heads, layers = tower
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        patch_size=patch,
        projection_dim=joint,
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model = model.to(torch_device(), torch.bfloat16)
    placed = torch.from_numpy(pixels).to(torch_device())

    @torch.inference_mode()
    def encode(pixels):
        images = (pixels.permute(0, 3, 1, 2).to(torch.bfloat16) / 255 - 0.5) / 0.25
        features = model(pixel_values=images).image_embeds
        return torch.nn.functional.normalize(features, dim=-1).half()

    compiled = torch.compile(encode, backend=torch_backend(tiny))
    compiled(placed)
    with card():
        seconds = seconds_of(lambda: compiled(placed), wait_for_torch, tiny)
    print_figure(f"CLIP {name}: torch", len(pixels) / seconds, "images/s")
