"""Exceptions whose message is one line for the user."""


class UserError(Exception):
    """Wrong or unusable input: a file, a key, a value or a record.

    The message is one line that names it and the remedy. Commands print it and exit with code 1.
    """


class RecordIOError(UserError, ValueError):
    """A record file, list or table that cannot be read as what it should be."""
