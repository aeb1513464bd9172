"""Names that people give to their datasets; folders are called by them."""

from cocu_jax.errors import UserError
from cocu_jax.files import safe_name


def check_name(name: str, flag: str = "--name") -> str:
    """The name that `flag` gives.

    Raises:
        UserError: it cannot be the name of one folder everywhere.
    """
    if name != safe_name(name):
        raise UserError(f"{flag} {name!r}: use letters, digits, '_', '-' and '.' (not first)")
    return name
