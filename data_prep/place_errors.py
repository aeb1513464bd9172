"""Errors of the file system, told as what they are: of reading sources, or of writing datasets."""

import os

from cocu_jax.errors import UserError
from cocu_jax.files import cannot_write


def place_error(error: OSError, data_dir: str) -> UserError:
    """One line for an error that came while a dataset was made below `data_dir`."""
    place = os.fspath(error.filename or data_dir)
    if place.startswith(os.path.expanduser(data_dir)):
        return cannot_write(place, error)
    return UserError(
        f"{place}: cannot be read ({error.strerror or error}); make it readable or correct the path"
    )
