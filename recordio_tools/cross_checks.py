"""Do index, labels and identity ranges of a file agree with its records? R records, C identities."""

from collections.abc import Iterator

import numpy as np

from recordio_tools.damage import Damage
from recordio_tools.header import EXACT_FLOAT32


def index_damage(
    keys: np.ndarray, offsets: np.ndarray, walked: np.ndarray, records: dict[str, np.ndarray]
) -> Iterator[Damage]:
    """Entries of the index (int64 [N]) that lead nowhere or twice to one place, and records that it misses.

    `walked` is the offsets of all records met, damaged ones too.
    """
    for row in np.flatnonzero(~np.isin(offsets, walked)):
        yield Damage(int(keys[row]), int(offsets[row]), "the index points here, where no record begins")
    for values, reason in ((keys, "its key stands twice in the index"), (offsets, "two keys of the index share it")):
        unique, count = np.unique(values, return_counts=True)
        for row in np.flatnonzero(np.isin(values, unique[count > 1])):
            yield Damage(int(keys[row]), int(offsets[row]), reason)
    for offset in np.setdiff1d(walked, offsets).tolist():
        yield Damage(None, offset, "the index does not name this record")
    # Writers of face sets store the key as the header's id too. Where a file does so, a record whose id is another key
    # is one that the index confuses.
    other = records["id"].astype(np.int64) != records["key"]
    if np.count_nonzero(other) * 2 < len(other):
        for row in np.flatnonzero(other & (records["key"] >= 0)):
            reason = f"the index calls it {records['key'][row]}, its header {records['id'][row]}"
            yield Damage(int(records["key"][row]), int(records["offset"][row]), reason)


def label_damage(records: dict[str, np.ndarray], identities: int | None) -> Iterator[Damage]:
    """Labels that are no number; and, where `property` declares the identities, those that are none of them."""
    label_R = records["label"]
    wrong_R = ~np.isfinite(label_R)
    if identities is not None:
        wrong_R |= (records["bare"] == 0) & ~((label_R >= 0) & (label_R < identities) & (label_R == np.floor(label_R)))
    limit = "" if identities is None else f" (property declares {identities} identities)"
    for row in np.flatnonzero(wrong_R):
        yield _damage(records, row, f"its label is {label_R[row]:g}{limit}")


def range_damage(records: dict[str, np.ndarray], unreadable: np.ndarray) -> Iterator[Damage]:
    """Identity records whose range names images that are absent or of several labels, and a record 0 that misses them.

    `unreadable` is the keys of damaged records: they are there, and named already. Ranges that reach 2^24 are left
    alone: float32 rounds them, and no reader should trust them.
    """
    image_R = records["bare"] == 0
    order = np.argsort(records["key"][image_R], kind="stable")
    image_keys, image_labels = records["key"][image_R][order], records["label"][image_R][order]
    changes = np.concatenate([[0], np.cumsum(image_labels[1:] != image_labels[:-1])])
    identity_rows = np.flatnonzero(~image_R & (records["key"] != 0) & (records["second_label"] < EXACT_FLOAT32))
    start_C, end_C = records["label"][identity_rows], records["second_label"][identity_rows]
    first_C, past_C = np.searchsorted(image_keys, start_C), np.searchsorted(image_keys, end_C)
    there = np.sort(np.concatenate([image_keys, unreadable]))
    there_C = np.searchsorted(there, end_C) - np.searchsorted(there, start_C)
    absent_C = (end_C < start_C) | (there_C != end_C - start_C)
    mixed_C = np.zeros(len(identity_rows), bool)
    used_C = ~absent_C & (past_C > first_C)
    mixed_C[used_C] = changes[past_C[used_C] - 1] != changes[first_C[used_C]]
    for bad_C, reason in ((absent_C, "names images that are not there"), (mixed_C, "holds images of several labels")):
        for identity in np.flatnonzero(bad_C):
            bounds = f"{start_C[identity]:.0f}..{end_C[identity] - 1:.0f}"
            yield _damage(records, identity_rows[identity], f"its range {bounds} {reason}")
    yield from _record_0_damage(records, unreadable)


def _record_0_damage(records: dict[str, np.ndarray], unreadable: np.ndarray) -> Iterator[Damage]:
    bare_R = records["bare"] != 0
    identity_keys = records["key"][bare_R & (records["key"] > 0)]
    exact_R = (records["label"] >= 0) & (records["second_label"] < EXACT_FLOAT32)
    for row in np.flatnonzero(bare_R & exact_R & (records["key"] == 0)):
        stated = (records["label"][row], records["second_label"][row])
        missing = np.setdiff1d(np.arange(*stated), np.concatenate([identity_keys, unreadable]))
        beyond = identity_keys[(identity_keys < stated[0]) | (identity_keys >= stated[1])]
        if len(missing) or len(beyond):
            key = int(missing[0] if len(missing) else beyond[0])
            reason = f"it places the identities at {stated[0]:.0f}..{stated[1] - 1:.0f}, which is wrong for key {key}"
            yield _damage(records, row, reason)


def _damage(records: dict[str, np.ndarray], row: int, reason: str) -> Damage:
    key = int(records["key"][row])
    return Damage(None if key < 0 else key, int(records["offset"][row]), reason)
