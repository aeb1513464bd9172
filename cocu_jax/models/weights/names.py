"""Names and axis orders of our arrays and of the same tensors in other checkpoint formats.

A table has entries of (our path, their name, parts). A `*` stands for a number; numbers are the
same on both sides, in order. `parts` lists the arrays of an entry: the suffixes of both names, and
the layout of the tensor. Each of our paths matches exactly one entry of a table.

Our matrices are [in, out] and have no axes of length one; theirs are [out, in], as in torch.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A reordering of axes: ours = theirs.transpose(axes), reshaped.

    Attributes:
        their_shape: computes their shape from ours.
        axes: order of their axes in ours; empty: the same order.
    """

    their_shape: Callable[[Shape], Shape]
    axes: Shape = ()

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        """Their array as one of ours, of the given shape."""
        return theirs.transpose(self.axes or range(theirs.ndim)).reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Our array as one of theirs."""
        shape = self.their_shape(ours.shape)
        axes = self.axes or range(len(shape))
        transposed = ours.reshape([shape[axis] for axis in axes])
        return transposed.transpose(np.argsort(axes))


def _convolution(shape: Shape) -> Shape:
    side = round((shape[0] / 3) ** 0.5)
    return (shape[1], 3, side, side)


SAME = Layout(lambda shape: shape)
BATCHED = Layout(lambda shape: (1, *shape))  # a leading axis of length one
LINEAR = Layout(lambda shape: shape[::-1], (1, 0))
CONV1D = Layout(lambda shape: (*shape[::-1], 1), (1, 0, 2))  # width one: a linear layer
PATCHES = Layout(_convolution, (2, 3, 1, 0))  # [out, 3, rows, columns]: a linear layer per patch


@dataclass(frozen=True)
class Part:
    """One array of an entry.

    Attributes:
        ours: suffix of our path.
        theirs: suffix of their name.
        layout: layout of their tensor.
        third: index of this array if their tensor is a concatenation of three (query, key, value);
            None if it is not.
    """

    ours: str
    theirs: str
    layout: Layout
    third: int | None = None


Entry = tuple[str, str, tuple[Part, ...]]
Table = tuple[Entry, ...]


@dataclass(frozen=True)
class Place:
    """The place of one of our arrays in their checkpoint; attributes as those of `Part`."""

    name: str
    layout: Layout
    third: int | None


def find(table: Table, path: str) -> Place | None:
    """The place of our `path`, e.g. `"text.blocks.3.norm1.scale"`; None if there is none."""
    for ours, theirs, parts in table:
        for part in parts:
            pattern = re.escape(ours + part.ours).replace(r"\*", r"(\d+)")
            if match := re.fullmatch(pattern, path):
                numbers = iter(match.groups())
                name = re.sub(r"\*", lambda _: next(numbers), theirs + part.theirs)  # noqa: B023
                return Place(name, part.layout, part.third)
    return None


def _under(ours: str, theirs: str, table: Table) -> Table:
    return tuple((f"{ours}.{a}", f"{theirs}.{b}", parts) for a, b, parts in table)


def _dense(layout: Layout, joint: str = ".", third: int | None = None) -> tuple[Part, ...]:
    return (
        Part(".kernel", f"{joint}weight", layout, third),
        Part(".bias", f"{joint}bias", SAME, third),
    )


def _array(layout: Layout = SAME) -> tuple[Part, ...]:
    return (Part("", "", layout),)


_DENSE = _dense(LINEAR)
_CONVOLUTION = _dense(PATCHES)
_NORM = (Part(".scale", ".weight", SAME), Part(".bias", ".bias", SAME))
_BATCH_NORM = (
    *_NORM,
    Part(".mean", ".running_mean", SAME),
    Part(".var", ".running_var", SAME),
)
_MLP = (("fc1", "fc1", _DENSE), ("fc2", "fc2", _DENSE))

# ---- Hugging Face -------------------------------------------------------------------------------

_HF_ATTENTION = (
    ("query", "q_proj", _DENSE),
    ("key", "k_proj", _DENSE),
    ("value", "v_proj", _DENSE),
    ("out", "out_proj", _DENSE),
)
_HF_BLOCK = (
    ("norm1", "layer_norm1", _NORM),
    *_under("attention", "self_attn", _HF_ATTENTION),
    ("norm2", "layer_norm2", _NORM),
    *_under("mlp", "mlp", _MLP),
)
_HF_TEXT = (
    ("log_scale", "logit_scale", _array()),
    ("text.token_embedding", "text_model.embeddings.token_embedding.weight", _array()),
    ("text.position_embedding", "text_model.embeddings.position_embedding.weight", _array()),
    *_under("text.blocks.*", "text_model.encoder.layers.*", _HF_BLOCK),
    ("text.final_norm", "text_model.final_layer_norm", _NORM),
)

HUGGINGFACE_CLIP: Table = (
    *_HF_TEXT,
    ("image.class_embedding", "vision_model.embeddings.class_embedding", _array()),
    ("image.patch_embed", "vision_model.embeddings.patch_embedding", _CONVOLUTION),
    ("image.position_embedding", "vision_model.embeddings.position_embedding.weight", _array()),
    ("image.pre_norm", "vision_model.pre_layrnorm", _NORM),  # their spelling
    *_under("image.blocks.*", "vision_model.encoder.layers.*", _HF_BLOCK),
    ("image.post_norm", "vision_model.post_layernorm", _NORM),
    ("image_projection", "visual_projection", _DENSE),
    ("text_projection", "text_projection", _DENSE),
)

_HF_POOLING = (
    ("probe", "probe", _array(Layout(lambda shape: (1, 1, *shape)))),
    ("attention.query", "attention", _dense(LINEAR, ".in_proj_", third=0)),
    ("attention.key", "attention", _dense(LINEAR, ".in_proj_", third=1)),
    ("attention.value", "attention", _dense(LINEAR, ".in_proj_", third=2)),
    ("attention.out", "attention.out_proj", _DENSE),
    ("norm", "layernorm", _NORM),
    *_under("mlp", "mlp", _MLP),
)
HUGGINGFACE_SIGLIP: Table = (
    ("log_scale", "logit_scale", _array(BATCHED)),
    ("bias", "logit_bias", _array(BATCHED)),
    *_HF_TEXT[1:],
    ("text.head", "text_model.head", _DENSE),
    ("image.patch_embed", "vision_model.embeddings.patch_embedding", _CONVOLUTION),
    ("image.position_embedding", "vision_model.embeddings.position_embedding.weight", _array()),
    *_under("image.blocks.*", "vision_model.encoder.layers.*", _HF_BLOCK),
    ("image.post_norm", "vision_model.post_layernorm", _NORM),
    *_under("image.pooling", "vision_model.head", _HF_POOLING),
)

# ---- Grouping: Hugging Face and the authors agree on most names ---------------------------------

_GROUPING = (
    ("norm_tokens", "norm_tokens", _NORM),
    ("norm_x", "norm_x", _NORM),
    *_under("mlp_tokens", "mlp_inter", _MLP),
    ("norm_post_tokens", "norm_post_tokens", _NORM),
    ("cross_attention.norm2", "pre_assign_attn.norm2", _NORM),
    *_under("cross_attention.mlp", "pre_assign_attn.mlp", _MLP),
    ("cross_attention.norm_post", "pre_assign_attn.norm_post", _NORM),
    ("assign.query", "assign.q_proj", _DENSE),
    ("assign.key", "assign.k_proj", _DENSE),
    ("assign.value", "assign.v_proj", _DENSE),
    ("assign.out", "assign.proj", _DENSE),
    ("norm_out", "norm_new_x", _NORM),
    *_under("mlp_out", "mlp_channels", _MLP),
)
_STAGE = (
    ("group_tokens", "group_token", _array(BATCHED)),
    ("projector_norm", "group_projector.0", _NORM),
    *_under("projector_mlp", "group_projector.1", _MLP),
    *_under("grouping", "downsample", _GROUPING),
)

_HF_STAGE = (
    *_STAGE,
    *_under("blocks.*", "layers.*", _HF_BLOCK),
    *_under("grouping.cross_attention.attention", "downsample.pre_assign_attn.attn", _HF_ATTENTION),
)
HUGGINGFACE_GROUPVIT: Table = (
    *_HF_TEXT,
    ("image.patch_embed", "vision_model.embeddings.patch_embeddings.projection", _CONVOLUTION),
    ("image.patch_norm", "vision_model.embeddings.layernorm", _NORM),
    (
        "image.position_embedding",
        "vision_model.embeddings.position_embeddings",
        _array(BATCHED),
    ),
    *_under("image.stages.*", "vision_model.encoder.stages.*", _HF_STAGE),
    ("image.final_norm", "vision_model.layernorm", _NORM),
    ("image_projector.dense1", "visual_projection.0", _DENSE),
    ("image_projector.norm", "visual_projection.1", _BATCH_NORM),
    ("image_projector.dense2", "visual_projection.3", _DENSE),
    ("text_projector.dense1", "text_projection.0", _DENSE),
    ("text_projector.norm", "text_projection.1", _BATCH_NORM),
    ("text_projector.dense2", "text_projection.3", _DENSE),
)

# ---- The authors' files -------------------------------------------------------------------------

_OFFICIAL_CROSS_ATTENTION = (
    ("query", "q_proj", _DENSE),
    ("key", "k_proj", _DENSE),
    ("value", "v_proj", _DENSE),
    ("out", "proj", _DENSE),
)
_OFFICIAL_BLOCK = (
    ("norm1", "norm1", _NORM),
    ("attention.query", "attn.qkv", _dense(LINEAR, third=0)),
    ("attention.key", "attn.qkv", _dense(LINEAR, third=1)),
    ("attention.value", "attn.qkv", _dense(LINEAR, third=2)),
    ("attention.out", "attn.proj", _DENSE),
    ("norm2", "norm2", _NORM),
    *_under("mlp", "mlp", _MLP),
)
_OFFICIAL_STAGE = (
    *_STAGE,
    *_under("blocks.*", "blocks.*", _OFFICIAL_BLOCK),
    *_under(
        "grouping.cross_attention.attention",
        "downsample.pre_assign_attn.attn",
        _OFFICIAL_CROSS_ATTENTION,
    ),
)
_OPENAI_BLOCK = (
    ("norm1", "ln_1", _NORM),
    ("attention.query", "attn", _dense(LINEAR, ".in_proj_", third=0)),
    ("attention.key", "attn", _dense(LINEAR, ".in_proj_", third=1)),
    ("attention.value", "attn", _dense(LINEAR, ".in_proj_", third=2)),
    ("attention.out", "attn.out_proj", _DENSE),
    ("norm2", "ln_2", _NORM),
    ("mlp.fc1", "mlp.c_fc", _DENSE),
    ("mlp.fc2", "mlp.c_proj", _DENSE),
)
_OFFICIAL_PROJECTOR = (
    ("dense1", "linear_hidden.0", _dense(CONV1D)),
    ("norm", "linear_hidden.1", _BATCH_NORM),
    ("dense2", "linear_out", _dense(CONV1D)),
)
OFFICIAL_GROUPVIT: Table = (
    ("log_scale", "logit_scale", _array()),
    ("multi_label_log_scale", "multi_label_logit_scale", _array()),
    ("image.patch_embed", "img_encoder.patch_embed.proj", _CONVOLUTION),
    ("image.patch_norm", "img_encoder.patch_embed.norm", _NORM),
    ("image.position_embedding", "img_encoder.pos_embed", _array(BATCHED)),
    *_under("image.stages.*", "img_encoder.layers.*", _OFFICIAL_STAGE),
    ("image.final_norm", "img_encoder.norm", _NORM),
    ("text.token_embedding", "text_encoder.token_embedding.weight", _array()),
    ("text.position_embedding", "text_encoder.positional_embedding", _array()),
    *_under("text.blocks.*", "text_encoder.transformer.resblocks.*", _OPENAI_BLOCK),
    ("text.final_norm", "text_encoder.ln_final", _NORM),
    *_under("image_projector", "img_projector", _OFFICIAL_PROJECTOR),
    *_under("text_projector", "text_projector", _OFFICIAL_PROJECTOR),
)

# ---- OpenAI's CLIP, and open_clip, which keeps its names ----------------------------------------

_PRODUCT = (Part(".kernel", "", SAME),)  # a matrix [in, out], as ours
OPENCLIP: Table = (
    ("log_scale", "logit_scale", _array()),
    ("image.class_embedding", "visual.class_embedding", _array()),
    ("image.patch_embed", "visual.conv1", _CONVOLUTION),
    ("image.position_embedding", "visual.positional_embedding", _array()),
    ("image.pre_norm", "visual.ln_pre", _NORM),
    *_under("image.blocks.*", "visual.transformer.resblocks.*", _OPENAI_BLOCK),
    ("image.post_norm", "visual.ln_post", _NORM),
    ("image_projection", "visual.proj", _PRODUCT),
    ("text.token_embedding", "token_embedding.weight", _array()),
    ("text.position_embedding", "positional_embedding", _array()),
    *_under("text.blocks.*", "transformer.resblocks.*", _OPENAI_BLOCK),
    ("text.final_norm", "ln_final", _NORM),
    ("text_projection", "text_projection", _PRODUCT),
)

# Buffers without learned values: position ids, the counter of torch's BatchNorm, the causal mask.
BUFFERS = re.compile(r"(.*\.)?(position_ids|num_batches_tracked|attn_mask)")
