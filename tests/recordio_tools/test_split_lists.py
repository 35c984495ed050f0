"""Long-tailed image lists: selected images, excluded images, and refused input."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recordio_tools.__main__ import main
from recordio_tools.errors import RecordIOError, UserError
from recordio_tools.lists import HeldOut, read_labelled_list, write_lists
from recordio_tools.long_tail import exponential_counts, pareto_counts, step_counts

COUNTS = {"b": 30, "c (2)": 25, "d 4": 20, "Ähre im Feld": 16}


@pytest.fixture
def tree(tmp_path) -> Path:
    """Folders of empty files; their content is not read."""
    for name, count in COUNTS.items():
        (tmp_path / "tree" / name / "more").mkdir(parents=True)
        for number in range(count):
            (tmp_path / "tree" / name / ("more" if number % 2 else "") / f"bild {number} ü.jpg").touch()
        (tmp_path / "tree" / name / "notes.txt").touch()
    return tmp_path / "tree"


def rows(path: Path) -> list[tuple[str, int]]:
    """Returns the lines of a list, split at the last space."""
    lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return [(name, int(label)) for name, label in (line.rsplit(" ", 1) for line in lines)]


def counts(path: Path) -> list[int]:
    return np.bincount([label for _, label in rows(path)]).tolist()


@pytest.mark.parametrize(
    ("profile", "options", "expected"),
    [
        ("exponential", {"imbalance": 5.0, "max": 20}, exponential_counts(4, 5.0, 20)),
        ("step", {"imbalance": 4.0, "max": 20}, step_counts(4, 4.0, 20)),
        ("pareto", {"max": 22, "min": 3}, pareto_counts(4, 6.0, 22, 3)),
    ],
)
def test_training_follows_the_profile_and_the_rest_is_even(tree, tmp_path, profile, options, expected):
    statistics = write_lists(tree, tmp_path / "out", profile, 3, HeldOut(2, 3), options=options)
    listed = {split: rows(tmp_path / "out" / f"{split}.txt") for split in ("train", "validation", "test")}
    assert sorted(counts(tmp_path / "out/train.txt"), reverse=True) == sorted(expected.tolist(), reverse=True)
    assert (counts(tmp_path / "out/validation.txt"), counts(tmp_path / "out/test.txt")) == ([2] * 4, [3] * 4)
    names = [name for split in listed.values() for name, _ in split]
    assert len(set(names)) == len(names)
    classes = (tmp_path / "out/classes.txt").read_text("utf-8").splitlines()
    assert classes == sorted(COUNTS)
    for name, label in (row for split in listed.values() for row in split):
        assert (tree / name).is_file()
        assert name.split("/")[0] == classes[label]
    assert statistics == json.loads((tmp_path / "out/statistics.json").read_text())
    assert statistics["train"]["images"] == sum(expected)
    assert statistics["profile"]["name"] == profile


def test_the_training_side_reads_what_is_written(tree, tmp_path):
    write_lists(tree, tmp_path / "out", "step", 0, HeldOut(1), options={"max": 4, "imbalance": 2.0})
    for split in ("train", "validation"):
        paths, label_N = read_labelled_list(tmp_path / "out" / f"{split}.txt", num_classes=4)
        assert list(zip(paths, label_N.tolist(), strict=True)) == rows(tmp_path / "out" / f"{split}.txt")


def test_step_counts_are_two_levels():
    assert step_counts(5, 100, 500).tolist() == [500, 500, 5, 5, 5]
    assert step_counts(4, 3, 10).tolist() == [10, 10, 3, 3]
    assert step_counts(1, 3, 10).tolist() == [3]


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(5, 12), min_size=1, max_size=5),
    seed=st.integers(0, 2**64 - 1),
    held=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    data=st.data(),
)
def test_any_list_is_parted_without_overlap_and_the_same_whatever_its_order(tmp_path_factory, sizes, seed, held, data):
    folder = tmp_path_factory.mktemp("lists")
    # Labels with gaps, so that the new ones differ.
    lines = [f"c{label}/{n}.jpg {3 * label}\n" for label, size in enumerate(sizes) for n in range(size)]
    selections = []
    kept = data.draw(st.integers(1, len(sizes)))
    for number, order in enumerate((lines, data.draw(st.permutations(lines)))):
        (folder / "source.txt").write_text("".join(order))
        out = folder / str(number)
        write_lists(folder / "source.txt", out, "exponential", seed, HeldOut(*held), kept, {"imbalance": 2.0, "max": 2})
        selections.append({path.name: path.read_bytes() for path in out.glob("*.txt")})
    assert selections[0] == selections[1]
    assert set(selections[0]) == {"train.txt", "classes.txt"} | {
        f"{split}.txt" for split, count in zip(("validation", "test"), held, strict=True) if count
    }
    assert counts(out / "train.txt") == exponential_counts(kept, 2.0, 2).tolist()
    parts = [
        set(rows(out / f"{split}.txt")) for split in ("train", "validation", "test") if f"{split}.txt" in selections[0]
    ]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert all(f"{name} {3 * label}\n" in lines for part in parts for name, label in part)


def test_seeds_differ_and_a_larger_part_for_validation_leaves_the_smaller_one_in(tree, tmp_path):
    def names(seed: int, validation: int, split: str) -> set[str]:
        out = tmp_path / f"{seed} {validation}"
        if not out.exists():
            write_lists(tree, out, "step", seed, HeldOut(validation), options={"max": 9, "imbalance": 3.0})
        return {name for name, _ in rows(out / f"{split}.txt")}

    assert names(1, 2, "validation") < names(1, 5, "validation")
    assert names(1, 2, "train") != names(2, 2, "train")
    assert names(1, 2, "validation") != names(2, 2, "validation")


def run(*arguments) -> int:
    """Runs one command; returns its exit code."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code or 0


