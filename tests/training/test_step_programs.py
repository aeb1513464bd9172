"""The programs that TPUs run instead compute the same step."""

import functools

import jax
import numpy as np
import pytest
from jax.experimental import pallas

from cocu_jax.models.keys import Keys
from cocu_jax.training.gradients import make_gradients
from cocu_jax.training.mesh import make_mesh, put_batch
from cocu_jax.training.objective import make_objective
from cocu_jax.training.programs import PROGRAMS, tune
from cocu_jax.training.state import split_model


@pytest.mark.slow
def test_recomputed_and_fused_gradients_are_the_plain_ones(tiny_config, random_batch, monkeypatch):
    interpreted = functools.partial(pallas.pallas_call, interpret=True)
    monkeypatch.setattr(pallas, "pallas_call", interpreted)
    config = tiny_config()
    config.batch_size = 16
    config.model.dtype = "float32"
    mesh = make_mesh(2, 1, 16, jax.devices()[:2])
    batch = put_batch(mesh, random_batch(config))
    results = []
    for kind in ("cpu", "TPU v5 lite"):
        objective = make_objective(config, kind)
        _, params, stats = split_model(objective.build(Keys(0)))
        gradients = jax.jit(make_gradients(objective, 1, mesh))
        text = str(jax.make_jaxpr(gradients)(params, stats, batch))
        results.append(gradients(params, stats, batch))
        assert ("pallas_call" in text) == (kind != "cpu")

    plain, tuned = results
    assert abs(plain[0] - tuned[0]) < 1e-5 * abs(plain[0])
    norm = np.linalg.norm
    errors = {name: norm(g - tuned[2][name]) for name, g in plain[2].items()}
    total = norm([norm(g) for g in plain[2].values()])
    assert norm(list(errors.values())) < 1e-4 * total
    for name, gradient in plain[2].items():
        # A bias before a norm has no gradient but rounding, which is small in both. Elsewhere batch
        # normalisation over few rows amplifies rounding.
        rounding = 1e-4 * total
        assert errors[name] < 1e-3 * norm(gradient) or norm(tuned[2][name]) < rounding, name


def test_programs_are_chosen_by_the_chip_unless_the_config_says_otherwise(tiny_config):
    config = tiny_config()

    on_tpu = make_objective(config, "TPU v5 lite").model_config
    on_gpu = make_objective(config, "NVIDIA H100 80GB HBM3").model_config
    config.tuned = False
    as_said = make_objective(config, "TPU v5 lite").model_config

    assert on_tpu.remat and on_tpu.fused_attention
    assert not (on_gpu.remat or on_gpu.fused_attention)
    assert as_said == on_gpu


def test_every_choice_is_a_field_of_a_model(tiny_config):
    settings = make_objective(tiny_config(), "cpu").model_config

    for kind, chosen in PROGRAMS.items():
        tuned = tune(settings, kind)
        assert {name: getattr(tuned, name) for name in chosen} == chosen
