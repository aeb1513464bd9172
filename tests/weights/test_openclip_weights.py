"""Checkpoints in the layouts of open_clip and of OpenAI.

The oracle is transformers' CLIP, whose weights are given the names that open_clip's have; that
those are the names, and that open_clip computes the same, is shown by
`test_open_clip_itself_agrees`, with open_clip's own wheel.
"""

import functools
import importlib
import json
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import small_checkpoints as small
import torch
from safetensors.torch import save_file

from cocu_jax.errors import UserError
from cocu_jax.models.weights.__main__ import main
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.models.weights.image_processing import ImageProcessing

WIDTH, TEXT_WIDTH = 128, 64  # heads of OpenAI's are 64 wide


@functools.cache
def oracle(activation: str = "quick_gelu"):
    """A CLIP of transformers whose heads are 64 wide."""
    return small.clip_oracle(
        text=dict(hidden_size=TEXT_WIDTH, num_attention_heads=1, hidden_act=activation),
        hidden_size=WIDTH,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        hidden_act=activation,
    )


def openclip_tensors(model) -> dict[str, torch.Tensor]:
    """The weights of a transformers CLIP by open_clip's names."""
    theirs = model.state_dict()
    renamed = {
        "logit_scale": theirs["logit_scale"],
        "visual.proj": theirs["visual_projection.weight"].T,
        "text_projection": theirs["text_projection.weight"].T,
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
    }
    for theirs_name, name in (
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
    ):
        renamed |= {
            f"{name}.{part}": theirs[f"{theirs_name}.{part}"] for part in ("weight", "bias")
        }
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for layer in range(2):
            source = f"{tower}.encoder.layers.{layer}"
            target = f"{prefix}transformer.resblocks.{layer}"
            for part in ("weight", "bias"):
                for a, b in (
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    renamed[f"{target}.{b}.{part}"] = theirs[f"{source}.{a}.{part}"]
                renamed[f"{target}.attn.in_proj_{part}"] = torch.cat(
                    [theirs[f"{source}.self_attn.{x}_proj.{part}"] for x in "qkv"]
                )
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def openclip_config(**model) -> dict:
    """`open_clip_config.json` of the oracle."""
    vision = dict(
        image_size=small.SIZE, layers=2, width=WIDTH, patch_size=small.PATCH, mlp_ratio=2.0
    )
    text = dict(
        context_length=12, vocab_size=small.VOCABULARY, width=TEXT_WIDTH, heads=1, layers=2,
        mlp_ratio=1.0,
    )  # fmt: skip
    preprocess = dict(
        mean=[0.5] * 3, std=[0.25] * 3, interpolation="bilinear", resize_mode="squash"
    )
    model = dict(embed_dim=20, vision_cfg=vision, text_cfg=text) | model
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def write_folder(folder, tensors, **model):
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(openclip_config(**model)))
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def assert_same_features(model, activation="quick_gelu"):
    small.assert_close(small.our_features(model), small.oracle_features(oracle(activation)))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_openclip_folder_computes_what_the_oracle_computes(tmp_path, activation):
    folder = write_folder(
        tmp_path, openclip_tensors(oracle(activation)), quick_gelu=activation == "quick_gelu"
    )
    opened = open_checkpoint(str(folder))
    assert_same_features(opened.model, activation)
    expected = ImageProcessing(small.SIZE, (0.5,) * 3, (0.25,) * 3, False, "bilinear")
    assert opened.processing == expected


def test_openclip_folder_is_imported_for_transformers(tmp_path):
    import transformers

    folder = write_folder(tmp_path / "in", openclip_tensors(oracle()), quick_gelu=True)
    assert main(["import", str(folder), str(tmp_path / "out")]) == 0
    model, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    small.assert_same_tensors(model.state_dict(), oracle().state_dict())


