"""The exception for wrong user input, which every command prints as one line."""

# Defined in recordio_tools, whose errors are caught as the same class.
from recordio_tools.errors import UserError

__all__ = ["UserError"]
