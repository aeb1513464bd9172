import json

import ml_collections
import pytest

from cocu_jax.errors import UserError
from cocu_jax.workdir import open_workdir


def config(**fields):
    return ml_collections.ConfigDict({"seed": 0, "data": {"size": 8, "names": ("a", "b")}} | fields)


def test_the_same_config_reopens_its_directory(tmp_path):
    first = open_workdir(str(tmp_path / "run"), config())
    assert json.loads((first / "config.json").read_text())["data"]["size"] == 8
    assert open_workdir(str(tmp_path / "run"), config()) == first


def test_another_config_is_refused_and_the_field_named(tmp_path):
    open_workdir(str(tmp_path), config())
    with pytest.raises(UserError, match=r"made with config\.data\.size=8, this run has 9"):
        open_workdir(str(tmp_path), config(data={"size": 9, "names": ("a", "b")}))
    with pytest.raises(UserError, match=r"config\.extra=None, this run has 1"):
        open_workdir(str(tmp_path), config(extra=1))


def test_free_fields_may_differ(tmp_path):
    open_workdir(str(tmp_path), config(), free_fields=("data.size",))
    open_workdir(str(tmp_path), config(data={"size": 9, "names": ("a", "b")}), ("data.size",))


def test_a_process_that_does_not_write_leaves_no_trace(tmp_path):
    open_workdir(str(tmp_path / "run"), config(), writer=False)
    assert not (tmp_path / "run").exists()


def test_a_path_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there .*choose another --workdir"):
        open_workdir(str(tmp_path / "file" / "run"), config())


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable"):
        open_workdir(str(tmp_path), config())
