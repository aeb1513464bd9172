"""Checkpoints of open_clip and of OpenAI, which use the same tensor names.

open_clip describes a model in `open_clip_config.json`. The architecture of OpenAI's archives is
inferred from their tensors' shapes; heads are 64 wide, and the activation is quick_gelu. Only
models of two plain transformers are supported; settings of other architectures are refused by name.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.convert import model_from_tensors
from cocu_jax.models.weights.image_processing import CLIP_MEAN, CLIP_STD, ImageProcessing
from cocu_jax.models.weights.names import OPENCLIP, find
from cocu_jax.models.weights.safetensors_file import StoredTensor
from cocu_jax.models.weights.torch_file import without_wrappers

# Entries of OpenAI's archives besides the weights, by which they are recognised.
_OPENAI = {"input_resolution", "context_length", "vocab_size"}
_OPENAI_HEAD = 64

# Settings of open_clip that may have any value (FREE), or must have this one if set (PLAIN).
_VISION_FREE = {
    "image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout",
    "output_tokens", "act_kwargs", "norm_kwargs", "attn_pooler_queries", "attn_pooler_heads",
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
    "timm_drop_path",
}  # fmt: skip
_TEXT_FREE = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id",
    "output_tokens", "act_kwargs", "norm_kwargs", "hf_model_pretrained", "hf_proj_type",
    "hf_pooler_type", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs",
}  # fmt: skip
_MODEL_FREE = {
    "embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale",
    "init_logit_bias", "cast_dtype", "nonscalar_logit_scale",
}  # fmt: skip
_VISION_PLAIN = {"pool_type": "tok", "pos_embed_type": "learnable", "block_type": "default"}
_TEXT_PLAIN = {"pool_type": "argmax", "proj_type": "linear", "block_type": "default"}
_TOKENIZERS = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")


def load_openclip(
    config: dict, config_source: str, tensors: Mapping[str, StoredTensor], source: str, dtype: str
) -> tuple[CLIP, ImageProcessing]:
    """An open_clip checkpoint as our CLIP, and its image preparation.

    Args:
        config: content of `open_clip_config.json`.
        config_source: name of this file, for messages.
        tensors: the checkpoint, or the `state_dict` of a training checkpoint.
        source: name of the checkpoint, for messages.
        dtype: type of matrix products, "float32" or "bfloat16"; parameters are float32.

    Raises:
        UserError: it is damaged, or the model is of an unsupported kind.
    """
    try:
        settings = read_openclip_config(config, config_source, dtype)
        processing = _processing(config.get("preprocess_cfg") or {}, settings, config_source)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{config_source}: not as open_clip writes it ({reason})") from None
    return _filled(settings, tensors, source), processing


def is_openai(content: Mapping[str, Any]) -> bool:
    """Whether an opened torch file is one of OpenAI's own archives, or its tensors."""
    return bool(_OPENAI & content.keys())


def load_openai(
    tensors: Mapping[str, StoredTensor], source: str, dtype: str
) -> tuple[CLIP, ImageProcessing]:
    """The tensors of one of OpenAI's archives as our CLIP; arguments as `load_openclip`.

    Raises:
        UserError: it is damaged, or its image tower is a ResNet.
    """
    tensors = {name: x for name, x in without_wrappers(tensors).items() if name not in _OPENAI}
    settings = _config_from_shapes(tensors, source, dtype)
    return _filled(settings, tensors, source), ImageProcessing(settings.image_size)


def read_openclip_config(config: dict, source: str, dtype: str) -> CLIPConfig:
    """The config of an open_clip model; arguments and errors as `load_openclip`."""
    model = config.get("model_cfg", config)
    vision, text = model["vision_cfg"], model["text_cfg"]
    if name := vision.get("timm_model_name"):
        raise UserError(f"{source}: its image tower is timm's {name}, which is not supported")
    if name := text.get("hf_model_name"):
        raise UserError(f"{source}: its text tower is {name}, which is not supported")
    if "multimodal_cfg" in model:
        raise UserError(f"{source}: describes a CoCa model, which is not supported")
    if not isinstance(vision.get("layers", 12), int):
        raise UserError(f"{source}: its image tower is a ResNet, which is not supported")
    for name in _TOKENIZERS:
        if text.get(name):
            raise UserError(
                f"{source}: {name} is {text[name]}; a tokenizer other than CLIP's is not supported"
            )
    _require_plain(model, _MODEL_FREE, {}, source, "")
    _require_plain(vision, _VISION_FREE, _VISION_PLAIN, source, "vision_cfg.")
    _require_plain(text, _TEXT_FREE, _TEXT_PLAIN, source, "text_cfg.")
    quick = bool(model.get("quick_gelu"))
    width = vision.get("width", 768)
    return CLIPConfig(
        image_size=_square(vision.get("image_size", 224), source, "image_size"),
        patch_size=_square(vision.get("patch_size", 16), source, "patch_size"),
        vision_width=width,
        vision_layers=vision.get("layers", 12),
        vision_heads=width // vision.get("head_width", 64),
        vision_mlp_ratio=vision.get("mlp_ratio", 4.0),
        text=TextConfig(
            vocab_size=text.get("vocab_size", 49408),
            context_length=text.get("context_length", 77),
            width=text.get("width", 512),
            heads=text.get("heads", 8),
            layers=text.get("layers", 12),
            mlp_ratio=text.get("mlp_ratio", 4.0),
            activation=_activation(quick, text.get("act_kwargs"), source),
            layer_norm_eps=_eps(text.get("norm_kwargs"), source),
        ),
        projection_dim=model["embed_dim"],
        activation=_activation(quick, vision.get("act_kwargs"), source),
        layer_norm_eps=_eps(vision.get("norm_kwargs"), source),
        dtype=dtype,
    )


