"""Every damaged or foreign checkpoint is refused in one line, and nothing half-written remains."""

import json
import re
import shutil

import pytest
import small_checkpoints as small
import torch
from safetensors.torch import load_file, save_file
from test_official_weights import official_tensors

from cocu_jax.errors import UserError
from cocu_jax.models.weights import huggingface
from cocu_jax.models.weights.__main__ import main
from cocu_jax.models.weights.huggingface import load_clip, load_groupvit, save_groupvit
from cocu_jax.models.weights.official import save_official
from cocu_jax.models.weights.source import fingerprint

HF_VICTIM = "text_model.embeddings.token_embedding.weight"
OFFICIAL_VICTIM = "img_encoder.layers.0.downsample.assign.k_proj.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    groupvit = small.groupvit_oracle(width=128, heads=2, text_width=64, text_heads=1)
    groupvit.save_pretrained(root / "groupvit")
    small.clip_oracle().save_pretrained(root / "clip")
    torch.save({"model": official_tensors(groupvit)}, root / "official.pth")
    return root


def _without(tensors, victim):
    return {name: tensor for name, tensor in tensors.items() if name != victim}


# What is done to the tensors, and what the message must then name besides the tensor.
TENSOR_DAMAGES = {
    "missing": (_without, "missing"),
    "extra": (lambda t, v: {**t, f"{v}.extra": torch.ones(2)}, "does not belong to the model"),
    "shape": (lambda t, v: {**t, v: t[v][:, :5].contiguous()}, r"has shape \[\d+, 5\]"),
    "type": (lambda t, v: {**t, v: t[v].long()}, "int64"),
}


def _refused(source, target, capsys) -> str:
    """The error line of a conversion that must fail and leave nothing."""
    target.parent.mkdir()
    assert main(["import", str(source), str(target)]) == 2
    assert list(target.parent.iterdir()) == []
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("kind", ["clip", "groupvit"])
@pytest.mark.parametrize("damage", TENSOR_DAMAGES)
def test_wrong_tensors_in_a_folder_are_named(sources, tmp_path, capsys, kind, damage):
    folder = tmp_path / "in"
    shutil.copytree(sources / kind, folder)
    change, said = TENSOR_DAMAGES[damage]
    file = folder / "model.safetensors"
    save_file(change(load_file(file), HF_VICTIM), file)
    line = _refused(folder, tmp_path / "out" / "model", capsys)
    assert HF_VICTIM in line and str(folder) in line
    assert re.search(said, line), line


@pytest.mark.parametrize("damage", TENSOR_DAMAGES)
def test_wrong_tensors_in_an_official_file_are_named(sources, tmp_path, capsys, damage):
    weights = torch.load(sources / "official.pth", weights_only=True)["model"]
    change, said = TENSOR_DAMAGES[damage]
    torch.save({"model": change(weights, OFFICIAL_VICTIM)}, tmp_path / "in.pth")
    line = _refused(tmp_path / "in.pth", tmp_path / "out" / "model", capsys)
    assert OFFICIAL_VICTIM in line and "in.pth" in line
    assert re.search(said, line), line


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_files_are_named(sources, tmp_path, capsys, kept):
    folder = tmp_path / "in"
    shutil.copytree(sources / "clip", folder)
    for file in (folder / "model.safetensors", tmp_path / "in.pth"):
        if file.suffix == ".pth":
            shutil.copy(sources / "official.pth", file)
        file.write_bytes(file.read_bytes()[:kept])
        source = folder if file.parent == folder else file
        target = tmp_path / f"out{file.suffix}" / "model"
        assert f"{file}: truncated" in _refused(source, target, capsys)


