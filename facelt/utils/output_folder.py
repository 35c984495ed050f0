"""Output folders of commands: new or empty, or replaced whole on demand, always in one step."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from facelt.errors import UserError
from facelt.utils.folder_lock import lock_folder
from recordio_tools.atomic_io import atomic_folder

REPORT_FILE = "report.json"
_SCHEMA = re.compile(rb'\s*\{\s*"schema"\s*:\s*"([\w.]+)/')
_SCHEMA_BYTES = 1000
# Temporary files of a process that was killed.
_UNFINISHED = shutil.ignore_patterns("*.partial")


@contextmanager
def output_folder(
    out: Path, files: Sequence[str], overwrite: bool = False, *, schema: str | None = None, kept: str | None = None
) -> Iterator[Path]:
    """Yields a new folder for the files of a command; after the block it becomes `out`, after an error it is removed.

    `files` are patterns of all files that the command writes, relative to `out`; `schema` is that of its report.json.
    `out` is locked during the block, and stays as it is until its replacement is complete. The subfolder `kept` of
    intermediate results may be in it from the start, is written to directly, and is in the new folder as well.

    Raises UserError, before the block, if `out` holds a file that the command does not write or another report, since
    that is never replaced, or any file but those of `kept` without `overwrite`; and if it cannot be written.
    """
    with lock_folder(out):
        check_output_folder(out, files, overwrite, schema, kept)
        with atomic_folder(out, overwrite=True) as folder:
            yield folder
            _require_own_files(out, files, schema)  # another program may have written to it
            if kept is not None and (out / kept).is_dir():
                shutil.copytree(out / kept, folder / kept, copy_function=_link, ignore=_UNFINISHED)


def check_output_folder(
    out: Path, files: Sequence[str], overwrite: bool, schema: str | None = None, kept: str | None = None
) -> None:
    """Raises UserError if `out` may not become the folder of a command's `files`, as `output_folder` says."""
    _require_own_files(out, files, schema)
    if not overwrite and out.is_dir() and any(path.name != kept for path in out.iterdir()):
        raise UserError(
            f"{out}: exists already and is not empty; choose another folder, or replace this one with --overwrite"
        )


def _require_own_files(out: Path, files: Sequence[str], schema: str | None) -> None:
    """Raises UserError naming a file that matches no pattern, or a report of another schema."""
    patterns = [PurePosixPath(pattern) for pattern in files]
    for path in _files_in(out):
        name = PurePosixPath(path.relative_to(out))
        if not any(len(name.parts) == len(pattern.parts) and name.match(str(pattern)) for pattern in patterns):
            raise UserError(f"{out}: holds {name}, which this command does not write; choose a new or empty folder")
    if schema is None or not (out / REPORT_FILE).is_file():
        return
    with (out / REPORT_FILE).open("rb") as file:
        match = _SCHEMA.match(file.read(_SCHEMA_BYTES))
    if match is None or match[1].decode() != schema.partition("/")[0]:
        raise UserError(f"{out / REPORT_FILE}: is another report than this command's; choose a new or empty folder")


def _files_in(folder: Path) -> Iterator[Path]:
    """Yields all that is no folder below `folder`, in no order."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_in(Path(entry.path))
            else:
                yield Path(entry.path)


def _link(source: str, target: str) -> None:
    """Links a file, or copies it where the file system has no links."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
