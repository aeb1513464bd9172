"""The tests run on eight forced host devices, so that every sharded path is a real one."""

import gc
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["JAX_PLATFORMS"] = "cpu"
forced = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}"

# torch imports Triton if it finds it, and Triton crashes a process that has loaded TensorFlow: both
# carry an LLVM. The oracles run on the CPU and need no Triton: torch does without.
sys.modules["triton"] = None

# The libraries have millions of objects, which every full collection of Python's would look through
# in vain. Collections are fewer, and leave out what is there before the first test.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket at gs://bucket; its objects are files below `bucket.folder`."""
    from fake_bucket import install

    return install(monkeypatch, tmp_path / "bucket")


@pytest.fixture(scope="module")
def small_tiles():
    """Canvases and tiles in proportion to miniature images; zeroing those of photos takes longer.

    Eight devices would fill canvases of 1024 x 2048 pixels to evaluate 40 x 60.
    """
    from cocu_jax import segmentation
    from eval import tiles

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_LARGEST_CANVAS", (64, 128))
        patch.setattr(tiles, "_TILE_SIZE", (64, 128))
        patch.setattr(segmentation, "_TILE_SIZE", (64, 128))
        yield
