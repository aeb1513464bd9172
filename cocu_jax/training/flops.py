"""Floating-point operations of a training step, computed from the architecture.

Only matrix products are counted, at two operations per multiply-add, as is usual for model FLOP
utilisation; norms, softmax and the like would add a few percent.
"""

from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig
from cocu_jax.models.text import TextConfig


def step_flops(
    config: GroupViTConfig | CLIPConfig, batch: int, text_lengths: tuple[int, ...]
) -> float:
    """FLOPs of one step; forward and backward pass take three times those of the forward pass.

    Args:
        config: settings of the model.
        batch: images of the global batch.
        text_lengths: token positions of each text of an image (caption, prompts).
    """
    count = _groupvit if isinstance(config, GroupViTConfig) else _clip
    texts = sum(_text(config.text, length) for length in text_lengths)
    logits = 2 * batch * config.projection_dim * len(text_lengths)
    return 3.0 * batch * (count(config, len(text_lengths)) + texts + logits)


def _dense(vectors: float, *widths: int) -> float:
    """Consecutive dense layers of the given widths, applied to so many vectors."""
    return sum(2 * vectors * i * o for i, o in zip(widths, widths[1:], strict=False))


def _block(tokens: int, width: int, ratio: float) -> float:
    products = 4 * _dense(tokens, width, width) + _dense(tokens, width, round(width * ratio), width)
    return products + 4 * tokens * tokens * width


def _last_block(tokens: int, width: int, ratio: float) -> float:
    """A block whose output is computed at one token only: keys and values of all, one query."""
    products = 2 * _dense(tokens, width, width) + 2 * _dense(1, width, width)
    return products + _dense(1, width, round(width * ratio), width) + 4 * tokens * width


def _tower(layers: int, tokens: int, width: int, ratio: float) -> float:
    return (layers - 1) * _block(tokens, width, ratio) + _last_block(tokens, width, ratio)


def _text(config: TextConfig, length: int) -> float:
    return _tower(config.layers, length, config.width, config.mlp_ratio)


def _clip(config: CLIPConfig, texts: int) -> float:
    patches = (config.image_size // config.patch_size) ** 2
    width = config.vision_width
    blocks = _tower(config.vision_layers, 1 + patches, width, config.vision_mlp_ratio)
    project = _dense(1, width, config.projection_dim)
    project += _dense(texts, config.text.width, config.projection_dim)
    return _dense(patches, 3 * config.patch_size**2, width) + blocks + project


def _groupvit(config: GroupViTConfig, texts: int) -> float:
    width, out = config.width, (config.projection_hidden, config.projection_dim)
    tokens = (config.image_size // config.patch_size) ** 2
    total = _dense(tokens, 3 * config.patch_size**2, width)
    for stage, depth in enumerate(config.depths):
        groups = config.groups[stage] if stage < len(config.groups) else 0
        total += depth * _block(tokens + groups, width, config.mlp_ratio)
        if not groups:
            continue
        if stage:
            total += _dense(width, config.groups[stage - 1], width // 2, groups)
        total += _grouping(tokens, groups, width, config.mlp_ratio)
        tokens = groups
    return total + _dense(1, width, *out) + _dense(texts, config.text.width, *out)


def _grouping(tokens: int, segments: int, width: int, ratio: float) -> float:
    """Token mixing, cross-attention, assignment, and the two MLPs over segments."""
    mix = _dense(width, segments, width // 2, segments)
    projections = 2 * (_dense(2 * segments, width, width) + _dense(2 * tokens, width, width))
    products = 2 * 4 * segments * tokens * width
    return mix + projections + products + 2 * _dense(segments, width, round(width * ratio), width)
