"""Files of class names. No JAX here: `data_prep` reads this too."""

import re

from etils import epath

from cocu_jax.errors import UserError

_COMMENT = re.compile(r"(^|\s)#(\s.*|$)|^#.*")


def read_class_names(path: epath.PathLike) -> tuple[str, ...]:
    """Class names from a UTF-8 text file, one a line, see `read_lines`.

    Raises:
        UserError: no such file, no names in it, or a name twice.
    """
    names = read_lines(path)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: class {twice[0]!r} is there more than once; keep one")
    return names


def read_lines(path: epath.PathLike) -> tuple[str, ...]:
    """The lines of a file of class names that name one, without spaces around them.

    Empty lines and lines that begin with `#` are skipped; so is the rest of a line from a `#` that
    stands alone (`grass # green`), but not that of `c# code`. A byte-order mark is no part of the
    first name.

    Raises:
        UserError: no such file, or no names in it.
    """
    try:
        lines = epath.Path(path).expanduser().read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read class names ({reason}); one name a line") from None
    names = tuple(name for line in lines if (name := _COMMENT.sub("", line).strip()))
    if not names:
        raise UserError(f"{path}: no class names in it; write one name a line")
    return names
