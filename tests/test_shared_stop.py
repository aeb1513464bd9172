"""Processes of a job, here threads, stop at the same one of the moments that they count."""

import collections
import concurrent.futures
import random
import threading
import time

import jax
import pytest

from cocu_jax.shared_stop import SharedStop


class Store:
    """The promises of JAX's key-value store that are relied on, in memory, with delays."""

    def __init__(self, seed=0):
        self.values = {}
        self.changed = threading.Condition()
        self.delays = random.Random(seed)
        self.failures = 0  # calls that will find the connection lost
        self.calls = collections.Counter()  # by thread

    def key_value_set(self, key, value):
        self.travel()
        with self.changed:
            if key in self.values:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: key {key} already exists.")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        self.travel()
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
            value = self.values[key]
        self.travel()
        return value

    def travel(self):
        self.calls[threading.current_thread()] += 1
        if self.failures:
            self.failures -= 1
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses")
        time.sleep(self.delays.uniform(0, 0.002))


def run_job(store, count, moments, asked=lambda index, moment, stop: None, seconds=0.0, at_once=1):
    """The moment at which each of `count` processes stopped; None where it went to the end.

    Args:
        store: of the job.
        count: number of processes.
        moments: of the whole job.
        asked: called before each moment is counted, to ask for a stop.
        seconds: one process takes up to so long for a moment.
        at_once: the last process reports so many moments together.
    """

    def process(index):
        stop, pace = SharedStop(store, "job/", index, count), random.Random(index)
        try:
            for moment in range(1, moments + 1):
                asked(index, moment, stop)
                time.sleep(pace.uniform(0, seconds))
                together = at_once if index == count - 1 else 1
                if moment % together == 0 and stop.reached(together):
                    return moment
            return None
        finally:
            stop.close()

    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        return list(threads.map(process, range(count)))


@pytest.mark.parametrize(
    ("first", "seconds"), [(1, 0.01), (7, 0.01), (2000, 0.0)], ids=["first", "slow", "fast"]
)
def test_request_of_any_process_stops_all_at_the_same_moment(first, seconds):
    for index in (0, 2):

        def asked(i, moment, stop, index=index):
            if (i, moment) == (index, first):
                stop.request()

        # Without collectives one process may be far ahead, so far that it has finished.
        stopped = run_job(Store(seed=index), 3, 200_000 if seconds == 0 else 60, asked, seconds)
        assert len(set(stopped)) == 1 and stopped[0] is not None and stopped[0] >= first


def test_requests_of_all_processes_at_once_are_one():
    asked = lambda index, moment, stop: moment == 5 and stop.request()  # noqa: E731
    stopped = run_job(Store(), 4, 100, asked, seconds=0.005)
    assert len(set(stopped)) == 1 and 5 <= stopped[0] < 100


def test_moments_reported_together_pass_the_one_to_stop_at():
    def asked(index, moment, stop):
        if (index, moment) == (0, 10):
            stop.request()

    one, two = run_job(Store(), 2, 200, asked, seconds=0.005, at_once=8)
    assert one <= two < one + 8 and two % 8 == 0


def test_request_at_the_end_stops_all_or_none():
    for seed in range(10):

        def asked(index, moment, stop):
            if (index, moment) == (1, 50):
                stop.request()

        assert len(set(run_job(Store(seed), 3, 50, asked, seconds=0.001))) == 1


def test_nothing_is_sent_while_moments_are_counted():
    store = Store()
    assert run_job(store, 2, 2000) == [None, None]
    threads = [thread for thread in store.calls if "ThreadPool" in thread.name]
    assert [store.calls[thread] for thread in threads] == [1, 1]  # both: at the end


def test_lost_connections_are_tried_again(monkeypatch):
    monkeypatch.setattr("cocu_jax.shared_stop._RETRY_SECONDS", 0.01)
    store = Store()

    def asked(index, moment, stop):
        if (index, moment) == (0, 3):
            store.failures = 6
            stop.request()

    one, two = run_job(store, 2, 1000, asked, seconds=0.01)
    assert one == two < 1000
    assert store.failures == 0


def test_a_day_without_a_request_is_followed_by_another(monkeypatch):
    monkeypatch.setattr("cocu_jax.shared_stop._DAY_MS", 20)
    monkeypatch.setattr("cocu_jax.shared_stop._RETRY_SECONDS", 0.01)

    def asked(index, moment, stop):
        if (index, moment) == (1, 40):
            stop.request()

    one, two = run_job(Store(), 2, 200, asked, seconds=0.01)
    assert one == two and 40 <= one < 200
