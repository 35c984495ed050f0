"""The one exception a user can cause: every entry turns it into one line on stderr and exit code 1."""


class UserError(Exception):
    """A mistake in what the user handed over: a file, a key, a value or a record.

    The message is one line that names the thing and says what to do about it.
    """
