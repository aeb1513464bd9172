"""Generating TFDS datasets without what TFDS does for downloads."""

import contextlib
import io
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds
from absl import logging


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Suppresses TFDS's warning of an unknown config, its download messages and its bars.

    The bars of this project show the total and the time left.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def generate(builder: tfds.core.DatasetBuilder, **download_config) -> None:
    """Writes the dataset of a builder, unless it is there already.

    The folder that TFDS makes for downloads is a temporary one: nothing is downloaded, and beside
    the datasets it would remain.

    Args:
        builder: of the dataset.
        download_config: fields of `tfds.download.DownloadConfig`.
    """
    with tempfile.TemporaryDirectory(prefix="downloads-") as folder:
        builder.download_and_prepare(
            download_dir=folder, download_config=tfds.download.DownloadConfig(**download_config)
        )
