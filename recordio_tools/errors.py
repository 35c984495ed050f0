"""The one exception of this package."""


class RecordIOError(ValueError):
    """A file, key or record that is not what it should be. The message is one line naming it and what to do."""
