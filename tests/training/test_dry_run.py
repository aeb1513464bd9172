"""`--dry_run` looks at everything and leaves nothing but a picture in a temporary file."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.training.dry_run import dry_run


@pytest.mark.slow
def test_everything_is_opened_and_a_batch_is_drawn(scenes_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    dry_run(scenes_config)
    printed = capsys.readouterr().out
    assert "image/patch_embed/kernel" in printed and "Total:" in printed
    assert "64 examples in 1 corpora; 6 steps of 16, 1.50 epochs" in printed
    assert re.search(r"memory \d+\.\d\d GB of \d+\.\d\d GB", printed)
    assert re.search(r"\d+ ms per step, .* images/s; loss \d+\.\d{3}", printed)
    # TensorFlow leaves the programs that it makes of our functions there.
    (left,) = [p for p in pathlib.Path(tmp_path).iterdir() if "autograph" not in p.name]
    assert f"a batch: {left}" in printed
    sheet = np.asarray(Image.open(left))
    assert sheet[:96, :96].std() > 10  # a picture
    texts = sheet[:96, 100:]
    assert (texts < 128).any() and (texts > 250).mean() > 0.8  # black on white


def test_missing_data_is_one_line(scenes_config):
    config = scenes_config.copy_and_resolve_references()
    config.data.corpora = (dict(directory="/nowhere", split="clip", annotations=""),)
    with pytest.raises(UserError, match="no TFDS dataset at /nowhere") as caught:
        dry_run(config)
    assert "\n" not in str(caught.value)


def test_missing_initial_weights_are_one_line(scenes_config):
    config = scenes_config.copy_and_resolve_references()
    config.init_from = "/nowhere/run@100"
    with pytest.raises(UserError, match="/nowhere/run@100: no such folder") as caught:
        dry_run(config)
    assert "\n" not in str(caught.value)


def test_texts_are_read_back_from_their_tokens():
    tokenizer = Tokenizer()
    texts = ["a photo of a dog", "caf\u00e9 \u732b on the table !"]
    assert [tokenizer.decode(tokens) for tokens in tokenizer(texts)] == texts
