import os
import signal

import pytest
from etils import epath

from cocu_jax.curation.storage import waiting
from cocu_jax.curation.storage.waiting import leave_together, names_in, wait_for
from cocu_jax.stopping import Stopped, StopRequest


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(waiting, "_SHORTEST_WAIT", 0.01)


def test_each_look_is_one_and_asks_only_for_what_it_saw():
    looks, asked = iter([{1}, {1, 2}, {1, 2, 3}, {1, 2, 3}]), []

    def is_there(item):
        asked.append(item)
        return item != 3 or asked.count(3) > 1  # the third is seen before it is whole

    with StopRequest() as stop:
        wait_for([1, 2, 3], lambda: next(looks), is_there, "Wait", stop)
    assert asked == [1, 2, 3, 3]
    assert next(looks, None) is None


def test_a_stop_is_heard_while_waiting_and_between_two_items():
    with StopRequest() as stop, pytest.raises(Stopped, match="run the same command"):
        wait_for([1], set, bool, "Wait", _soon(stop))
    checked = []

    def is_there(item):
        checked.append(item)
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    with StopRequest() as stop, pytest.raises(Stopped):
        wait_for(range(1, 1000), lambda: set(range(1000)), is_there, "Wait", stop)
    assert checked == [1]


def _soon(stop):
    stop.requested = True
    return stop


def test_a_folder_that_is_not_there_has_no_names(tmp_path, bucket):
    assert names_in(epath.Path(tmp_path / "nothing")) == set()
    assert names_in(epath.Path("gs://bucket/nothing")) == set()
    epath.Path("gs://bucket/some/file").write_text("content")
    assert names_in(epath.Path("gs://bucket/some")) == {"file"}


def test_a_process_alone_leaves_at_once():
    with StopRequest() as stop:
        leave_together(stop)
