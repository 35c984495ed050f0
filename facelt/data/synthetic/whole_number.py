"""The check of counts that both writers share."""

from facelt.errors import UserError


def whole_number(name: str, value: int, smallest: int, largest: int = 10_000_000) -> int:
    """`value` as an int; UserError where it is no whole number in the range."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not smallest <= value <= largest:
        raise UserError(f"synthetic faces: {name} must be a whole number in {smallest}..{largest}, not {value!r}")
    return int(value)
