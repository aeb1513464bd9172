"""The authors' `.pth` files: read without torch and without running what they contain.

The oracle is transformers' GroupViT: its tensors are renamed here, independently of the package's
tables, to the layout of the published files.
"""

import collections
import dataclasses
import json
import os
import pathlib
import pickle
import re

import numpy as np
import pytest
import small_checkpoints as small
import torch

from cocu_jax.errors import UserError
from cocu_jax.models.groupvit import GroupViTConfig
from cocu_jax.models.weights.huggingface import load_groupvit
from cocu_jax.models.weights.inert_pickle import Inert, read_pickle
from cocu_jax.models.weights.official import load_official, save_official

# From transformers' names to the authors', applied in this order.
_RENAMED = {
    "vision_model.embeddings.position_embeddings": "img_encoder.pos_embed",
    "vision_model.embeddings.patch_embeddings.projection": "img_encoder.patch_embed.proj",
    "vision_model.embeddings.layernorm": "img_encoder.patch_embed.norm",
    "vision_model.layernorm": "img_encoder.norm",
    "vision_model.encoder.stages.": "img_encoder.layers.",
    "pre_assign_attn.attn.out_proj": "pre_assign_attn.attn.proj",
    "text_model.embeddings.token_embedding": "text_encoder.token_embedding",
    "text_model.embeddings.position_embedding.weight": "text_encoder.positional_embedding",
    "text_model.final_layer_norm": "text_encoder.ln_final",
    "text_model.encoder.layers": "text_encoder.transformer.resblocks",
    "visual_projection.": "img_projector.linear_hidden.",
    "text_projection.": "text_projector.linear_hidden.",
    "linear_hidden.3": "linear_out",
}
_RENAMED_IN_IMAGE = {
    ".layers.{s}.layers.": ".layers.{s}.blocks.",
    "layer_norm": "norm",
    "self_attn.qkv_": "attn.qkv.",
    "self_attn.out_proj": "attn.proj",
}
_RENAMED_IN_TEXT = {
    "layer_norm": "ln_",
    "self_attn.qkv_": "attn.in_proj_",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def official_tensors(model) -> dict[str, torch.Tensor]:
    """A transformers GroupViT's tensors, named and shaped as the authors'."""
    theirs = dict(model.state_dict())
    for name in [n for n in theirs if "self_attn.q_proj" in n]:
        parts = [theirs.pop(name.replace("q_proj", f"{kind}_proj")) for kind in "qkv"]
        theirs[name.replace("q_proj.", "qkv_")] = torch.cat(parts)
    result = {}
    for name, tensor in theirs.items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        for old, new in (_RENAMED_IN_TEXT if "text_" in name else _RENAMED_IN_IMAGE).items():
            for stage in "012":
                name = name.replace(old.format(s=stage), new.format(s=stage))
        if "projector.linear" in name and tensor.ndim == 2:
            tensor = tensor[:, :, None]
        result[name] = tensor
    return result


@dataclasses.dataclass
class Omega:
    """Stands for OmegaConf's class: unknown to whoever reads the file."""

    content: dict


@dataclasses.dataclass
class Trap:
    """Makes a directory when it is unpickled."""

    path: str

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    model = small.groupvit_oracle(width=128, heads=2, text_width=64, text_heads=1)
    model.save_pretrained(folder)
    return official_tensors(model), load_groupvit(folder)


def _save(file, weights, trap="never", **options):
    torch.save(
        {
            "model": weights,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1.0}]},
            "epoch": 29,
            "metrics": {"best": np.float64(0.5)},
            "config": Omega({"trap": Trap(str(trap)), "counts": collections.Counter("ab")}),
        },
        file,
        **options,
    )
    return str(file)


def published_layout() -> dict[str, list[int]]:
    """Name and shape of every tensor of the published files."""
    layout = {}
    lines = pathlib.Path(__file__).with_name("official_layout.txt").read_text().splitlines()[1:]
    for line in lines:
        name, shape = line.split(" ", 1)
        stage = re.match(r"img_encoder.layers.(\d)", name)
        depth = (6, 3, 3)[int(stage[1])] if stage else 12
        for i in range(depth if "{i}" in name else 1):
            layout[name.format(i=i)] = json.loads(shape)
    return layout


