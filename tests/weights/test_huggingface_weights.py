"""Hugging Face checkpoints; transformers is the oracle."""

import dataclasses
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import small_checkpoints as small
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file

from cocu_jax.errors import UserError
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys
from cocu_jax.models.text import TextConfig
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights import source
from cocu_jax.models.weights.__main__ import main
from cocu_jax.models.weights.huggingface import (
    load_clip,
    load_groupvit,
    save_clip,
    save_groupvit,
)
from cocu_jax.models.weights.image_processing import ImageProcessing


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    oracle = small.clip_oracle()
    oracle.save_pretrained(folder)
    return oracle, folder


@pytest.fixture(scope="module")
def groupvit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groupvit")
    oracle = small.groupvit_oracle()
    oracle.save_pretrained(folder)
    return oracle, folder


def _reopened(model_class, folder):
    """The model as transformers loads it, which must be without any complaint."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def test_clip_computes_what_transformers_computes(clip):
    oracle, folder = clip
    model, _ = load_clip(folder)
    small.assert_close(small.our_features(model), small.oracle_features(oracle))
    np.testing.assert_array_equal(model.log_scale[...], oracle.logit_scale.detach().numpy())


def test_clip_with_other_activation_computes_what_transformers_computes(tmp_path):
    oracle = small.clip_oracle(hidden_act="gelu", layer_norm_eps=1e-3)
    oracle.save_pretrained(tmp_path)
    model, _ = load_clip(tmp_path)
    small.assert_close(small.our_features(model), small.oracle_features(oracle))


def test_groupvit_computes_what_transformers_computes(groupvit):
    oracle, folder = groupvit
    small.assert_close(small.our_features(load_groupvit(folder)), small.oracle_features(oracle))


def test_exported_clip_is_the_file_that_transformers_wrote(clip, tmp_path):
    oracle, folder = clip
    model, processing = load_clip(folder)
    save_clip(model, tmp_path / "out", processing)
    reopened = _reopened(transformers.CLIPModel, tmp_path / "out")
    small.assert_same_tensors(reopened.state_dict(), oracle.state_dict())
    again, processing_again = load_clip(tmp_path / "out")
    small.assert_identical(model, again)
    assert processing == processing_again


def test_exported_groupvit_is_the_file_that_transformers_wrote(groupvit, tmp_path):
    oracle, folder = groupvit
    model = load_groupvit(folder)
    save_groupvit(model, tmp_path / "out")
    reopened = _reopened(transformers.GroupViTModel, tmp_path / "out")
    small.assert_same_tensors(reopened.state_dict(), oracle.state_dict())
    small.assert_identical(model, load_groupvit(tmp_path / "out"))


def _with_settings(folder, copy, **ours):
    """A copy of the checkpoint with settings that only we know."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"cocu_jax": ours}))
    return copy


def test_settings_unknown_to_transformers_survive_export_and_its_own_saving(groupvit, tmp_path):
    settings = dict(drop_path=0.3, dense_init_std=0.05, multi_label_logit_scale=math.pi)
    model = load_groupvit(_with_settings(groupvit[1], tmp_path / "in", **settings))
    assert (model.config.drop_path, model.config.dense_init_std) == (0.3, 0.05)
    assert float(model.multi_label_log_scale[...]) == np.float32(math.pi)
    save_groupvit(model, tmp_path / "ours")
    small.assert_identical(model, load_groupvit(tmp_path / "ours"))
    _reopened(transformers.GroupViTModel, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    small.assert_identical(model, load_groupvit(tmp_path / "theirs"))


def test_power_of_two_assignment_scale_is_folded_and_undone_exactly(groupvit, tmp_path):
    oracle, folder = groupvit
    model = load_groupvit(_with_settings(folder, tmp_path / "in", assign_logit_scale=8.0))
    query = load_groupvit(folder).image.stages[1].grouping.assign.query
    unfolded = model.image.stages[1].grouping.assign.query
    np.testing.assert_array_equal(8 * unfolded.kernel[...], query.kernel[...])
    np.testing.assert_array_equal(8 * unfolded.bias[...], query.bias[...])
    small.assert_close(small.our_features(model), small.oracle_features(oracle))
    save_groupvit(model, tmp_path / "out")
    reopened = _reopened(transformers.GroupViTModel, tmp_path / "out")
    small.assert_same_tensors(reopened.state_dict(), oracle.state_dict())
    small.assert_identical(model, load_groupvit(tmp_path / "out"))


def test_any_other_assignment_scale_stays_folded_and_computes_the_same(groupvit, tmp_path):
    original = load_groupvit(groupvit[1])
    config = dataclasses.replace(original.config, assign_logit_scale=3.0)
    graph = nnx.graphdef(nnx.eval_shape(lambda: GroupViT(config, rngs=Keys(0))))
    model = nnx.merge(graph, nnx.state(original))
    save_groupvit(model, tmp_path / "out")
    reopened = _reopened(transformers.GroupViTModel, tmp_path / "out")
    small.assert_close(small.our_features(model), small.oracle_features(reopened))
    again = load_groupvit(tmp_path / "out")
    assert again.config == original.config
    save_groupvit(again, tmp_path / "again")
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "again")]
    small.assert_same_tensors(*tensors)
    small.assert_identical(again, load_groupvit(tmp_path / "again"))


