"""Hugging Face's `config.json` of CLIP, SigLIP and GroupViT, to and from our configs.

`config.json` may omit values that equal transformers' defaults. Old files keep the settings of the
towers in `text_config_dict` and `vision_config_dict`, which then take precedence. Settings without
a field in their GroupViT are stored under `cocu_jax`, which transformers keeps but ignores.
"""

from typing import Any

import numpy as np

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig
from cocu_jax.models.siglip import SiglipConfig
from cocu_jax.models.text import TextConfig

OURS = "cocu_jax"
MULTI_LABEL = "multi_label_logit_scale"
# Fields of GroupViTConfig without a field in transformers' config or an effect on tensor shapes.
_TRAINING_FIELDS = (
    "drop_path",
    "dense_init_std",
    "assign_init_std",
    "assign_logit_scale",
    "group_token_init_std",
)

_ARCHITECTURES = {"clip": "CLIPModel", "groupvit": "GroupViTModel", "siglip": "SiglipModel"}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}

# transformers' defaults, for configs that leave them out.
_TEXT = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_CLIP_TEXT = _TEXT | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_SIGLIP_TEXT = _SIGLIP | {"vocab_size": 32000, "max_position_embeddings": 64}
_SIGLIP_VISION = _SIGLIP | {
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "vision_use_head": True,
}
_GROUPVIT_TEXT = _TEXT | {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
_GROUPVIT_VISION = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "depths": [6, 3, 3],
    "num_group_tokens": [64, 8, 0],
    "num_output_groups": [64, 8, 8],
    "num_attention_heads": 6,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "assign_eps": 1.0,
    "assign_mlp_ratio": [0.5, 4],
}


def architecture(config: dict, source: str) -> str:
    """Transformers' name of the model class that a `config.json` describes.

    Raises:
        UserError: it is not a supported class.
    """
    found = config.get("model_type") or " ".join(config.get("architectures") or ["nothing named"])
    for model_type, name in _ARCHITECTURES.items():
        if found in (model_type, name):
            return name
    if found == "siglip2":
        raise UserError(
            f"{source}: describes a SigLIP 2 for variable resolution (NaFlex); only models for a "
            "fixed resolution are supported, whose model_type is siglip"
        )
    known = ", ".join(_ARCHITECTURES.values())
    raise UserError(f"{source}: describes {found}; supported are {known}")


def read_clip_config(config: dict, source: str, dtype: str) -> CLIPConfig:
    """The config of a `CLIPModel`.

    Args:
        config: content of `config.json`.
        source: its name, for messages.
        dtype: type of matrix products.

    Raises:
        UserError: it is not CLIP's, or describes an unsupported variant.
    """
    _require_architecture(config, "CLIPModel", source)
    text = _tower(config, "text", _CLIP_TEXT)
    vision = _tower(config, "vision", _CLIP_VISION)
    _require(vision, {"num_channels": 3}, source)
    eps = vision["layer_norm_eps"]
    return CLIPConfig(
        image_size=_side(vision, "image_size", source),
        patch_size=_side(vision, "patch_size", source),
        vision_width=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        vision_mlp_ratio=_ratio(vision),
        text=_text_config(text, source),
        projection_dim=config.get("projection_dim", 512),
        activation=_activation(vision, source),
        layer_norm_eps=eps,
        dtype=dtype,
    )


def read_siglip_config(config: dict, source: str, dtype: str) -> SiglipConfig:
    """The config of a `SiglipModel`; arguments and errors as `read_clip_config`."""
    _require_architecture(config, "SiglipModel", source)
    text = _tower(config, "text", _SIGLIP_TEXT)
    vision = _tower(config, "vision", _SIGLIP_VISION)
    _require(vision, {"num_channels": 3, "vision_use_head": True}, source)
    width = vision["hidden_size"]
    projection = text.get("projection_size") or text["hidden_size"]
    if projection != width:
        raise UserError(
            f"{source}: texts have {projection} features, images {width}; not supported"
        )
    return SiglipConfig(
        image_size=_side(vision, "image_size", source),
        patch_size=_side(vision, "patch_size", source),
        vision_width=width,
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        vision_mlp_ratio=_ratio(vision),
        text=_tower_of_text(text, source),
        projection_dim=projection,
        activation=_activation(vision, source),
        layer_norm_eps=vision["layer_norm_eps"],
        dtype=dtype,
    )


def write_siglip_config(config: SiglipConfig) -> dict[str, Any]:
    """`config.json` for transformers' `SiglipModel`."""
    text = config.text
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.width,
            "intermediate_size": round(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "hidden_act": _activation_json(text.activation),
            "layer_norm_eps": text.layer_norm_eps,
            "projection_size": config.projection_dim,
        },
        "vision_config": _vision_json(config, "siglip_vision_model"),
    }


