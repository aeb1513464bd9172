"""`config.deterministic` reaches XLA before JAX starts, or the run says so."""

import os

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from cocu_jax import run
from cocu_jax.deterministic import DETERMINISTIC_FLAG, check_deterministic
from cocu_jax.errors import UserError


@pytest.mark.parametrize("before", ["", "--xla_force_host_platform_device_count=8"])
def test_flag_is_added_to_those_that_are_set(monkeypatch, before):
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setenv("GCS_READ_CACHE_BLOCK_SIZE_MB", "64")
    run.prepare_training(ml_collections.ConfigDict({"deterministic": False}))
    assert os.environ["XLA_FLAGS"] == before
    run.prepare_training(ml_collections.ConfigDict({"deterministic": True}))
    assert os.environ["XLA_FLAGS"].split() == [*before.split(), DETERMINISTIC_FLAG]
    assert os.environ["GCS_READ_CACHE_BLOCK_SIZE_MB"] == "64"  # the user's


def test_installed_xla_knows_the_flag():
    name = DETERMINISTIC_FLAG.removeprefix("--").removesuffix("=true")
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile(compiler_options={name: True})
    assert compiled(jnp.ones(2)).sum() == 4


def test_gpu_that_was_started_without_the_flag_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    check_deterministic(False)
    with pytest.raises(UserError, match="already started without it"):
        check_deterministic(True)
    monkeypatch.setenv("XLA_FLAGS", f"--other {DETERMINISTIC_FLAG}")
    check_deterministic(True)
