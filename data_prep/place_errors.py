"""Distinguishes file-system errors of reading sources from those of writing datasets."""

import os

from cocu_jax.errors import UserError
from cocu_jax.files import cannot_write


def place_error(error: OSError, data_dir: str) -> UserError:
    """The `UserError` for a file-system error during the preparation of a dataset in `data_dir`."""
    place = os.fspath(error.filename or data_dir)
    if place.startswith(os.path.expanduser(data_dir)):
        return cannot_write(place, error)
    return UserError(
        f"{place}: cannot be read ({error.strerror or error}); make it readable or correct the path"
    )
