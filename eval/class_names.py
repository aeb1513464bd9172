"""Files of class names. Does not import JAX, because `data_prep` uses it."""

import re

from etils import epath

from cocu_jax.errors import UserError

_COMMENT = re.compile(r"(^|\s)#(\s.*|$)|^#.*")


def read_class_names(path: epath.PathLike) -> tuple[str, ...]:
    """Reads class names from a UTF-8 text file, one per line, see `read_lines`.

    Raises:
        UserError: the file cannot be read, has no names, or has a name twice.
    """
    names = read_lines(path)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: class {twice[0]!r} is listed more than once; keep one")
    return names


def read_lines(path: epath.PathLike) -> tuple[str, ...]:
    """Reads the lines of a file of class names, without comments and surrounding spaces.

    Empty lines and lines that begin with `#` are skipped. A `#` that stands alone starts a comment
    (`grass # green`), but the one in `c# code` does not. A byte-order mark is ignored.

    Raises:
        UserError: the file cannot be read, or has no names.
    """
    try:
        lines = epath.Path(path).expanduser().read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read class names ({reason}); write one per line") from None
    names = tuple(name for line in lines if (name := _COMMENT.sub("", line).strip()))
    if not names:
        raise UserError(f"{path}: no class names in it; write one per line")
    return names
