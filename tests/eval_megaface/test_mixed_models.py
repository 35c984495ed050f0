"""Probes, distractors and training embeddings of one model must be of one model; allowed ones are noted."""

import pytest

from eval_megaface.run import main
from facelt.errors import UserError


def meta(digit):
    return {"model": {"weights_sha256": digit * 64}, "preprocessing": {"flip_averaged": True}}


@pytest.fixture
def models(small, write_store):
    """models(probes, distractors, train) -> the section of a model whose stores were made by these weights."""

    def make(**digits):
        rows = {
            "probes": (small.probes, small.probe_PD),
            "distractors": (small.distractors, small.distractor_GD),
            "train": ([str(row) for row in range(8)], small.train_ND),
        }
        files = {}
        for part, digit in digits.items():
            keys, value_ND = rows[part]
            path = small.root / f"{part}_{digit}"
            if not path.exists():
                write_store(path, keys, {"direct": value_ND}, meta=meta(digit) if digit else None)
            files[part] = str(path)
        return {"plain": files}

    return make


def test_one_model_gives_no_note(small, models):
    report = small.run(models=models(probes="a", distractors="a", train="a"))
    assert not [note for note in report["notes"] if "model" in note]


@pytest.mark.parametrize("odd", ["distractors", "train"])
def test_a_store_of_another_model_is_refused(small, models, odd):
    parts = {"probes": "a", "distractors": "a", "train": "a", odd: "b"}
    with pytest.raises(UserError, match=rf"{odd}_b \({odd}\) and .*probes_a \(probes\) differ in weights \(b.* and a"):
        small.run(models=models(**parts))
    report = small.run("allow_mixed_models=true", models=models(**parts))
    assert [note for note in report["notes"] if note.startswith("plain: ") and "differ in weights" in note]


def test_two_models_may_differ_from_each_other(small, models):
    first, second = models(probes="a", distractors="a"), models(probes="b", distractors="b")
    report = small.run(models={"first": first["plain"], "second": second["plain"]})
    assert len(report["rows"]) == 2


def test_a_store_that_does_not_state_its_model_is_noted(small, models):
    report = small.run(models=models(probes="a", distractors=""))
    (note,) = [note for note in report["notes"] if "one model made all" in note]
    assert note.endswith("distractors_ (distractors) does not state preprocessing, weights.")


def test_the_option_of_the_command(small, models, capsys):
    config = str(small.write_config(models=models(probes="a", distractors="b")))
    for arguments, code in (([], 1), (["--allow-mixed-models"], 0)):
        with pytest.raises(SystemExit) as caught:
            main(["--config", config, *arguments])
        assert (caught.value.code or 0) == code
        assert ("differ in weights" in capsys.readouterr().err) == bool(code)