def _require_plain(settings: dict, free: set, plain: dict, source: str, prefix: str) -> None:
    """Raises a UserError for any setting that may describe another architecture."""
    for name, value in settings.items():
        if name not in free and value and value != plain.get(name):
            raise UserError(f"{source}: {prefix}{name} is {value}; such a model is not supported")


def _activation(quick: bool, arguments: dict | None, source: str) -> str:
    known = {None: "gelu", "none": "gelu", "tanh": "gelu_tanh"}
    approximate = (arguments or {}).get("approximate")
    if quick and not arguments:
        return "quick_gelu"
    if quick or approximate not in known or set(arguments or ()) - {"approximate"}:
        raise UserError(f"{source}: act_kwargs is {arguments}; such a model is not supported")
    return known[approximate]


def _eps(arguments: dict | None, source: str) -> float:
    if set(arguments or ()) - {"eps"}:
        raise UserError(f"{source}: norm_kwargs is {arguments}; such a model is not supported")
    return (arguments or {}).get("eps", 1e-5)


def _square(size: Any, source: str, name: str) -> int:
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise UserError(f"{source}: {name} {size} is not square; not supported")
    return sides.pop()


def _processing(settings: dict, config: CLIPConfig, source: str) -> ImageProcessing:
    mode, resample = settings.get("resize_mode", "shortest"), settings.get("interpolation")
    size = _square(settings.get("size") or config.image_size, source, "preprocess_cfg.size")
    if mode not in ("shortest", "squash"):
        raise UserError(f"{source}: resize_mode is {mode}; only shortest and squash are supported")
    if size != config.image_size:
        raise UserError(f"{source}: resizes to {size} for a model of {config.image_size}")
    if settings.get("mode", "RGB") != "RGB":
        raise UserError(f"{source}: images are {settings['mode']}; only RGB is supported")
    return ImageProcessing(
        size,
        tuple(settings.get("mean") or CLIP_MEAN),
        tuple(settings.get("std") or CLIP_STD),
        keep_aspect=mode == "shortest",
        resample=resample or "bicubic",
    )


def _filled(settings: CLIPConfig, tensors: Mapping[str, StoredTensor], source: str) -> CLIP:
    tensors = {
        re.sub(r"^text\.", "", name): tensor  # open_clip's custom text towers
        for name, tensor in without_wrappers(tensors).items()
        if name.split(".")[-1] != "logit_bias"  # part of a sigmoid loss, not of the features
    }
    scale = tensors.get("logit_scale")
    given = {}
    if scale is not None and scale.shape == (1,):
        given = {"log_scale": np.reshape(scale.read(), ())}
        del tensors["logit_scale"]
    return model_from_tensors(
        lambda rngs: CLIP(settings, rngs=rngs),
        functools.partial(find, OPENCLIP),
        tensors,
        given,
        source,
    )


def _config_from_shapes(tensors: Mapping[str, StoredTensor], source: str, dtype: str) -> CLIPConfig:
    if "visual.layer1.0.conv1.weight" in tensors:
        raise UserError(f"{source}: its image tower is a ResNet, which is not supported")

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != rank:
            raise UserError(
                f"{source}: tensor {name} is missing or has another shape; is it a CLIP?"
            )
        return tensors[name].shape

    def blocks(prefix: str) -> int:
        pattern = re.compile(rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
        return 1 + max((int(m[1]) for name in tensors if (m := pattern.match(name))), default=-1)

    width, _, patch, _ = shape("visual.conv1.weight", 4)
    positions, _ = shape("visual.positional_embedding", 2)
    vocabulary, text_width = shape("token_embedding.weight", 2)
    return CLIPConfig(
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        vision_width=width,
        vision_layers=blocks("visual."),
        vision_heads=width // _OPENAI_HEAD,
        vision_mlp_ratio=shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0] / width,
        text=TextConfig(
            vocab_size=vocabulary,
            context_length=shape("positional_embedding", 2)[0],
            width=text_width,
            heads=text_width // _OPENAI_HEAD,
            layers=blocks(""),
            mlp_ratio=shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0] / text_width,
        ),
        projection_dim=shape("text_projection", 2)[1],
        dtype=dtype,
    )