def test_bin_custom_text_and_sigmoid_bias_are_read(tmp_path):
    tensors = openclip_tensors(oracle())
    tensors = {
        name if name.startswith(("visual.", "logit")) else f"text.{name}": tensor
        for name, tensor in tensors.items()
    }
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    tensors["logit_bias"] = torch.tensor(-10.0)
    config = openclip_config(quick_gelu=True, custom_text=True, init_logit_bias=-10)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "open_clip_pytorch_model.bin")
    assert_same_features(open_checkpoint(str(tmp_path)).model)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_training_checkpoint_is_read_with_the_config_beside_it(tmp_path, prefix):
    tensors = {f"{prefix}{name}": x for name, x in openclip_tensors(oracle()).items()}
    file = tmp_path / "epoch_3.pt"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"epoch": 3, "name": "x", "state_dict": tensors, "optimizer": optimizer}, file)
    with pytest.raises(UserError, match="put the model's open_clip_config.json in"):
        open_checkpoint(str(file))
    config = openclip_config(quick_gelu=True)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert_same_features(open_checkpoint(str(file)).model)


class Tree(torch.nn.Module):
    """A module with given parameters under dotted names, and code that nobody may run."""

    def __init__(self, tensors: dict[str, torch.Tensor], half: bool):
        super().__init__()
        for name in {name.partition(".")[0] for name in tensors}:
            inner = {
                k.partition(".")[2]: v for k, v in tensors.items() if k.partition(".")[0] == name
            }
            if "" in inner:
                value = inner[""].half() if half and inner[""].ndim > 1 else inner[""]
                self.register_buffer(name, value)
            else:
                self.add_module(name, Tree(inner, half))

    def forward(self, x):
        return x + 1


def openai_archive(file, half: bool = False):
    """An archive as OpenAI's are: TorchScript, with three numbers beside the weights."""
    numbers = dict(input_resolution=64, context_length=12, vocab_size=100)
    tensors = openclip_tensors(oracle()) | {k: torch.tensor(v) for k, v in numbers.items()}
    torch.jit.script(Tree(tensors, half)).save(str(file))


def test_openai_archive_computes_what_the_oracle_computes(tmp_path):
    openai_archive(tmp_path / "ViT-B-32.pt")
    opened = open_checkpoint(str(tmp_path / "ViT-B-32.pt"))
    assert_same_features(opened.model)
    assert opened.processing == ImageProcessing(small.SIZE)
    assert opened.model.config.activation == opened.model.config.text.activation == "quick_gelu"


def test_openai_archive_in_half_precision_is_read_exactly(tmp_path):
    openai_archive(tmp_path / "clip.pt", half=True)
    model = open_checkpoint(str(tmp_path / "clip.pt")).model
    expected = oracle().text_model.embeddings.token_embedding.weight.half().float().detach().numpy()
    np.testing.assert_array_equal(model.text.token_embedding[...], expected)


def test_code_in_an_archive_is_not_even_read(tmp_path):
    openai_archive(tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "clip.pt", "w") as changed,
    ):
        for entry in good.infolist():
            code = "/code/" in entry.filename or "constants.pkl" in entry.filename
            changed.writestr(entry, b"\xff broken" if code else good.read(entry))
    assert_same_features(open_checkpoint(str(tmp_path / "clip.pt")).model)


