"""Feature coverage: images without usable features are named before the search, and left out only if allowed."""

import struct

import numpy as np
import pytest

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import evaluate_megaface
from eval_megaface.run import main
from eval_megaface.sources import StoreSource, TreeSource, content_hash
from facelt.config.loading import load_config
from facelt.errors import UserError
from tests.feature_files import write_feature


def run(small, *overrides, **changes):
    return evaluate_megaface(load_config(small.write_config(**changes), MegafaceConfig, overrides)).json_values()


def test_fingerprints_tell_contents_and_borders_apart():
    a = content_hash(["ab", "c"], np.arange(3))
    assert a == content_hash(["ab", "c"], np.arange(3))
    others = [(["a", "bc"], np.arange(3)), (["ab", "c"], np.arange(1, 4)), (["c", "ab"], np.arange(3)), (["ab", "c"],)]
    assert len({a, *(content_hash(*parts) for parts in others)}) == 5


@pytest.fixture
def tree(small):
    """The small suite as trees of .bin files, and the models section that names them."""
    for name, keys, rows_ND in (
        ("tree_probes", small.probes, small.probe_PD),
        ("tree_distractors", small.distractors, small.distractor_GD),
    ):
        for key, row_D in zip(keys, rows_ND, strict=True):
            write_feature(small.root / name / f"{key}_x.bin", row_D)
    return {"tree": {name: str(small.root / f"tree_{name}") for name in ("probes", "distractors")} | {"algorithm": "x"}}


def damage(small):
    """Five distractors of the tree, each unusable in its own way; returns their paths."""
    names = small.distractors[10:15]
    files = [small.root / f"tree_distractors/{name}_x.bin" for name in names]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-3])
    write_feature(files[2], np.ones(5))
    files[3].write_bytes(struct.pack("<4i6f", 6, 1, 4, 5, 1, 2, float("nan"), 4, 5, 6))
    write_feature(files[4], np.zeros(6))
    return names


def test_all_damage_is_listed_at_once(small, tree):
    names = damage(small)
    with pytest.raises(UserError) as caught:
        run(small, models=tree)
    text = str(caught.value)
    for name, reason in zip(
        names, ("missing", "21 bytes", "5 values, the other features 6", "not finite", "zero"), strict=True
    ):
        assert repr(name) in text
        assert reason in text
    assert "5 of 28 listed images" in text
    assert text.endswith("--allow-missing 5")
    assert "\n" not in text


def test_what_is_allowed_is_left_out_for_every_model(small, tree):
    names = damage(small)
    models = small.config()["models"] | tree
    with pytest.raises(UserError, match="--allow-missing 5"):
        run(small, "allow_missing=4", models=models)
    report = run(small, "allow_missing=5", models=models)
    assert report["suite"]["distractors"] == 23
    assert report["curves"][0]["rate"] == report["curves"][1]["rate"]
    assert "5 listed distractors without a usable embedding are excluded for every model." in report["notes"]
    assert report["models"]["tree"]["distractors"]["coverage"] == {
        "direct": {"listed": 28, "usable": 23, "repeated": 0}
    }
    # The same as if those images had not been listed.
    (small.root / "megaface_noises.txt").open("a").write("".join(f"{name}\n" for name in names))
    clean = run(small, models=models)
    assert [row["figures"] for row in clean["rows"]] == [row["figures"] for row in report["rows"]]


def test_a_probe_can_be_left_out(small, tree):
    (small.root / f"tree_probes/{small.probes[0]}_x.bin").unlink()
    report = run(small, "allow_missing=1", models=tree)
    assert report["suite"]["probes"] == 7
    assert "1 listed probes without a usable embedding are excluded for every model." in report["notes"]


def test_only_names_are_bounded(small, tree):
    for name in small.distractors[10:25]:
        (small.root / f"tree_distractors/{name}_x.bin").unlink()
    with pytest.raises(UserError, match=r"15 missing: .* and 10 more\)"):
        run(small, models=tree)


def test_repeated_embeddings_are_reported_and_kept(small, write_store):
    small.distractor_GD[[12, 20]] = small.distractor_GD[11]
    write_store(small.root / "repeated", small.distractors, {"direct": small.distractor_GD})
    models = small.config()["models"]
    models["plain"]["distractors"] = str(small.root / "repeated")
    report = run(small, models=models)
    assert report["suite"]["distractors"] == 28
    a, b, c = (small.distractors[row] for row in (11, 12, 20))
    expected = f"plain, direct: 2 distractors repeat another's embedding: '{b} as {a}', '{c} as {a}'."
    assert expected in report["notes"]


def test_store_and_tree_have_equal_inspections(small, tree):
    store = StoreSource(small.root / "distractors").inspect("direct", small.distractors)
    second = TreeSource(small.root / "tree_distractors", "x").inspect("direct", small.distractors)
    assert store.fingerprint == second.fingerprint
    assert store.unusable == second.unusable == {}
    missing = StoreSource(small.root / "distractors").inspect("direct", [*small.distractors[:3], "a/b.jpg"])
    assert missing.unusable == {"a/b.jpg": "missing"}
    assert missing.fingerprint != store.fingerprint


def test_the_command_prints_the_coverage(small, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(small.write_config()), "--allow-missing", "3"])
    assert not caught.value.code
    assert "distractors: direct of 28 of 28 listed images (100.00%)" in capsys.readouterr().err