def test_file_of_published_size_is_read_whole_and_written_back(tmp_path):
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(shape, generator=generator)
        if not name.endswith("num_batches_tracked")
        else torch.tensor(0)
        for name, shape in published_layout().items()
    }
    torch.save({"model": weights}, tmp_path / "in.pth")
    model = load_official(tmp_path / "in.pth")
    assert model.config == GroupViTConfig()
    save_official(model, tmp_path / "out.pth")
    small.assert_same_tensors(torch.load(tmp_path / "out.pth")["model"], weights)


def test_the_independent_renaming_gives_published_names():
    names = {re.sub(r"\d+", "0", name) for name in official_tensors(small.groupvit_oracle())}
    published = {re.sub(r"\d+", "0", name) for name in published_layout()}
    assert names == published - {"multi_label_logit_scale"}


def test_published_file_is_read_exactly_and_nothing_in_it_runs(oracle, tmp_path):
    weights, expected = oracle
    weights = {"multi_label_logit_scale": torch.tensor(1.25), **weights}
    trap = tmp_path / "trap"
    file = _save(tmp_path / "a.pth", {f"module.{k}": v for k, v in weights.items()}, trap)
    model = load_official(file)
    assert not trap.exists()
    assert float(model.multi_label_log_scale[...]) == 1.25
    model.multi_label_log_scale[...] = expected.multi_label_log_scale[...]
    small.assert_identical(model, expected)


def test_the_trap_is_a_real_one(tmp_path):
    pickle.loads(pickle.dumps(Trap(str(tmp_path / "trap"))))
    assert (tmp_path / "trap").exists()


def test_inert_reading_imports_and_calls_nothing(tmp_path):
    trap = tmp_path / "trap"
    # The classic, by hand: a pickle that calls a shell.
    assert isinstance(read_pickle(f"cos\nsystem\n(S'mkdir {trap}'\ntR.".encode()), Inert)
    content = {"a": Trap(str(trap)), "b": 1, "c": collections.Counter("ab"), "d": Omega({})}
    read = read_pickle(pickle.dumps(content))
    assert read["b"] == 1 and isinstance(read["a"], Inert) and isinstance(read["d"], Inert)
    assert not trap.exists()


def test_file_of_training_without_prompts_gets_the_initial_temperature(oracle, tmp_path):
    model = load_official(_save(tmp_path / "a.pth", oracle[0]))
    np.testing.assert_allclose(model.multi_label_log_scale[...], np.log(1 / 0.07), 1e-6)


def test_views_of_shared_storage_half_precision_and_old_format_are_read(oracle, tmp_path):
    weights, expected = dict(oracle[0]), oracle[1]
    name = "img_encoder.layers.0.downsample.assign.v_proj.weight"
    shared = torch.cat([torch.zeros(5, 128), weights[name].T])
    weights[name] = shared[5:].T  # transposed, with an offset
    small.assert_identical(load_official(_save(tmp_path / "views.pth", weights)), expected)
    old = tmp_path / "old.pth"
    torch.save({"model": weights}, old, _use_new_zipfile_serialization=False)
    small.assert_identical(load_official(str(old)), expected)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in weights.items()}
    scale = load_official(_save(tmp_path / "half.pth", half)).log_scale[...]
    assert float(scale) == float(half["logit_scale"])


def test_exported_file_is_the_published_layout_and_comes_back_bit_identical(oracle, tmp_path):
    weights, model = oracle
    save_official(model, tmp_path / "out.pth")
    read = torch.load(tmp_path / "out.pth", weights_only=True)
    multi_label = read["model"].pop("multi_label_logit_scale")
    assert float(multi_label) == float(model.multi_label_log_scale[...])
    small.assert_same_tensors(read["model"], weights)
    again = load_official(tmp_path / "out.pth")
    small.assert_identical(again, model)
    save_official(again, tmp_path / "again.pth")
    assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "out.pth").read_bytes()


def test_unusual_settings_come_back_from_our_own_file(tmp_path):
    small.groupvit_oracle().save_pretrained(tmp_path)  # heads of 12, not 64
    model = load_groupvit(tmp_path)
    save_official(model, tmp_path / "out.pth")
    small.assert_identical(load_official(tmp_path / "out.pth"), model)


def test_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"contains no dictionary of tensors under 'model'"):
        load_official(tmp_path / "other.pth")
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"resnet.pth: .*pos_embed is missing"):
        load_official(tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="no such file"):
        load_official(tmp_path / "absent.pth")
