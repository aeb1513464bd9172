"""Configs and image processing as found on the hub; transformers is the oracle."""

import numpy as np
import pytest
import transformers

from cocu_jax.errors import UserError
from cocu_jax.models.weights.config_json import (
    read_clip_config,
    read_groupvit_config,
    read_multi_label_scale,
    write_clip_config,
    write_groupvit_config,
)
from cocu_jax.models.weights.image_processing import (
    ImageProcessing,
    read_processing,
    write_processing,
)

_LARGE_VISION = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=24,
    patch_size=14,
    image_size=336,
)
_LARGE_TEXT = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
CLIP_CONFIGS = {
    "B/32, nothing said": {"model_type": "clip"},
    "B/16": {"model_type": "clip", "vision_config": {"patch_size": 16}, "text_config": None},
    "L/14-336": {
        "architectures": ["CLIPModel"],
        "projection_dim": 768,
        "text_config": _LARGE_TEXT | {"eos_token_id": 2},
        "vision_config": _LARGE_VISION,
    },
    # The dictionaries with `_dict` count alone: what they leave out is the default.
    "LAION, both forms": {
        "model_type": "clip",
        "projection_dim": 1024,
        "text_config": {"hidden_act": "quick_gelu", "hidden_size": 1024, "layer_norm_eps": 1e-3},
        "text_config_dict": {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
        },
        "vision_config": {"hidden_act": "quick_gelu"},
        "vision_config_dict": {
            "hidden_act": "gelu",
            "hidden_size": 1664,
            "intermediate_size": 8192,
            "num_attention_heads": 16,
            "num_hidden_layers": 48,
            "patch_size": 14,
        },
    },
}


@pytest.mark.parametrize("name", CLIP_CONFIGS)
def test_clip_configs_are_read_as_transformers_reads_them(name):
    content = {k: v for k, v in CLIP_CONFIGS[name].items() if k != "model_type"}
    theirs = transformers.CLIPConfig(**content)
    ours = read_clip_config(CLIP_CONFIGS[name], "config.json", "float32")
    vision, text = theirs.vision_config, theirs.text_config
    assert ours.projection_dim == theirs.projection_dim
    assert (ours.image_size, ours.patch_size) == (vision.image_size, vision.patch_size)
    assert (ours.vision_width, ours.vision_heads) == (
        vision.hidden_size,
        vision.num_attention_heads,
    )
    assert (ours.vision_layers, ours.activation) == (vision.num_hidden_layers, vision.hidden_act)
    assert round(ours.vision_width * ours.vision_mlp_ratio) == vision.intermediate_size
    assert (ours.layer_norm_eps, ours.text.layer_norm_eps) == (
        vision.layer_norm_eps,
        text.layer_norm_eps,
    )
    assert (ours.text.width, ours.text.heads) == (text.hidden_size, text.num_attention_heads)
    assert (ours.text.layers, ours.text.activation) == (text.num_hidden_layers, text.hidden_act)
    assert round(ours.text.width * ours.text.mlp_ratio) == text.intermediate_size
    assert (ours.text.vocab_size, ours.text.context_length) == (49408, 77)
    assert read_clip_config(write_clip_config(ours), "config.json", "float32") == ours


def test_groupvit_config_comes_back():
    ours = read_groupvit_config({"model_type": "groupvit"}, "config.json", "bfloat16")
    theirs = transformers.GroupViTConfig()
    assert list(ours.depths) == list(theirs.vision_config.depths)
    assert [*ours.groups, 0] == list(theirs.vision_config.num_group_tokens)
    assert (ours.width, ours.heads) == (384, theirs.vision_config.num_attention_heads)
    assert (ours.projection_hidden, ours.projection_dim) == (4096, theirs.projection_dim)
    assert (ours.text.width, ours.text.heads, ours.dtype) == (256, 4, "bfloat16")
    written = write_groupvit_config(ours, np.float32(2))
    assert read_groupvit_config(written, "config.json", "bfloat16") == ours
    assert read_multi_label_scale(written, "config.json", 0.0) == 2


@pytest.mark.parametrize(
    "tower, setting, value, said",
    [
        ("vision", "num_channels", 1, "num_channels"),
        ("vision", "image_size", [224, 336], "square"),
        ("vision", "hidden_act", "relu", "relu"),
        ("text", "eos_token_id", 7, "end token 7"),
    ],
)
def test_variants_we_do_not_compute_are_refused(tower, setting, value, said):
    config = {"model_type": "clip", f"{tower}_config": {setting: value}}
    with pytest.raises(UserError, match=f"a/config.json: .*{said}"):
        read_clip_config(config, "a/config.json", "float32")


@pytest.mark.parametrize(
    "setting, value",
    [
        ("assign_eps", 0.5),
        ("assign_mlp_ratio", [1, 4]),
        ("hidden_act", "quick_gelu"),
        ("depths", [6, 6]),
        ("num_output_groups", [32, 8, 8]),
        ("num_group_tokens", [64, 8, 4]),
    ],
)
def test_groupvit_variants_we_do_not_compute_are_refused(setting, value):
    config = {"model_type": "groupvit", "vision_config": {setting: value}}
    with pytest.raises(UserError, match="a/config.json: "):
        read_groupvit_config(config, "a/config.json", "float32")


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, ImageProcessing(224)),
        ({"size": 224, "crop_size": 224, "resample": 3}, ImageProcessing(224)),
        (
            {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
            ImageProcessing(224),
        ),
        (
            {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 2},
            ImageProcessing(224, keep_aspect=False, resample="bilinear"),
        ),
        (
            {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]},
            ImageProcessing(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ),
    ],
)
def test_image_processing_is_read_in_old_and_new_forms(settings, expected):
    assert read_processing(settings, "p.json", 224) == expected
    assert read_processing(write_processing(expected), "p.json", 224) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 256},
        {"crop_size": {"height": 224, "width": 200}},
        {"do_center_crop": False},
        {"do_normalize": False},
        {"rescale_factor": 1.0},
        {"resample": 9},
    ],
)
def test_image_processing_we_do_not_do_is_refused(settings):
    with pytest.raises(UserError, match="p.json: "):
        read_processing(settings, "p.json", 224)
