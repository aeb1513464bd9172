"""SigLIP and SigLIP 2 checkpoints of one resolution; transformers is the oracle."""

import json

import numpy as np
import pytest
import sentencepiece
import small_checkpoints as small
import tokenizers
import torch
import transformers
from flax import nnx
from tokenizers import models, normalizers, pre_tokenizers, processors

from cocu_jax.errors import UserError
from cocu_jax.models.siglip import Siglip
from cocu_jax.models.weights.__main__ import main
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.models.weights.huggingface import load_siglip, save_siglip
from cocu_jax.models.weights.image_processing import siglip_processing

WORDS = ("photo", "of", "cat", "dog", "two", "dogs", "its", "a")


def siglip_oracle(image_size: int = small.SIZE) -> transformers.SiglipModel:
    """A SigLIP with a pooling head whose texts fill 12 positions."""
    shared = dict(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
    config = transformers.SiglipConfig(
        text_config=shared
        | dict(intermediate_size=64, vocab_size=small.VOCABULARY, max_position_embeddings=12),
        vision_config=shared
        | dict(intermediate_size=100, image_size=image_size, patch_size=small.PATCH),
    )
    return small.randomised(transformers.SiglipModel(config))


def write_tokenizer(folder, kind: str) -> None:
    """A small tokenizer with the steps of the published ones.

    SigLIP's: words of a Unigram model, end token 1 also pads. SigLIP 2's: Gemma's BPE, whose end
    token is 1 and padding 0, written by transformers' own class.
    """
    if kind == "Siglip2":
        letters = [chr(c) for c in range(33, 90)]
        vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters]
        vocabulary += [chr(c) for c in range(97, 123)]
        numbers = {token: number for number, token in enumerate(vocabulary)}
        own = transformers.Siglip2Tokenizer(vocab=numbers, merges=[], padding_side="right")
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", 1)]
        )
        own.save_pretrained(folder)
        return
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    pieces += [(chr(c), -9.0) for c in range(97, 123)]
    own = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    own.normalizer = normalizers.Sequence([normalizers.NFKC()])
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    own.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    oracle = siglip_oracle()
    oracle.save_pretrained(folder)
    transformers.SiglipImageProcessor(size=dict(height=64, width=64)).save_pretrained(folder)
    write_tokenizer(folder, "Siglip")
    return oracle, folder


def test_siglip_computes_what_transformers_computes(siglip):
    oracle, folder = siglip
    model, processing = load_siglip(folder)
    small.assert_close(small.our_features(model), small.oracle_features(oracle))
    assert float(model.log_scale[...]) == oracle.logit_scale.item()
    assert float(model.bias[...]) == oracle.logit_bias.item()
    assert processing == siglip_processing(64)


def test_pixels_beyond_the_last_whole_patch_are_not_looked_at(tmp_path):
    siglip_oracle(image_size=70).save_pretrained(tmp_path)  # as so400m-patch14-384
    model, _ = load_siglip(tmp_path)
    pixels = np.random.default_rng(0).standard_normal((1, 70, 70, 3), np.float32)
    oracle = transformers.SiglipModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = oracle.get_image_features(torch.tensor(pixels).permute(0, 3, 1, 2))
    theirs = getattr(theirs, "pooler_output", theirs).numpy()
    ours, _ = small.encode(*nnx.split(model), pixels, small.tokens())
    small.assert_close([np.asarray(ours)], [theirs])


def test_imported_siglip_is_the_file_that_transformers_wrote(siglip, tmp_path, capsys):
    oracle, folder = siglip
    assert main(["import", str(folder), str(tmp_path / "out")]) == 0
    assert "Siglip" in capsys.readouterr().out
    reopened, report = transformers.SiglipModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    small.assert_same_tensors(reopened.state_dict(), oracle.state_dict())
    opened = open_checkpoint(str(tmp_path / "out"))
    small.assert_identical(opened.model, open_checkpoint(str(folder)).model)
    assert opened.processing == siglip_processing(64)
    assert opened.text_tokenizer()(["a cat"]).shape == (1, 12)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    image = np.full((100, 60, 3), 255, np.uint8)
    assert (np.asarray(processor(image, return_tensors="np").pixel_values) == 1).all()


