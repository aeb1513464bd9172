"""Small transformers models with random weights, and how to compare ours with them."""

import functools

import jax
import numpy as np
import torch
import transformers
from flax import nnx

SIZE, PATCH, VOCABULARY = 64, 16, 100
_TEXT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=VOCABULARY,
    max_position_embeddings=12,
    bos_token_id=VOCABULARY - 2,
    eos_token_id=VOCABULARY - 1,
)


def clip_oracle(text: dict | None = None, **vision) -> transformers.CLIPModel:
    """A CLIP whose hidden size is no whole multiple of its width, as ViT-bigG's."""
    settings = dict(
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
    )
    config = transformers.CLIPConfig(
        text_config=_TEXT | (text or {}), vision_config=settings | vision, projection_dim=20
    )
    return randomised(transformers.CLIPModel(config))


def groupvit_oracle(heads: int = 4, width: int = 48, text_width: int = 32, text_heads: int = 4):
    """A GroupViT with stages of different depths."""
    vision = dict(
        hidden_size=width,
        intermediate_size=2 * width,
        depths=[2, 0, 1],
        num_hidden_layers=3,
        num_group_tokens=[6, 3, 0],
        num_output_groups=[6, 3, 3],
        num_attention_heads=heads,
        image_size=SIZE,
        patch_size=PATCH,
    )
    text = _TEXT | dict(hidden_size=text_width, num_attention_heads=text_heads)
    config = transformers.GroupViTConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=20,
        projection_intermediate_dim=40,
    )
    return randomised(transformers.GroupViTModel(config))


def randomised(model):
    """Every parameter and statistic random: no two tensors alike, none at its initial value."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.2 * noise)
    return model.eval()


def pixels() -> np.ndarray:
    """Two normalised images."""
    return np.random.default_rng(2).standard_normal((2, SIZE, SIZE, 3), np.float32)


def tokens() -> np.ndarray:
    """Three texts with their end tokens, zero padded."""
    rows = np.zeros((3, 12), np.int32)
    for row, length in zip(rows, (3, 7, 12), strict=True):
        row[:length] = np.random.default_rng(length).integers(1, VOCABULARY - 2, length)
        row[0], row[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return rows


def oracle_features(model) -> list[np.ndarray]:
    """Image and text features of a transformers model, not normalised."""
    with torch.no_grad():
        image = model.get_image_features(torch.tensor(pixels()).permute(0, 3, 1, 2))
        text = model.get_text_features(torch.tensor(tokens()).long())
    return [getattr(x, "pooler_output", x).numpy() for x in (image, text)]


def our_features(model) -> list[np.ndarray]:
    """Image and text features of a model of ours."""
    features = encode(*nnx.split(model), pixels(), tokens())
    return [np.asarray(feature) for feature in features]


# Each program runs once: compiling it fast matters, not running it fast.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def encode(graph, state, images, texts):
    """Image and text features of a split model."""
    model = nnx.merge(graph, state)
    image = model.encode_image(images)
    return getattr(image, "feature", image), model.encode_text(texts)


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    """Float32: relative in norm, 1e-5."""
    for a, b in zip(ours, theirs, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def assert_identical(a: nnx.Module, b: nnx.Module) -> None:
    """Equal configs, and every bit of every array equal."""
    assert a.config == b.config
    ours, theirs = (dict(nnx.to_flat_state(nnx.state(model))) for model in (a, b))
    assert ours.keys() == theirs.keys()
    for path in ours:
        left, right = (np.asarray(x[path].get_value()) for x in (ours, theirs))
        np.testing.assert_array_equal(left.view(np.int32), right.view(np.int32), str(path))


def assert_same_tensors(a: dict, b: dict) -> None:
    """Equal names and equal bits of two torch state dicts."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
