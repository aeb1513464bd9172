"""What a checkpoint states is compared with its file before anything of that size is allocated."""

import io
import json
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import small_checkpoints as small
import torch

from cocu_jax.errors import UserError
from cocu_jax.models.weights import source
from cocu_jax.models.weights.__main__ import main
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.models.weights.inert_pickle import read_pickle
from cocu_jax.models.weights.safetensors_file import open_safetensors
from cocu_jax.models.weights.torch_file import open_torch

HUGE = 2**40


def rewritten(folder, compression=zipfile.ZIP_STORED, **changed: bytes):
    """A torch file of one tensor, with some members (by the end of their name) replaced."""
    original = io.BytesIO()
    torch.save({"x": torch.arange(6.0)}, original)
    with (
        zipfile.ZipFile(original) as old,
        zipfile.ZipFile(folder / "x.pth", "w", compression) as new,
    ):
        for entry in old.infolist():
            content = changed.get(entry.filename.rpartition("/")[2].replace(".", "_"))
            new.writestr(entry.filename, old.read(entry) if content is None else content)
    return folder / "x.pth"


def expanded(shape, strides, offset=0) -> bytes:
    """A pickle that describes a tensor of any shape over the file's only buffer."""
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(6.0).as_strided(shape, strides, offset)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def test_rewritten_file_without_changes_is_read(tmp_path):
    tensor = open_torch(rewritten(tmp_path))["x"]
    np.testing.assert_array_equal(tensor.read(), np.arange(6, dtype=np.float32))


@pytest.mark.parametrize(
    ("shape", "strides"), [((HUGE, 4), (0, 1)), ((7,), (1,)), ((2, HUGE), (1, 0)), ((3,), (3,))]
)
def test_tensor_larger_than_its_buffer_is_refused(tmp_path, shape, strides):
    pickled = expanded((2, 2), (1, 1)) if len(shape) == 2 else expanded((2,), (1,))
    # The numbers as torch pickles them: small ones in one byte, others as a long of eight.
    with_shape = _replace_numbers(pickled, shape, strides)
    file = rewritten(tmp_path, data_pkl=with_shape)
    with pytest.raises(UserError, match="x.pth: tensor x exceeds its buffer"):
        open_torch(file)


def _replace_numbers(pickled: bytes, shape, strides) -> bytes:
    def number(n: int) -> bytes:
        return pickle.LONG1 + b"\x08" + struct.pack("<q", n)

    def tuples(a, b) -> bytes:
        end = {1: pickle.TUPLE1, 2: pickle.TUPLE2}[len(a)]
        return b"".join(map(number, a)) + end, b"".join(map(number, b)) + end

    rank = len(shape)
    small_shape = b"K\x02" * rank + {1: pickle.TUPLE1, 2: pickle.TUPLE2}[rank]
    small_strides = b"K\x01" * rank + {1: pickle.TUPLE1, 2: pickle.TUPLE2}[rank]
    new_shape, new_strides = tuples(shape, strides)
    assert pickled.count(small_shape) == pickled.count(small_strides) == 1
    return pickled.replace(small_shape, new_shape).replace(small_strides, new_strides)


def test_packed_members_are_refused(tmp_path):
    bomb = bytes(50_000_000)
    file = rewritten(tmp_path, zipfile.ZIP_DEFLATED, data_pkl=bomb)
    with pytest.raises(UserError, match="data.pkl is larger than the file"):
        open_torch(file)
    file = rewritten(tmp_path, zipfile.ZIP_DEFLATED, **{"0": bomb})
    with pytest.raises(UserError, match="tensor x is compressed"):
        open_torch(file)


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.PROTO + b"\x02" + pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + b".",
        pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", HUGE) + b".",
        pickle.PROTO + b"\x04" + pickle.BINBYTES8 + struct.pack("<Q", HUGE) + b".",
        pickle.PROTO + b"\x04" + pickle.FRAME + struct.pack("<Q", HUGE) + b".",
        pickle.PROTO + b"\x02" + pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b".",
    ],
)
def test_pickle_that_states_a_huge_size_allocates_nothing(pickled):
    with pytest.raises(ValueError, match="."):
        read_pickle(pickled)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 20e6  # kB; the sizes are above that


def test_module_that_contains_itself_is_refused():
    # M = M'; M'.state = {"m": M'}: memo 0 is the module.
    name = b"c__torch__.M\nM\n)\x81q\x00"
    cyclic = pickle.PROTO + b"\x02" + name + b"}X\x01\x00\x00\x00mh\x00sb."
    with pytest.raises(ValueError, match="nested too deep"):
        read_pickle(cyclic).values()


@pytest.mark.parametrize("header", [HUGE, 90_000_000, 0])
def test_safetensors_header_longer_than_the_file_is_refused(tmp_path, header):
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", header) + b"{}")
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        open_safetensors(file)


@pytest.mark.parametrize(
    ("shape", "offsets"), [([HUGE], [0, 4 * HUGE]), ([HUGE], [0, 4]), ([1], [0, 400])]
)
def test_safetensors_tensor_larger_than_the_file_is_refused(tmp_path, shape, offsets):
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        open_safetensors(file)


def test_settings_that_are_too_long_are_refused_before_they_are_read(tmp_path, monkeypatch):
    small.clip_oracle().save_pretrained(tmp_path)
    monkeypatch.setattr(source, "_LARGEST_SETTINGS", 5000)
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes(b" " * 5001)
        with pytest.raises(UserError, match=rf"{name}: has 5,001 bytes"):
            open_checkpoint(str(tmp_path))
        (tmp_path / name).unlink()


def test_model_with_an_unknown_vocabulary_is_refused_where_texts_count(tmp_path):
    small.clip_oracle().save_pretrained(tmp_path)
    opened = open_checkpoint(str(tmp_path))
    assert not opened.has_clip_vocabulary()
    with pytest.raises(UserError, match="its vocabulary of 100 tokens is not CLIP's"):
        opened.text_tokenizer()


def test_clip_with_its_own_tokenizer_is_read_with_it(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    small.clip_oracle().save_pretrained(tmp_path)
    start, end = small.VOCABULARY - 2, small.VOCABULARY - 1
    words = {"<unk>": 0, "a": 1, "photo": 2, "of": 3, "dog": 4, "<start>": start, "<end>": end}
    own = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="does not end a text with token 99"):
        open_checkpoint(str(tmp_path)).text_tokenizer()
    own.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    own.save(str(tmp_path / "tokenizer.json"))
    opened = open_checkpoint(str(tmp_path))
    assert not opened.has_clip_vocabulary()
    rows = opened.text_tokenizer()(["a photo of dog", "dog", "a " * 30])
    assert rows.tolist()[:2] == [[start, 1, 2, 3, 4, end] + [0] * 6, [start, 4, end] + [0] * 9]
    assert rows[2].tolist() == [start, *([1] * 10), end]
    words["strange"] = 5 + small.VOCABULARY
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has token 105, the model has 100 tokens"):
        open_checkpoint(str(tmp_path)).text_tokenizer()


def test_existing_file_is_not_called_a_missing_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_text("not a model")
    assert main(["import", "model", "out"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "no such folder" not in line and "not a torch checkpoint" in line