def test_the_command_writes_and_prints_statistics(tree, tmp_path, capsys):
    words = ["lists", tree, "--profile", "exponential", "--imbalance", 4, "--max", 12, "--test", 1, "--identities", 3]
    assert run(*words, "--out", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out/statistics.json").read_text())
    assert counts(tmp_path / "out/train.txt") == [12, 6, 3]
    assert counts(tmp_path / "out/test.txt") == [1, 1, 1]
    assert run(*words, "--out", tmp_path / "again") == 0
    assert "train                  21\n" in capsys.readouterr().out
    # Existing files are kept, and no temporary file remains.
    assert run(*words, "--out", tmp_path / "out") == 1
    assert "exists already" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "out", "tree"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ("--profile", "step", "--max", "14", "--validation", "10", "--test", "6"),
            "class Ähre im Feld has 16 images",
        ),
        (("--profile", "step", "--max", "29", "--validation", "2"), "has 28 images, the profile needs 29"),
        (("--profile", "step", "--alpha", "2"), "--alpha does not apply to --profile step"),
        (("--profile", "exponential", "--identities", "5"), "5 identities cannot be kept: the source has 4"),
    ],
)
def test_what_the_source_cannot_give_is_refused_and_nothing_is_left(tree, tmp_path, capsys, options, reason):
    assert run("lists", tree, "--out", tmp_path / "out", *options) == 1
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_write_that_fails_leaves_nothing(tree, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        write_lists(tree, tmp_path / "out", "step", 0, options={"max": 5})
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.jpg\n", "line 1: expected a path, one space and a label"),
        ("a.jpg 0\nb.jpg -1\n", "line 2: expected a label of at least 0, found -1"),
        ("/etc/passwd 0\n", "line 1: '/etc/passwd' leads out"),
        ("a/../../b.jpg 0\n", "leads out"),
        ("a.jpg 0\nb.jpg 1\na.jpg 1\n", "line 3: a.jpg is listed twice"),
        ("\n", "the list is empty"),
        ("a.jpg 9999999999999999999\n", "line 1: expected"),
    ],
)
def test_a_list_with_a_mistake_is_refused(tmp_path, text, reason):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(RecordIOError, match=reason):
        write_lists(tmp_path / "list.txt", tmp_path / "out", "step", 0)


def test_names_that_a_list_cannot_hold_and_links_that_lead_out_are_refused(tree, tmp_path):
    bad = tree / "b" / "line\nbreak.jpg"
    bad.touch()
    with pytest.raises(RecordIOError, match="a list cannot hold") as caught:
        write_lists(tree, tmp_path / "out", "step", 0)
    assert "\n" not in str(caught.value)
    bad.unlink()
    foreign = os.fsencode(tree / "b") + b"/\xff.jpg"
    Path(os.fsdecode(foreign)).touch()
    with pytest.raises(RecordIOError, match="a list cannot hold"):
        write_lists(tree, tmp_path / "out", "step", 0)
    Path(os.fsdecode(foreign)).unlink()
    (tmp_path / "elsewhere.jpg").touch()
    (tree / "b" / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    with pytest.raises(RecordIOError, match="leads out of"):
        write_lists(tree, tmp_path / "out", "step", 0)
    assert not (tmp_path / "out").exists()