def test_flipped_bit_in_an_official_file_is_noticed(sources, tmp_path, capsys):
    data = bytearray((sources / "official.pth").read_bytes())
    data[len(data) // 2] ^= 1  # the middle of some tensor
    (tmp_path / "in.pth").write_bytes(data)
    assert "in.pth: tensor" in _refused(tmp_path / "in.pth", tmp_path / "out" / "m", capsys)


def test_wrong_architecture_is_named(sources, tmp_path, capsys):
    with pytest.raises(UserError, match="describes GroupViTModel, not CLIPModel"):
        load_clip(sources / "groupvit")
    with pytest.raises(UserError, match="describes CLIPModel, not GroupViTModel"):
        load_groupvit(sources / "clip")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text('{"model_type": "blip"}')
    assert "blip" in _refused(tmp_path / "in", tmp_path / "out" / "m", capsys)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("config.json", "{", "not readable as JSON"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", '{"model_type": "clip", "vision_config": 3}', "not as transformers"),
        ("config.json", '{"model_type": "clip", "vision_config": {"num_attention_heads": 5}}', "5"),
        ("config.json", '{"model_type": "clip", "text_config": {"num_hidden_layers": "x"}}', "str"),
        ("config.json", None, "missing"),
        ("preprocessor_config.json", '{"size": "large"}', "preprocessor_config.json"),
        ("model.safetensors", None, "no model.safetensors"),
    ],
)
def test_broken_folders_are_named(sources, tmp_path, capsys, name, content, said):
    folder = tmp_path / "in"
    shutil.copytree(sources / "clip", folder)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    line = _refused(folder, tmp_path / "out" / "model", capsys)
    assert said in line and str(folder) in line


def test_shards_and_index_must_agree(sources, tmp_path, capsys):
    folder = tmp_path / "in"
    small.clip_oracle().save_pretrained(folder, max_shard_size="100KB")
    capsys.readouterr()  # transformers' progress
    index = folder / "model.safetensors.index.json"
    shard = next(folder.glob("model-00002-*.safetensors"))
    listed = json.loads(index.read_text())
    tensors = load_file(shard)
    first = min(tensors)
    save_file(_without(tensors, first), shard)
    assert first in _refused(folder, tmp_path / "a" / "model", capsys)
    shard.unlink()
    line = _refused(folder, tmp_path / "b" / "model", capsys)
    assert f"{shard}: missing" in line
    listed.pop("weight_map")
    index.write_text(json.dumps(listed))
    assert f"{index}: not a readable index" in _refused(folder, tmp_path / "c" / "model", capsys)


def test_failure_while_writing_keeps_the_earlier_model(sources, tmp_path, monkeypatch):
    model = load_groupvit(sources / "groupvit")
    save_groupvit(model, tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write_hub_files", full_disk)
    with pytest.raises(UserError, match="No space left"):
        save_groupvit(model, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()} == before
    monkeypatch.undo()
    save_groupvit(model, tmp_path / "model")  # an earlier model is replaced
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    small.assert_identical(load_groupvit(tmp_path / "model"), model)


def test_what_is_no_model_is_not_overwritten(sources, tmp_path):
    model = load_groupvit(sources / "groupvit")
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(UserError, match="is not a model"):
        save_groupvit(model, tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        save_official(model, tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        save_official(model, tmp_path / "thesis.txt" / "model.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_command_line_converts_both_ways(sources, tmp_path, capsys):
    steps = (
        ("import", sources / "official.pth", tmp_path / "a"),
        ("export", tmp_path / "a", tmp_path / "b.pth"),
        ("import", tmp_path / "b.pth", tmp_path / "c"),
        ("export", tmp_path / "c", tmp_path / "d"),
    )
    for command, source, target in steps:
        assert main([command, str(source), str(target)]) == 0
        printed = capsys.readouterr().out
        assert "GroupViT" in printed
        assert target.suffix == ".pth" or fingerprint(target) in printed
    small.assert_identical(load_groupvit(tmp_path / "d"), load_groupvit(sources / "groupvit"))
    for command, source, target, said in (
        ("import", tmp_path / "a", tmp_path / "d", "already exists"),
        ("import", tmp_path / "a", tmp_path / "x.pth", "use export"),
        ("export", sources / "clip", tmp_path / "x.pth", "is a CLIP"),
        ("export", tmp_path / "absent", tmp_path / "x", "no such folder"),
    ):
        assert main([command, str(source), str(target)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()