def test_published_size_round_trip_is_bit_identical(tmp_path):
    torch.manual_seed(0)
    oracle = transformers.GroupViTModel(transformers.GroupViTConfig())
    oracle.save_pretrained(tmp_path / "in")
    save_groupvit(load_groupvit(tmp_path / "in"), tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    small.assert_same_tensors(before, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_read_exactly(clip, tmp_path, dtype):
    oracle, folder = clip
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = {name: tensor.to(dtype) for name, tensor in oracle.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    expected = tensors["text_model.embeddings.token_embedding.weight"].float().numpy()
    np.testing.assert_array_equal(load_clip(tmp_path)[0].text.token_embedding[...], expected)


def test_shards_and_bin_files_give_the_same_model(clip, tmp_path):
    oracle, folder = clip
    expected, _ = load_clip(folder)
    oracle.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    small.assert_identical(expected, load_clip(tmp_path / "shards")[0])
    for name, zipped in (("new", True), ("old", False)):
        binary = tmp_path / name
        binary.mkdir()
        shutil.copy(folder / "config.json", binary)
        weights = dict(oracle.state_dict(), **{"text_model.embeddings.position_ids": torch.ones(3)})
        torch.save(weights, binary / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        small.assert_identical(expected, load_clip(binary)[0])


def test_old_bin_without_torch_says_what_to_install(clip, tmp_path, monkeypatch):
    shutil.copy(clip[1] / "config.json", tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(clip[0].state_dict(), file, _use_new_zipfile_serialization=False)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        load_clip(tmp_path)


def test_exported_folder_has_a_tokenizer_and_an_image_processor(tmp_path):
    config = transformers.CLIPConfig(
        text_config=dict(num_hidden_layers=0, hidden_size=8, num_attention_heads=1),
        vision_config=dict(
            num_hidden_layers=0,
            hidden_size=8,
            num_attention_heads=1,
            image_size=48,
            patch_size=16,
        ),
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "in")
    save_clip(load_clip(tmp_path / "in")[0], tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(["a photo of a cat."], padding="max_length").input_ids[0]
    # The published ids of this sentence; padded with the end token as transformers does.
    assert ids[:9] == [49406, 320, 1125, 539, 320, 2368, 269, 49407, 49407] and len(ids) == 77
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    image = np.full((100, 60, 3), 255, np.uint8)
    prepared = np.asarray(processor.image_processor(image, return_tensors="np").pixel_values)
    white = (1 - np.array([0.48145466, 0.4578275, 0.40821073])) / [
        0.26862954,
        0.26130258,
        0.27577711,
    ]
    np.testing.assert_allclose(
        prepared, np.broadcast_to(white[:, None, None], (1, 3, 48, 48)), 1e-5
    )


def _tokenized(folder):
    """Ids of two sentences by the tokenizer in a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(["a photo of a Café.", "it's 2 dogs"]).input_ids


def test_trained_groupvit_is_exported_with_our_tokenizer_and_its_image_processor(tmp_path):
    config = GroupViTConfig(
        image_size=16, patch_size=8, width=8, heads=1, depths=(0, 0, 0), groups=(2, 2),
        projection_hidden=8, projection_dim=8, text=TextConfig(width=8, heads=1, layers=0),
    )  # fmt: skip
    trained = ImageProcessing(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resample="bilinear")
    save_groupvit(GroupViT(config, rngs=Keys(0)), tmp_path / "out", trained)
    ours = Tokenizer()(["a photo of a Café.", "it's 2 dogs"])
    assert _tokenized(tmp_path / "out") == [[i for i in row if i] for row in ours.tolist()]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    white = np.full((16, 16, 3), 255, np.uint8)
    prepared = np.asarray(processor(white, return_tensors="np").pixel_values)
    np.testing.assert_allclose(prepared, np.full((1, 3, 16, 16), 2.0), 1e-5)


def test_tokenizer_and_processor_of_the_source_go_along(clip, tmp_path):
    """As transformers 5 saves them: the image processor inside of `processor_config.json`."""
    shutil.copytree(clip[1], tmp_path / "in")
    letters = dict.fromkeys("abcdefghijklmnopqrstuvwxyz")
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer({word: i for i, word in enumerate(words)}, [])
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=64, image_mean=[0.1, 0.2, 0.3], resample=2
    )
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "in")
    assert not (tmp_path / "in" / "preprocessor_config.json").exists()
    assert main(["import", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert _tokenized(tmp_path / "out") == _tokenized(tmp_path / "in")
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    picture = np.random.default_rng(0).integers(0, 256, (80, 70, 3)).astype(np.uint8)
    np.testing.assert_array_equal(*(p(picture).pixel_values[0] for p in (again, images)))
    expected = ImageProcessing(64, (0.1, 0.2, 0.3), resample="bilinear")
    assert load_clip(tmp_path / "in")[1] == load_clip(tmp_path / "out")[1] == expected


def test_fingerprint_follows_content_not_place(clip, tmp_path):
    first = source.fingerprint(clip[1])
    copy = pathlib.Path(shutil.copytree(clip[1], tmp_path / "copy"))
    assert source.fingerprint(str(copy)) == first
    (copy / "unrelated.txt").write_text("notes")
    assert source.fingerprint(copy) == first
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    changed = source.fingerprint(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"projection_dim": 21}))
    assert len({first, changed, source.fingerprint(copy)}) == 3


def test_hub_id_is_fetched_with_safetensors_first_and_bin_if_there_are_none(
    clip, tmp_path, monkeypatch
):
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, "pytorch_model.bin" in allow_patterns))
        if "pytorch_model.bin" in allow_patterns:
            torch.save(clip[0].state_dict(), tmp_path / "pytorch_model.bin")
        shutil.copy(clip[1] / "config.json", tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(source, "snapshot_download", snapshot_download)
    small.assert_identical(load_clip("someone/clip@main")[0], load_clip(clip[1])[0])
    assert asked == [("someone/clip", "main", False), ("someone/clip", "main", True)]


def test_hub_out_of_reach_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="someone/no-such-model: is not a local folder") as error:
        load_clip("someone/no-such-model")
    assert "\n" not in str(error.value)
