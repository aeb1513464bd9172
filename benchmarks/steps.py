"""A whole training step of the published recipe: ours, and torch's of `transformers`' model."""

import contextlib
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
import torch

from benchmarks import transformers_oracle as oracle
from cocu_jax.training.mesh import put_batch
from cocu_jax.training.plan import make_plan
from configs import cocu


def comparable_config(batch_size: int, dtype: str) -> ml_collections.ConfigDict:
    """The recipe without what transformers' model lacks: drop-path, and erasing on the device."""
    config = cocu.get_config()
    config.batch_size, config.model.dtype, config.model.drop_path = batch_size, dtype, 0.0
    config.total_steps, config.warmup_steps = 100_000, 1
    config.data.augment = "crop"
    return config


def random_batch(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """A batch as the input makes them: captions of 8 to 20 tokens, prompts of 6 to 14."""
    size, data = config.batch_size, config.data
    pixels = np.random.default_rng(0).integers(
        0, 256, (size, data.image_size, data.image_size, 3), dtype=np.uint8
    )
    return {
        "image": pixels,
        "caption": oracle.random_tokens((size, data.caption_length), (8, 20)),
        "prompts": oracle.random_tokens((size, data.prompts, data.prompt_length), (6, 14), seed=1),
        "noise": np.random.default_rng(1).integers(0, 2**32, (size, 2), dtype=np.uint32),
    }


def our_step(config: ml_collections.ConfigDict, batch: dict[str, np.ndarray]) -> Callable:
    """One step of ours on a batch that stays on the devices."""
    plan = make_plan(config, examples=1000 * config.batch_size)
    state, batch = [plan.init()], put_batch(plan.mesh, batch)

    def step() -> None:
        state[0], metrics = plan.step(state[0], batch)
        jax.block_until_ready(metrics)

    return step


def torch_step(
    batch: dict[str, np.ndarray],
    *,
    full_prompts: bool = False,
    device: str = "cpu",
    half: bool = False,
    backend: str | None = None,
    fused: bool | None = None,
    **sizes,
) -> Callable[[], None]:
    """One step of transformers' model with the recipe's optimiser, on a batch that stays there.

    Args:
        batch: as `random_batch` gives it.
        full_prompts: pad prompts to the captions' positions and encode all texts together, as the
            model does by itself; else each at its own, as ours.
        device: torch's name of it.
        half: products in bfloat16, parameters in float32, as ours.
        backend: of `torch.compile`; None compiles nothing.
        fused: whether AdamW is one kernel; None leaves it to torch.
        **sizes: of the model, see `transformers_oracle.random_groupvit`.
    """
    model = oracle.random_groupvit(**sizes).train().to(device)
    scale = torch.nn.Parameter(torch.tensor(2.6592, device=device))
    named = [*model.named_parameters(), ("scale", scale)]
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=fused)
    prompts = batch["prompts"]
    if full_prompts:
        pad = batch["caption"].shape[-1] - prompts.shape[-1]
        prompts = np.pad(prompts, ((0, 0), (0, 0), (0, pad)))
    images, captions, prompts = (
        torch.from_numpy(x).to(device) for x in (batch["image"], batch["caption"], prompts)
    )
    loss = oracle.training_loss
    if backend:
        loss = torch.compile(loss, backend=backend)

    def step() -> None:
        optimizer.zero_grad()
        cast = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
        with cast:
            value = loss(model, scale, images.float() / 127.5 - 1, captions, prompts)
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 5.0)
        optimizer.step()

    return step
