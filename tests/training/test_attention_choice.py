"""All processes run the attention that process 0 has chosen, whatever each would find itself."""

import jax
import numpy as np
import pytest

from cocu_jax.models import attention, groupvit, text
from cocu_jax.models.keys import Keys
from cocu_jax.training import attention_choice
from cocu_jax.training.attention_choice import agree_on_attention
from cocu_jax.training.objective import make_objective
from cocu_jax.training.plan import batch_shapes


@pytest.fixture
def small(tiny_config, monkeypatch):
    for tower in (groupvit, text):  # it has a program for CUDA, too
        monkeypatch.setattr(tower, "row_major", lambda x: x)
    config = tiny_config()
    config.model.dtype = "bfloat16"
    config.model.text.layers = 2  # the last one is read at one token only
    return make_objective(config), batch_shapes(config)


def programs_for_cuda(objective, batch) -> list[bool]:
    """Whether each attention of the towers has a program for CUDA alone."""
    jaxpr = str(jax.make_jaxpr(lambda b: objective.features(objective.build(Keys(0)), b))(batch))
    return ["cuda" in line for line in jaxpr.splitlines() if "platform_index[" in line]


@pytest.mark.parametrize("answer", [True, False])
def test_every_attention_follows_process_0(small, monkeypatch, answer):
    objective, batch = small
    asked = []

    def broadcast(found):
        asked.append(found.tolist())
        return np.full_like(found, answer)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(attention_choice.multihost_utils, "broadcast_one_to_all", broadcast)

    def never(*shape):
        raise AssertionError(f"process 1 decides for itself about {shape}")

    monkeypatch.setattr(attention_choice, "cudnn_compiles", never)
    monkeypatch.setattr(attention, "_cudnn_attention", lambda q, k, v, *, causal: q)
    monkeypatch.setattr(attention, "_CHOOSER", attention.contextvars.ContextVar("c", default=never))
    agreed, name = agree_on_attention(objective, batch)
    assert name == ("cuDNN's" if answer else "XLA's")
    assert len(asked) == 1 and not any(asked[0])  # a process that is not the first has no say
    found = programs_for_cuda(agreed, batch)
    # The last block of the text tower is read at one token, which cuDNN's kernel is not for.
    assert len(found) >= 6 and found.count(True) == (len(found) - 1 if answer else 0)


def test_process_0_asks_for_every_shape_and_a_refused_one_is_left_to_xla(small, monkeypatch):
    objective, batch = small
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked = set()
    monkeypatch.setattr(attention_choice, "cudnn_compiles", lambda *shape: not asked.add(shape))
    assert agree_on_attention(objective, batch)[1] == "cuDNN's"
    # 16 patches and 4 group tokens see each other; 4 segments see the patches; and the texts.
    assert (20, 20, 8, "bfloat16", False) in asked and (4, 16, 8, "bfloat16", False) in asked
    assert (24, 24, 4, "bfloat16", True) in asked
    refused = (4, 16, 8, "bfloat16", False)
    monkeypatch.setattr(attention_choice, "cudnn_compiles", lambda *shape: shape != refused)
    monkeypatch.setattr(attention, "_cudnn_attention", lambda q, k, v, *, causal: q)
    agreed, name = agree_on_attention(objective, batch)
    assert name == f"cuDNN's for {len(asked) - 1} of {len(asked)} shapes, XLA's for the others"
    found = programs_for_cuda(agreed, batch)
    assert found.count(False) == 2 and len(found) >= 6  # the refused one, and that at one token
    monkeypatch.setattr(attention_choice, "cudnn_compiles", lambda *shape: False)
    assert agree_on_attention(objective, batch)[1] == "XLA's"


def test_a_refusal_of_cudnn_is_logged_with_its_reason(monkeypatch, caplog):
    def refuse(*arguments, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: no engine\nmore")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "_cudnn_attention", refuse)
    attention.cudnn_compiles.cache_clear()
    with caplog.at_level("WARNING", logger="absl"):
        assert not attention.cudnn_compiles(20, 20, 8, "bfloat16", False)
    attention.cudnn_compiles.cache_clear()
    assert "XLA's; cuDNN's does not compile: INTERNAL: no engine" in caplog.text


def test_other_failures_are_not_taken_for_a_refusal(monkeypatch):
    def broken(*arguments, **options):
        raise TypeError("a bug")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "_cudnn_attention", broken)
    attention.cudnn_compiles.cache_clear()
    with pytest.raises(TypeError, match="a bug"):
        attention.cudnn_compiles(20, 20, 8, "bfloat16", False)
