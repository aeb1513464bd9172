"""Curation with other encoders than OpenAI's CLIP, from files to embeddings, against torch."""

import dataclasses
import io
import json
import pathlib

import numpy as np
import pytest
import torch
import transformers
from curation_corpus import GALLERY, example, write_corpus
from flax import nnx
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from cocu_jax.curation import job
from cocu_jax.curation.storage.shard_files import open_arrays
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus, read_shard
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.siglip import Siglip, SiglipConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.huggingface import save_clip, save_siglip
from configs.curate import get_config

WORDS = sorted({word for concept in GALLERY for word in concept.split()} | {"a", "photo", "of"})
CONTEXT = 10


def write_siglip(folder) -> None:
    """A SigLIP of random weights whose tokenizer knows the gallery's words; 1 ends and pads."""
    text = dataclasses.replace(
        SiglipConfig().text, vocab_size=40, context_length=CONTEXT, width=32, heads=2, layers=1
    )
    config = SiglipConfig(
        image_size=16, patch_size=8, vision_width=32, vision_layers=1, vision_heads=2, text=text,
        projection_dim=32,
    )  # fmt: skip
    save_siglip(Siglip(config, rngs=nnx.Rngs(0)), str(folder))
    own = Tokenizer(models.WordLevel(dict(numbers()), unk_token="<unk>"))
    own.normalizer, own.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    own.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def numbers() -> dict[str, int]:
    """Token ids by word."""
    return {word: place for place, word in enumerate(["<unk>", "</s>", *WORDS])}


def curate(workdir, **fields) -> pathlib.Path:
    """Runs the job; returns the directory of its embeddings."""
    config = get_config()
    config.update_from_flattened_dict(dict(batch_size=2, page_images=0, parquet=False) | fields)
    job.curate(config, str(workdir))
    (root,) = (workdir / "embeddings").iterdir()
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return open_corpus(write_corpus(folder, [example(i) for i in range(12)], 1), "train")


def test_siglip_embeds_what_transformers_embeds(corpus, tmp_path):
    folder = tmp_path / "siglip"
    write_siglip(folder)
    root = curate(tmp_path / "run", **{"corpus.directory": corpus.directory, "clip": str(folder)})
    (file,) = (root / corpus.fingerprint).iterdir()
    images = open_arrays(file)["embeddings"]
    texts = open_arrays(root / "concepts.safetensors")["embeddings"]
    model = transformers.SiglipModel.from_pretrained(folder).eval()
    # SigLIP's own processing, written out: both sides squeezed, values from -1 to 1.
    opened = [
        Image.open(io.BytesIO(e["image"])).convert("RGB").resize((16, 16), Image.BICUBIC)
        for e in read_shard(corpus, 0).as_numpy_iterator()
    ]
    pixels = np.stack([np.asarray(image, np.float32) for image in opened]) / 127.5 - 1
    rows = np.ones((len(GALLERY), CONTEXT), np.int64)
    for row, concept in zip(rows, GALLERY, strict=True):
        words = f"a photo of a {concept}".split()
        row[: len(words)] = [numbers()[word] for word in words]
    with torch.no_grad():
        image = model.get_image_features(torch.tensor(pixels).permute(0, 3, 1, 2)).pooler_output
        text = model.get_text_features(torch.tensor(rows)).pooler_output
    # float16 keeps 3 digits; a picture may differ by a grey level where Pillow rounds twice.
    np.testing.assert_allclose(images, image / image.norm(dim=-1, keepdim=True), atol=1e-2)
    np.testing.assert_allclose(texts, text / text.norm(dim=-1, keepdim=True), atol=1e-3)


def test_clip_of_an_unknown_vocabulary_is_refused_before_anything_is_embedded(corpus, tmp_path):
    text = TextConfig(vocab_size=100, context_length=12, width=16, heads=1, layers=1)
    config = CLIPConfig(
        image_size=16, patch_size=8, vision_width=16, vision_layers=1, vision_heads=1, text=text
    )
    save_clip(CLIP(config, rngs=nnx.Rngs(0)), str(tmp_path / "clip"))
    fields = {"corpus.directory": corpus.directory, "clip": str(tmp_path / "clip")}
    with pytest.raises(UserError, match="vocabulary of 100 tokens is not CLIP's"):
        curate(tmp_path / "run", **fields)
