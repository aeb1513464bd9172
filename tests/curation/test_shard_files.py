import numpy as np
import pytest
from etils import epath

from cocu_jax.curation.storage.shard_files import is_complete, open_arrays, write_arrays

ARRAYS = {"rows": np.arange(12, dtype=np.int32), "flags": np.eye(3, dtype=bool)}
IDENTITY = {"corpus": "a", "shard": "1", "made_from": "b"}


@pytest.fixture
def file(tmp_path):
    path = epath.Path(tmp_path) / "00001.safetensors"
    write_arrays(path, ARRAYS, IDENTITY)
    return path


def test_arrays_come_back_as_they_were_written(file):
    assert is_complete(file, IDENTITY)
    found = open_arrays(file)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_every_damaged_byte_and_truncation_is_noticed(file):
    content = file.read_bytes()
    for i in range(len(content)):
        file.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        assert not is_complete(file, IDENTITY)
    for length in range(0, len(content), 16):
        file.write_bytes(content[:length])
        assert not is_complete(file, IDENTITY)


def test_a_file_made_from_something_else_is_not_taken_for_finished(file):
    assert not is_complete(file, {**IDENTITY, "shard": "2"})
    assert not is_complete(file.parent / "00002.safetensors", IDENTITY)


def test_equal_arrays_give_equal_bytes(file):
    content = file.read_bytes()
    for _ in range(10):
        write_arrays(file, ARRAYS, IDENTITY)
        assert file.read_bytes() == content