def test_openai_weights_are_read_without_torch(tmp_path, monkeypatch):
    openai_archive(tmp_path / "clip.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert open_checkpoint(str(tmp_path / "clip.pt")).model.config.vision_width == WIDTH


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}}, "timm's vit_base_pa"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "a ResNet"),
        ({"multimodal_cfg": {}}, "CoCa"),
        ({"text_cfg": {"hf_model_name": "xlm-roberta-base"}}, "its text tower is xlm-roberta-base"),
        ({"text_cfg": {"hf_tokenizer_name": "bert-base"}}, "hf_tokenizer_name is bert-base"),
        ({"text_cfg": {"pool_type": "last"}}, "text_cfg.pool_type is last"),
        ({"vision_cfg": {"no_ln_pre": True}}, "vision_cfg.no_ln_pre is True"),
        ({"vision_cfg": {"attentional_pool": True}}, "vision_cfg.attentional_pool"),
        ({"vision_cfg": {"image_size": [224, 336]}}, "not square"),
        ({"vision_cfg": {"act_kwargs": {"inplace": True}}}, "act_kwargs"),
        ({"vision_cfg": 3}, "not as open_clip writes it"),
    ],
)
def test_other_towers_of_openclip_are_refused_by_name(tmp_path, model, said):
    folder = write_folder(tmp_path, {"x": torch.ones(1)}, **{"text_cfg": {}} | model)
    with pytest.raises(UserError, match=said) as refused:
        open_checkpoint(str(folder))
    assert "open_clip_config.json" in str(refused.value)


def test_neutral_settings_of_openclip_change_nothing(tmp_path):
    config = openclip_config(quick_gelu=True)
    config["model_cfg"]["vision_cfg"] |= dict(
        ls_init_value=None, pool_type="tok", patch_dropout=0.5
    )
    config["model_cfg"]["text_cfg"] |= dict(
        no_causal_mask=False, pool_type="argmax", proj_bias=False
    )
    write_folder(tmp_path, openclip_tensors(oracle()))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert_same_features(open_checkpoint(str(tmp_path)).model)


def test_files_that_are_no_models_are_told_for_what_they_are(tmp_path):
    torch.save({"state_dict": {"layer.weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="neither the authors' GroupViT .* nor a CLIP"):
        open_checkpoint(str(tmp_path / "other.pt"))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="contains only weights; give the folder"):
        open_checkpoint(str(tmp_path / "model.safetensors"))
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(UserError, match="not a torch checkpoint"):
        open_checkpoint(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="absent.pt: no such file"):
        open_checkpoint(str(tmp_path / "absent.pt"))


def test_resnet_of_openai_is_refused_by_name(tmp_path):
    tensors = {"visual.layer1.0.conv1.weight": torch.ones(1), "input_resolution": torch.tensor(224)}
    torch.save(tensors, tmp_path / "RN50.pt")
    with pytest.raises(UserError, match="RN50.pt: its image tower is a ResNet"):
        open_checkpoint(str(tmp_path / "RN50.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("quick", [False, True])
def test_open_clip_itself_agrees(tmp_path, monkeypatch, quick):
    """open_clip with its own code and names, from its wheel; torchvision is only for training."""
    wheel = ["pip", "download", "--no-deps", "-d", str(tmp_path), "open-clip-torch==3.3.0"]
    subprocess.run([sys.executable, "-m", *wheel], check=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "wheel")
    package = types.ModuleType("open_clip")  # without its __init__, which imports everything
    package.__path__ = [str(tmp_path / "wheel" / "open_clip")]
    misc = types.ModuleType("torchvision.ops.misc")
    misc.FrozenBatchNorm2d = torch.nn.Identity
    for name, module in (("open_clip", package), ("torchvision.ops.misc", misc)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("torchvision", "torchvision.ops", "timm"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    openclip = importlib.import_module("open_clip.model")
    config = openclip_config(quick_gelu=quick)["model_cfg"]
    torch.manual_seed(0)
    theirs = small.randomised(openclip.CLIP(**config))
    write_folder(tmp_path / "model", theirs.state_dict(), quick_gelu=quick)
    with torch.no_grad():
        expected = [
            theirs.encode_image(torch.tensor(small.pixels()).permute(0, 3, 1, 2)).numpy(),
            theirs.encode_text(torch.tensor(small.tokens()).long()).numpy(),
        ]
    small.assert_close(small.our_features(open_checkpoint(str(tmp_path / "model")).model), expected)
    assert theirs.state_dict().keys() == openclip_tensors(oracle()).keys()
