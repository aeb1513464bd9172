"""The optimisation recipe against torch and against the formulas of the paper in NumPy.

timm's `CosineLRScheduler` is not imported: timm needs torchvision. Its rule (warm-up inside the
cosine, `warmup_prefix=False`) is written out in float64 below.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from cocu_jax.errors import UserError
from cocu_jax.training.optimizer import decay_mask, make_optimizer
from cocu_jax.training.schedule import Schedule, schedule_from

TOTAL, WARMUP, PEAK, START, END = 300, 20, 1.6e-3, 4e-6, 4e-5


def published_rates() -> np.ndarray:
    steps = np.arange(TOTAL, dtype=np.float64)
    cosine = END + 0.5 * (PEAK - END) * (1 + np.cos(np.pi * steps / TOTAL))
    return np.where(steps < WARMUP, START + steps * (PEAK - START) / WARMUP, cosine)


def test_learning_rate_is_the_published_curve_at_every_step():
    schedule = Schedule(PEAK, START, END, WARMUP, TOTAL)
    ours = jax.vmap(schedule)(jnp.arange(TOTAL))
    np.testing.assert_allclose(ours, published_rates(), rtol=1e-6)


def test_rates_scale_with_the_batch_and_warmup_counts_epochs(tiny_config):
    config = tiny_config()
    config.batch_size, config.reference_batch, config.warmup_steps = 1024, 4096, 0
    schedule = schedule_from(config, 80_000, steps_per_epoch=2687.26)
    assert schedule == Schedule(4e-4, 1e-6, 1e-5, 5375, 80_000)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warm-up of 10 steps in a run of 5"):
        Schedule(PEAK, START, END, 10, 5)


@pytest.mark.parametrize("decay_temperatures", [True, False])
def test_clipped_adamw_steps_equal_torch(decay_temperatures):
    generator = np.random.default_rng(0)
    shapes = {"kernel": (7, 5), "bias": (5,), "scale": ()}
    values = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    # From far above the clipping norm to far below it.
    gradients = [
        {name: scale * generator.normal(size=shape) for name, shape in shapes.items()}
        for scale in (100.0, 10.0, 1.0, 0.1, 0.01)
    ]

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in values.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.05},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
        {"params": [theirs["scale"]], "weight_decay": 0.05 * decay_temperatures},
    ]
    torch_optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    rates = published_rates()
    for step, gradient in enumerate(gradients):
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 5.0)
        for group in torch_optimizer.param_groups:
            group["lr"] = rates[step]
        torch_optimizer.step()

    optimizer = make_optimizer(
        Schedule(PEAK, START, END, WARMUP, TOTAL), 0.05, 5.0, decay_temperatures
    )
    ours = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    state = optimizer.init(ours)
    for gradient in gradients:
        gradient = {name: jnp.asarray(value, jnp.float32) for name, value in gradient.items()}
        updates, state = optimizer.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)

    for name, parameter in theirs.items():
        # float32 against float64: the rounding of the values themselves.
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-6)
        assert np.abs(ours[name] - values[name]).max() > 1e-5


def test_biases_norms_and_temperatures_do_not_decay():
    shapes = {
        "image/stages/0/blocks/0/mlp/fc1/kernel": (16, 64),
        "image/stages/0/group_tokens": (4, 16),
        "image/stages/0/blocks/0/mlp/fc1/bias": (64,),
        "image/final_norm/scale": (16,),
        "logit_bias": (),
        "log_scale": (),
    }
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    kernels, published = (
        [name for name, decays in decay_mask(params, temperatures).items() if decays]
        for temperatures in (False, True)
    )
    assert kernels == list(shapes)[:2]
    assert published == [*kernels, "log_scale"]
