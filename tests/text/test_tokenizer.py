"""The tokenizer gives CLIP's ids on everything."""

import html
import importlib.util
import json
import os
import pathlib
import pickle
import random
import re
import string
import subprocess
import sys
import zipfile

import ftfy
import numpy as np
import pytest
import regex
from hard_strings import hard_strings

from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer, clean

# Ids by open_clip's SimpleTokenizer with OpenAI's two special tokens, see `_open_clip`.
KNOWN = json.loads((pathlib.Path(__file__).parent / "clip_token_ids.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def test_ids_equal_clips_on_hard_strings(tokenizer):
    assert len(KNOWN) >= 300
    wrong = [text for text, ids in KNOWN if tokenizer.encode(text) != ids]
    assert not wrong


def test_batch_pads_with_zeros_and_keeps_the_end_when_truncating(tokenizer):
    rows = tokenizer(["a photo of a dog.", "", "dog " * 100], context_length=8)
    assert rows.dtype == np.int32
    assert rows.tolist() == [
        [SOT, 320, 1125, 539, 320, 1929, 269, EOT],
        [SOT, EOT, 0, 0, 0, 0, 0, 0],
        [SOT, 1929, 1929, 1929, 1929, 1929, 1929, EOT],
    ]


def test_empty_batch_has_no_rows(tokenizer):
    assert tokenizer([]).shape == (0, 77)


def test_plain_ascii_needs_no_repair():
    """The short way of `clean` is taken exactly where the long way changes nothing."""
    draw = random.Random(0)
    plain = [c for c in string.printable if c.isprintable() and c != "&"]
    strings = [a + b + c for a in plain for b in "'\"<;# a" for c in plain]
    strings += ["".join(draw.choices(plain, k=draw.randint(1, 80))) for _ in range(4000)]
    for text in strings:
        assert html.unescape(html.unescape(ftfy.fix_text(text))) == text


def test_clean_repairs_what_clip_repairs():
    assert clean(" Caf\u00c3\u00a9  &amp;amp;\n“Bar” ") == 'café & "bar"'


def test_words_beyond_the_cache_are_encoded_alike(tokenizer, monkeypatch):
    monkeypatch.setattr("cocu_jax.models.tokenizer._CACHED_WORDS", 0)
    bare = Tokenizer()
    texts = hard_strings(300, seed=5)
    assert [bare.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    assert len(bare._cache) == 2


def test_tokenizer_survives_pickling(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer)).encode("two dogs") == tokenizer.encode("two dogs")


def test_text_preparation_imports_neither_jax_nor_tensorflow(tmp_path):
    """Nor does mining a gallery from a text file, as a command."""
    (tmp_path / "captions.txt").write_text("a dog.\n" * 3)
    modules = "cocu_jax.models.tokenizer, cocu_jax.models.templates, data_prep.gallery.concepts"
    command = "gallery --corpus captions.txt --output gallery.json --min_count 2"
    code = f"import sys, {modules}; from data_prep.__main__ import main; main({command.split()});"
    code += "sys.exit('jax' in sys.modules or 'tensorflow' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert done.returncode == 0 and (tmp_path / "gallery.json").exists()


@pytest.mark.slow
def test_ids_equal_open_clips_on_100_000_strings(tokenizer, tmp_path):
    oracle = _open_clip(tmp_path)
    strings = hard_strings(120_000, seed=1)
    wrong = [text for text in strings if tokenizer.encode(text) != oracle.encode(text)]
    assert not wrong


def _open_clip(folder: pathlib.Path):
    """open_clip's tokenizer, from its wheel alone, with the special tokens as OpenAI wrote them."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "open-clip-torch"]
    subprocess.run([*command, "-d", str(folder)], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in ("tokenizer.py", "bpe_simple_vocab_16e6.txt.gz"):
            (folder / name).write_bytes(wheel.read(f"open_clip/{name}"))
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", folder / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    oracle = module.SimpleTokenizer()
    for ours, theirs in (
        ("<|startoftext|>", "<start_of_text>"),
        ("<|endoftext|>", "<end_of_text>"),
    ):
        oracle.encoder[ours] = oracle.encoder.pop(theirs)
        oracle.cache.pop(theirs)
        oracle.cache[ours] = ours
    pattern = oracle.pat.pattern.replace(
        "<start_of_text>|<end_of_text>",
        re.escape("<|startoftext|>") + "|" + re.escape("<|endoftext|>"),
    )
    assert pattern != oracle.pat.pattern
    oracle.pat = regex.compile(pattern, regex.IGNORECASE)
    return oracle
