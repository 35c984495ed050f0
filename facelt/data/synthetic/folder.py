"""A folder that is whole or absent, and the checks that both writers share."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from facelt.errors import UserError


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and vanishes when it does not.

    Raises UserError where something other than an empty folder is at `target`, or where it cannot be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists already; remove it or choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner alone
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def whole_number(name: str, value: int, smallest: int, largest: int = 10_000_000) -> int:
    """`value` as an int; UserError where it is no whole number in the range."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not smallest <= value <= largest:
        raise UserError(f"synthetic faces: {name} must be a whole number in {smallest}..{largest}, not {value!r}")
    return int(value)