def test_texts_fill_the_context_in_lower_case_without_punctuation(siglip):
    _, folder = siglip
    rows = open_checkpoint(str(folder)).text_tokenizer()
    plain = rows(["a photo of two dogs", "its cat", "a " * 30])
    assert plain.shape == (3, 12) and plain.dtype == np.int32
    # By the vocabulary's order: specials, the space, WORDS from 4 on, letters.
    number = {word: 4 + place for place, word in enumerate(WORDS)}
    words = ["a", "photo", "of", "two", "dogs"]
    assert plain[0].tolist() == [*(number[word] for word in words), *([1] * 7)]
    assert plain[2].tolist() == [number["a"]] * 11 + [1]
    np.testing.assert_array_equal(rows(["A Photo, of  two dogs!", "It's (cat)."]), plain[:2])


def test_sentencepiece_vocabulary_alone_gives_the_ids_of_transformers_tokenizer(tmp_path):
    siglip_oracle().save_pretrained(tmp_path)
    lines = ["a photo of two dogs and its cat", "the cat saw a photo", "dogs of two"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=30,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    oracle = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    texts = ["A photo, of  two dogs!", "It's unseen & w\N{LATIN SMALL LETTER O WITH DIAERESIS}rds"]
    texts += ["a photo of " * 9, "cat", "?"]
    expected = oracle(texts, padding="max_length", max_length=12, truncation=True).input_ids
    ours = open_checkpoint(str(tmp_path)).text_tokenizer()(texts)
    np.testing.assert_array_equal(ours, expected)
    (tmp_path / "spiece.model").write_bytes(b"torn")
    with pytest.raises(UserError, match="its spiece.model is not readable"):
        open_checkpoint(str(tmp_path)).text_tokenizer()


def test_siglip_2_texts_are_those_of_transformers_tokenizer(tmp_path):
    siglip_oracle().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, "Siglip2")
    texts = ["A DOG, two", "its", "a long text of many letters"]
    oracle = transformers.Siglip2Tokenizer.from_pretrained(tmp_path, padding_side="right")
    theirs = oracle(texts, padding="max_length", max_length=12, truncation=True).input_ids
    ours = open_checkpoint(str(tmp_path)).text_tokenizer()(texts)
    np.testing.assert_array_equal(ours, theirs)
    assert ours[1, -1] == 0 and 1 in ours[1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.json": None}, "its vocabulary of 100 tokens is not CLIP's, and it has no"),
        ({"tokenizer.json": "{"}, "its tokenizer.json is not readable"),
        ({"tokenizer_config.json": None}, "names no pad_token"),
    ],
)
def test_siglip_without_its_tokenizer_is_refused(siglip, tmp_path, files, said):
    for file in siglip[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name, content in files.items():
        (tmp_path / name).unlink()
        if content:
            (tmp_path / name).write_text(content)
    opened = open_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match=said):
        opened.text_tokenizer()


def test_siglip_of_any_resolution_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(UserError, match="NaFlex"):
        open_checkpoint(str(tmp_path))


def test_text_of_another_length_is_refused(siglip):
    model = open_checkpoint(str(siglip[1])).model
    with pytest.raises(UserError, match="text of 7 tokens: this model needs 12"):
        model.encode_text(np.zeros((1, 7), np.int32))


def test_saved_siglip_without_settings_has_siglips_own(siglip, tmp_path):
    model, _ = load_siglip(siglip[1])
    assert isinstance(model, Siglip)
    save_siglip(model, tmp_path / "out")
    assert open_checkpoint(str(tmp_path / "out")).processing == siglip_processing(64)
