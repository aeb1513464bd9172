"""The one error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do about it.

    `main.py` and the command-line tools print it without a traceback and exit with status 2.
    """