def read_groupvit_config(config: dict, source: str, dtype: str) -> GroupViTConfig:
    """The config of a `GroupViTModel`; arguments and errors as `read_clip_config`."""
    _require_architecture(config, "GroupViTModel", source)
    vision = _tower(config, "vision", _GROUPVIT_VISION)
    groups = tuple(vision["num_group_tokens"])
    _require(
        vision | {"stages": len(vision["depths"]), "last stage's group tokens": groups[-1]},
        {
            "num_channels": 3,
            "hidden_act": "gelu",
            "assign_eps": 1.0,
            "assign_mlp_ratio": [0.5, 4],
            "stages": 3,
            "last stage's group tokens": 0,
        },
        source,
    )
    if groups[:2] != tuple(vision["num_output_groups"][:2]) or len(groups) != 3:
        raise UserError(f"{source}: num_output_groups differ from num_group_tokens; not supported")
    ours = config.get(OURS, {})
    return GroupViTConfig(
        image_size=_side(vision, "image_size", source),
        patch_size=_side(vision, "patch_size", source),
        width=vision["hidden_size"],
        heads=vision["num_attention_heads"],
        mlp_ratio=_ratio(vision),
        depths=tuple(vision["depths"]),
        groups=groups[:2],
        projection_hidden=config.get("projection_intermediate_dim", 4096),
        projection_dim=config.get("projection_dim", 256),
        text=_text_config(_tower(config, "text", _GROUPVIT_TEXT), source),
        layer_norm_eps=vision["layer_norm_eps"],
        dtype=dtype,
        **{name: ours[name] for name in _TRAINING_FIELDS if name in ours},
    )


def read_multi_label_scale(config: dict, source: str, initial: float) -> np.float32:
    """The multi-label loss's log temperature; `initial` if the config was not written by us."""
    return np.float32(config.get(OURS, {}).get(MULTI_LABEL, initial))


def write_clip_config(config: CLIPConfig) -> dict[str, Any]:
    """`config.json` for transformers' `CLIPModel`."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": config.projection_dim,
        "text_config": _text_json(config.text, "clip_text_model")
        | {"projection_dim": config.projection_dim},
        "vision_config": _vision_json(config, "clip_vision_model")
        | {"projection_dim": config.projection_dim},
    }


def write_groupvit_config(config: GroupViTConfig, multi_label_scale: np.float32) -> dict[str, Any]:
    """`config.json` for transformers' `GroupViTModel`; our own settings are under `cocu_jax`."""
    return {
        "architectures": ["GroupViTModel"],
        "model_type": "groupvit",
        "dtype": "float32",
        "projection_dim": config.projection_dim,
        "projection_intermediate_dim": config.projection_hidden,
        "text_config": _text_json(config.text, "groupvit_text_model"),
        "vision_config": {
            "model_type": "groupvit_vision_model",
            "hidden_size": config.width,
            "intermediate_size": round(config.width * config.mlp_ratio),
            "num_hidden_layers": sum(config.depths),
            "depths": list(config.depths),
            "num_group_tokens": [*config.groups, 0],
            "num_output_groups": [*config.groups, config.groups[-1]],
            "num_attention_heads": config.heads,
            "num_channels": 3,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "hidden_act": "gelu",
            "layer_norm_eps": config.layer_norm_eps,
            "assign_eps": 1.0,
            "assign_mlp_ratio": [0.5, 4],
        },
        OURS: {
            MULTI_LABEL: float(multi_label_scale),
            **{name: getattr(config, name) for name in _TRAINING_FIELDS},
        },
    }


def _require_architecture(config: dict, wanted: str, source: str) -> None:
    if (found := architecture(config, source)) != wanted:
        raise UserError(f"{source}: describes {found}, not {wanted}; give the other kind of model")


def _require(settings: dict, wanted: dict, source: str) -> None:
    for name, value in wanted.items():
        if settings[name] != value:
            raise UserError(f"{source}: {name} is {settings[name]}; only {value} is supported")


def _tower(config: dict, tower: str, defaults: dict) -> dict:
    return defaults | (config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {})


def _text_config(text: dict, source: str) -> TextConfig:
    # In old configs 2 means the token with the largest id, which our towers always use.
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        raise UserError(f"{source}: end token {text['eos_token_id']} is not the vocabulary's last")
    return _tower_of_text(text, source)


def _tower_of_text(text: dict, source: str) -> TextConfig:
    return TextConfig(
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        width=text["hidden_size"],
        heads=text["num_attention_heads"],
        layers=text["num_hidden_layers"],
        mlp_ratio=_ratio(text),
        activation=_activation(text, source),
        layer_norm_eps=text["layer_norm_eps"],
    )


def _vision_json(config: CLIPConfig | SiglipConfig, model_type: str) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": config.vision_width,
        "intermediate_size": round(config.vision_width * config.vision_mlp_ratio),
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": _activation_json(config.activation),
        "layer_norm_eps": config.layer_norm_eps,
    }


def _text_json(text: TextConfig, model_type: str) -> dict[str, Any]:
    end = text.vocab_size - 1
    return {
        "model_type": model_type,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "hidden_size": text.width,
        "intermediate_size": round(text.width * text.mlp_ratio),
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "hidden_act": _activation_json(text.activation),
        "layer_norm_eps": text.layer_norm_eps,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _ratio(tower: dict) -> float:
    """MLP ratio whose product with the width rounds to the hidden size; an int if possible."""
    ratio = tower["intermediate_size"] / tower["hidden_size"]
    return int(ratio) if ratio.is_integer() else ratio


def _activation(tower: dict, source: str) -> str:
    if tower["hidden_act"] not in _ACTIVATIONS:
        raise UserError(f"{source}: activation {tower['hidden_act']!r} is not supported")
    return _ACTIVATIONS[tower["hidden_act"]]


def _activation_json(activation: str) -> str:
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


def _side(vision: dict, name: str, source: str) -> int:
    sides = vision[name] if isinstance(vision[name], (list, tuple)) else [vision[name]]
    if len(set(sides)) != 1:
        raise UserError(f"{source}: {name} {vision[name]} is not square; not supported")
    return sides[0]
