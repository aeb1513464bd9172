"""Float32 means float32 on every platform: no product of a float32 model is left to its default."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from cocu_jax.curation.embed import Encoder
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.image_processing import ImageProcessing
from eval.class_embeddings import ClassEmbeddings
from eval.groups import GroupMethod
from eval.programs import encode_program
from eval.protocol import Protocol

TEXT = TextConfig(vocab_size=100, context_length=8, width=16, heads=2, layers=2)
FULL = (jax.lax.Precision.HIGHEST,) * 2


def dots(jaxpr: Jaxpr) -> list:
    """Every matrix product of a program, those of its inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation)
        for value in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(value):
                found += dots(getattr(value, "jaxpr", value))
    return found


def _is_program(value) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))


def precisions(function, *arguments) -> set:
    """(type of the operands, precision) of the products of a function."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return {(dot.invars[0].aval.dtype.name, dot.params["precision"]) for dot in dots(jaxpr)}


def evaluation_program(dtype: str) -> tuple:
    """The program that evaluation runs over windows, and its arguments."""
    config = GroupViTConfig(
        image_size=32, patch_size=8, width=32, heads=2, depths=(1, 1, 1), groups=(4, 2),
        projection_hidden=16, projection_dim=8, text=TEXT, dtype=dtype,
    )  # fmt: skip
    graphdef, state = nnx.split(nnx.eval_shape(lambda: GroupViT(config, rngs=Keys(0))))
    protocol = Protocol(crop=32, stride=16, has_background=True, bg_thresh=0.9)
    mesh = Mesh(jax.devices()[:1], "data")

    def program(state, embeddings, windows):
        return encode_program(
            state, embeddings, windows,
            graphdef=graphdef, method=GroupMethod(protocol, with_first=True), mesh=mesh,
        )  # fmt: skip

    embeddings = ClassEmbeddings(
        jax.ShapeDtypeStruct((3, 8), jnp.float32),
        jax.ShapeDtypeStruct((3,), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    return program, state, embeddings, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)


def small_clip(dtype: str) -> CLIP:
    config = CLIPConfig(
        image_size=16, patch_size=8, vision_width=16, vision_layers=2, vision_heads=2,
        projection_dim=8, text=TEXT, dtype=dtype,
    )  # fmt: skip
    return CLIP(config, rngs=Keys(0))


def test_every_product_of_the_evaluation_program_is_full_float32():
    found = precisions(*evaluation_program("float32"))
    assert found == {("float32", FULL)}


@pytest.mark.parametrize(
    ("program", "row", "dtype"), [("images", (16, 16, 3), jnp.uint8), ("texts", (8,), jnp.int32)]
)
def test_every_product_of_curations_encoder_is_full_float32(monkeypatch, program, row, dtype):
    mapped, pmap = {}, jax.pmap

    def record(function, **options):
        mapped[function.__name__] = function
        return pmap(function, **options)

    monkeypatch.setattr(jax, "pmap", record)
    clip = small_clip("float32")
    Encoder(clip, ImageProcessing(16), rows=1)
    rows = jax.ShapeDtypeStruct((1, *row), dtype)
    assert precisions(mapped[program], nnx.state(clip), rows) == {("float32", FULL)}


def test_products_of_bfloat16_keep_the_platforms_precision():
    graph, state = nnx.split(nnx.eval_shape(lambda: small_clip("bfloat16")))
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    found = precisions(lambda s, x: nnx.merge(graph, s).encode_image(x), state, images)
    assert ("bfloat16", None) in found
    assert not [precision for _, precision in found if precision == FULL]


def test_gradients_of_float32_are_full_float32_too():
    graph, state = nnx.split(nnx.eval_shape(lambda: small_clip("float32")))
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def total(state, images):
        return nnx.merge(graph, state).encode_image(images).sum()

    assert precisions(jax.grad(total), state, images) == {("float32", FULL)}
