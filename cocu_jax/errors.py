"""The exception for errors that the user can correct."""


class UserError(Exception):
    """Invalid input. The message is one line: what is wrong, where, and how to correct it.

    `main.py` and the command-line tools print it without a traceback and exit with status 2.
    """
