"""Hostile files: mutations of a valid one, and the check that a reader answers each in one line and bounded memory.

`FACELT_FUZZ_SECONDS` is the processor time of all targets together, a few seconds by default; an hour in `make fuzz`.
"""

import os
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from facelt.errors import UserError

SECONDS = float(os.environ.get("FACELT_FUZZ_SECONDS", "5"))
MAX_BYTES = 64 << 20
# Numbers at which lengths, counts and signs change their meaning.
_EDGES = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**29 - 1, 2**29, 2**31 - 1, 2**31, 2**32 - 1]
_EDGES += [2**63 - 1, 2**63, 2**64 - 1]
_TOKENS = [b"\x00", b"\xff", b"\n", b"\r\n", b"\t", b",", b'"', b" ", b"-1", b"..", b"/", b"\xef\xbb\xbf"]
_TOKENS += [b"\xed\xa0\x80", b"\xe2\x80\xa8", "٣".encode(), b"NaN", b"Infinity", b"1e999", b"9" * 30, b"9" * 5000]
_TOKENS += [b"[" * 2000, b"{" * 2000, b"null", b"true", b"{}", b"[]", b"\\ud800", b"\\u0000"]
_TOKENS += [b"&a *a", b"<<: *a", b"!!set", b"---\n", b"? ", b"%YAML 9\n"]


def mutate(draw: random.Random, content: bytes) -> bytes:
    """Returns the content after a few random changes: bytes, numbers, tokens, cuts, copies and swaps."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        position, size = draw.randrange(len(content) + 1), draw.choice((1, 2, 4, 8, 32))
        before, after = content[:position], content[position:]
        edge = draw.choice(_EDGES)
        match draw.randrange(8):
            case 0:
                content = before + draw.randbytes(size) + after[size:]
            case 1:
                content = before + (edge % 256 ** min(size, 8)).to_bytes(min(size, 8), "little") + after[size:]
            case 2:
                content = before + draw.choice(_TOKENS) + after
            case 3:
                content = before + draw.choice(_TOKENS) + after[size:]
            case 4:
                content = before
            case 5:
                content = before + after[draw.choice((1, 4, 16, 100)) :]
            case 6:
                content = before + content[draw.randrange(len(content) + 1) :][:200] + after
            case 7:
                content = before + str(draw.choice((edge, -edge, edge / 3))).encode() + after[size:]
    return content


def answer(read: Callable[[], object], max_lines: int = 1) -> str | None:
    """Runs a reader; returns the message of its UserError, None if it read the file.

    Raises AssertionError for a message of more lines, and for memory above the limit; lets other exceptions pass.
    """
    tracemalloc.start()
    try:
        read()
        message = None
    except UserError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_BYTES, f"{peak:,} bytes"
    if message is not None:
        assert message.count("\n") < max_lines, message[:300]
    return message


def fuzz(
    path: Path,
    seeds: Sequence[bytes],
    read: Callable[[], object],
    share: int,
    *,
    ever_refused: bool = True,
    max_lines: int = 1,
) -> None:
    """Writes mutations of the seeds to `path` and reads each, for 1/`share` of the time, at least 30 times.

    A seed itself must be read, and some mutations must be refused if any content is. A failure names the mutation.
    """
    for content in seeds:
        path.write_bytes(content)
        assert answer(read) is None
    start, number, refused = time.process_time(), 0, 0
    # An hour has other mutations each time; a short run has the same ones.
    first = 0 if SECONDS <= 60 else time.time_ns()
    while number < 30 or time.process_time() - start < SECONDS / share:
        draw = random.Random(first + number)
        content = mutate(draw, draw.choice(list(seeds)))
        path.write_bytes(content)
        try:
            refused += answer(read, max_lines) is not None
        except BaseException as error:
            error.add_note(f"mutation {first + number} of {path.name}: {content[:500]!r}")
            raise
        number += 1
    assert refused or not ever_refused
