"""Reads `config.model` of a train config, whose fields depend on the objective."""

import ml_collections

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig
from cocu_jax.models.tokenizer import EOT
from cocu_jax.settings import read_settings

MODELS = {"groupvit": GroupViTConfig, "clip": CLIPConfig}


def model_settings(config: ml_collections.ConfigDict) -> GroupViTConfig | CLIPConfig:
    """The settings of the model that a config trains.

    Raises:
        UserError: a field is unknown or has a value that is not allowed.
    """
    if config.objective not in MODELS:
        raise UserError(f"config.objective={config.objective!r}: it is one of {', '.join(MODELS)}")
    kind = MODELS[config.objective]
    try:
        model = read_settings(kind, config.model, "config.model")
    except UserError as error:
        hint = ""
        if "no such field" in str(error):
            other = {"groupvit": "configs/cocu.py", "clip": "configs/clip.py"}[config.objective]
            hint = f" in a model of objective {config.objective!r}; {other} lists all fields"
        raise UserError(f"{error}{hint}") from None
    tokens = EOT + 1
    if model.text.vocab_size < tokens:
        raise UserError(
            f"config.model.text.vocab_size={model.text.vocab_size}: it must be at least {tokens}, "
            "the tokens of CLIP's vocabulary"
        )
    towers = {"config.model.text.": (model.text.width, model.text.heads)}
    if isinstance(model, CLIPConfig):
        towers["config.model.vision_"] = model.vision_width, model.vision_heads
    else:
        towers["config.model."] = model.width, model.heads
    for name, (width, heads) in towers.items():
        if width % heads:
            raise UserError(f"{name}heads={heads}: it must divide {name}width={width}")
    if model.image_size % model.patch_size:
        raise UserError(
            f"config.model.patch_size={model.patch_size}: it must divide the image size, "
            f"{model.image_size} pixels"
        )
    return model
