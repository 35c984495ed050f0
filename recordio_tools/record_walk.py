"""A walk over a .rec that goes on after damage."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from recordio_tools.errors import RecordIOError
from recordio_tools.framing import FIRST, WHOLE, find_record, read_frame, read_record


class Step(NamedTuple):
    """One record: its offset, and either its bytes or the reason why it cannot be read."""

    offset: int
    record: memoryview | None
    reason: str | None


def walk_records(view: memoryview, indexed: Sequence[int]) -> Iterator[Step]:
    """Every record of the file in order, damaged ones too.

    `indexed` is the sorted offsets that an index names, empty where there is none. They tell which record is at fault
    where a length and the place of the next record disagree.
    """
    offset = 0
    while offset < len(view):
        try:
            record, following = read_record(view, offset)
        except RecordIOError as error:
            yield Step(offset, None, str(error))
            offset = find_record(view, offset + 4)
            continue
        swallowed = _swallowed(view, indexed, offset, following)
        if swallowed is not None:
            yield Step(offset, None, f"its length runs over the record at offset {swallowed}")
            offset = swallowed
        elif _misses(view, indexed, following) and (
            (found := find_record(view, offset + 4)) < following or len(indexed)
        ):
            yield Step(offset, None, f"its length ends at offset {following}, where no record begins")
            offset = found
        else:
            yield Step(offset, record, None)
            offset = following


def _swallowed(view: memoryview, indexed: Sequence[int], offset: int, following: int) -> int | None:
    """The first record that the index names inside this one."""
    inside = indexed[bisect_right(indexed, offset) : bisect_left(indexed, following)]
    return next((place for place in inside if _begins_record(view, place)), None)


def _misses(view: memoryview, indexed: Sequence[int], following: int) -> bool:
    """Whether a length leads to where neither the file nor the index has a record."""
    if following >= len(view) or _begins_record(view, following):
        return False
    place = bisect_left(indexed, following)
    return not (place < len(indexed) and indexed[place] == following)


def _begins_record(view: memoryview, offset: int) -> bool:
    try:
        return read_frame(view, offset)[0] in (WHOLE, FIRST)
    except RecordIOError:
        return False
