"""Curation in processes of their own, as `test_curation_processes` starts it.

Reads rounds from standard input, one per line: a JSON list of children that run at the same time.
A child has `config` (flattened fields), `workdir`, and perhaps `bucket` (the folder of `workdir` is
a bucket to it), `devices`, `distributed` (arguments
of `jax.distributed.initialize`), `shutdown_timeout` (of its barrier, seconds; such a child is not
recoverable), `lingers` (seconds that its last step takes longer), `kill_after` (seconds until it
gets a SIGKILL), `files` (the seconds count from when its work directory holds that many) and
`comes_back` (to be started again once it was killed). Answers each round with its children's exit
codes, a list per child, -9 where it was killed. Children are forks, so that imports are paid once.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time

import fake_bucket
import jax
import pytest

from cocu_jax.curation import job
from configs.curate import get_config


def run_child(child):
    jax.config.update("jax_num_cpu_devices", child.get("devices", 2))
    if child.get("distributed"):
        timeout = child.get("shutdown_timeout")
        # as JAX_ENABLE_RECOVERABILITY=1
        jax.config.update("jax_enable_recoverability", timeout is None)
        options = {"shutdown_timeout_seconds": timeout} if timeout else {}
        jax.distributed.initialize(*child["distributed"], **options)
    config = get_config()
    config.update_from_flattened_dict(child["config"])
    if child.get("lingers"):
        finish = job.finish
        job.finish = lambda *args: time.sleep(child["lingers"]) or finish(*args)
    workdir = child["workdir"]
    if child.get("bucket"):
        folder, name = os.path.split(workdir)
        fake_bucket.install(pytest.MonkeyPatch(), folder)
        workdir = f"gs://bucket/{name}"
    with open(f"{child['workdir']}.log", "a") as log, contextlib.redirect_stderr(log):
        job.curate(config, workdir)


def run_to_its_end(child, codes):
    """Appends the exit code of each process that it takes."""
    process = multiprocessing.get_context("fork").Process(target=run_child, args=(child,))
    process.start()
    while process.is_alive() and number_of_files(child["workdir"]) < child.get("files", 0):
        time.sleep(0.002)
    process.join(child.get("kill_after"))
    process.kill()
    process.join()
    codes.append(process.exitcode)
    if process.exitcode and child.get("comes_back"):
        run_to_its_end({**child, "kill_after": None, "comes_back": False}, codes)


def number_of_files(folder):
    return sum(len(files) for _, _, files in os.walk(folder))


def run_round(children):
    """Exit codes of children that run at the same time.

    Plain threads: a fork of a `concurrent.futures` thread would wait for itself at its end.
    """
    codes = [[] for _ in children]
    runs = zip(children, codes, strict=True)
    threads = [threading.Thread(target=run_to_its_end, args=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return codes


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run_round(json.loads(line))), flush=True)
