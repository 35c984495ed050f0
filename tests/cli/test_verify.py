"""`facelt verify` on the command line: tables, JSON, computed embeddings, and one-line errors."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from facelt.report.schema import VerificationReport


@pytest.fixture
def verify(cli):
    """verify(*words) -> (exit code, stdout, stderr)."""
    return lambda *words: cli("verify", *words)


@pytest.fixture
def refused(refused):
    """refused(*words) -> the one-line error message."""
    return lambda *words: refused("verify", *words)


def test_a_model_on_two_sets(verify, finished_run, tiny_pairs):
    words = ("--checkpoint", finished_run, "--set", tiny_pairs, "--set", tiny_pairs, "--workers", 0)
    code, out, error = verify(*words, "--json")
    assert code == 0, error
    report = json.loads(out)
    assert VerificationReport.build(report).json_values() == report
    first, second = report["sets"]
    assert first == second
    assert (first["name"], first["mated"], first["nonmated"]) == ("tiny", 10, 10)
    assert report["source"]["kind"] == "direct"
    assert report["source"]["flip_averaged"] is True
    card = json.loads((finished_run / "oltr/card.json").read_text())
    assert report["source"]["weights_sha256"] == card["weights_sha256"]
    code, out, _ = verify(*words)
    assert (code, out.count("20 pairs")) == (0, 2)
    assert max(map(len, out.splitlines())) <= 80


def test_flips_and_kinds_are_other_figures(verify, finished_run, tiny_pairs):
    words = ("--checkpoint", finished_run, "--set", tiny_pairs, "--workers", 0, "--json")
    scores = {}
    for more in ((), ("--no-flip",), ("--kind", "meta"), ("--kind", "meta_unit")):
        code, out, error = verify(*words, *more)
        assert code == 0, error
        scores[more] = json.loads(out)["sets"][0]["points"][-1]["score"]
    assert len(set(scores.values())) == 4


def test_embeddings_from_elsewhere_give_the_expected_figures(verify, real_data, tmp_path):
    folder = real_data / "verification"
    expected = json.loads((folder / "expected.json").read_text())
    with np.load(folder / "lfw600_embeddings.npz") as file:
        np.save(tmp_path / "rows.npy", file["embeddings"])
    words = ("--embeddings", tmp_path / "rows.npy", "--set", folder / "lfw600_bytes.bin")
    for options in (("--embeddings", folder / "lfw600_embeddings.npz"), words):
        code, out, error = verify(*options, "--json")
        assert code == 0, error
        (figures,) = json.loads(out)["sets"]
        for key in ("accuracy_mean", "accuracy_std", "accuracy_folds"):
            assert figures[key.removesuffix("_mean")] == expected[key]
        assert (figures["mated"], figures["nonmated"]) == (300, 300)
        assert figures["points"][3]["tar"] == 1.0
        assert 0.98 < figures["points"][3]["tar_limits"][0] < 1.0


def test_embeddings_need_no_torch(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "both.npz", embeddings=random.standard_normal((80, 4)), issame=np.arange(40) % 2)
    without = "import sys; sys.modules['torch'] = None; from facelt.cli.main import main; main()"
    command = [sys.executable, "-c", without, "verify", "--embeddings", str(tmp_path / "both.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "40 pairs" in done.stdout


def test_options_that_do_not_go_together(refused, finished_run, tiny_pairs, tmp_path):
    both = "give either a model with --checkpoint or computed embeddings with --embeddings"
    assert both in refused("--set", tiny_pairs)
    assert both in refused("--set", tiny_pairs, "--checkpoint", finished_run, "--embeddings", "x.npz")
    assert "--set: give the pairs" in refused("--checkpoint", finished_run)
    plain = refused("--set", tiny_pairs, "--checkpoint", finished_run / "plain", "--kind", "meta")
    assert "stage plain makes no embedding of kind 'meta'" in plain
    np.save(tmp_path / "rows.npy", np.ones((38, 3)))
    assert "--set: give exactly one set with .npy embeddings" in refused("--embeddings", tmp_path / "rows.npy")
    for more in (("--kind", "meta"), ("--no-flip",), ("--root", tmp_path)):
        assert "--kind, --no-flip, --root: only apply with --checkpoint" in refused("--embeddings", "absent.npz", *more)
    few = refused("--embeddings", tmp_path / "rows.npy", "--set", tiny_pairs)
    assert "rows.npy: 38 embeddings for 20 pairs, expected two per pair" in few


def test_files_that_are_wrong_are_named(refused, finished_run, tiny_pairs, tmp_path):
    words = ("--checkpoint", finished_run, "--workers", 0, "--set", tiny_pairs, "--set")
    assert "absent.bin: cannot read the file" in refused(*words, tmp_path / "absent.bin")
    canary = tmp_path / "canary"

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    (tmp_path / "bad.bin").write_bytes(pickle.dumps(([Runs()], [])))
    assert "bad.bin: not a verification set (posix.mkdir is not allowed" in refused(*words, tmp_path / "bad.bin")
    assert not canary.exists()
    images, same = pickle.loads(tiny_pairs.read_bytes())
    (tmp_path / "bad.bin").write_bytes(pickle.dumps((images[:-2], same)))
    assert "bad.bin: 38 images for 20 pairs, expected two per pair" in refused(*words, tmp_path / "bad.bin")
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(([b"nothing", *images[1:]], same)))
    message = refused(*words, tmp_path / "bad.bin")
    assert "1 images cannot be used, a verification set allows 0: bad.bin:0: not a JPEG" in message
    (tmp_path / "few.npz").write_bytes(b"")
    assert "few.npz: not a .npy or .npz file" in refused("--embeddings", tmp_path / "few.npz")
    np.savez(tmp_path / "few.npz", embeddings=np.zeros((20, 3)), issame=[True, False] * 5)
    assert "few.npz: pair 0: an embedding is not finite or is zero" in refused("--embeddings", tmp_path / "few.npz")


def test_a_threshold_that_copies_decide_is_a_warning(verify, tmp_path):
    random = np.random.default_rng(0)
    embedding_ND = random.standard_normal((400, 8))
    same_P = np.arange(200) % 2 == 0
    for copies, warned in ((0, False), (40, True)):
        embedding_ND[3 : 3 + 4 * copies : 4] = embedding_ND[2 : 2 + 4 * copies : 4]
        np.savez(tmp_path / "pairs.npz", embeddings=embedding_ND, issame=same_P)
        code, out, error = verify("--embeddings", tmp_path / "pairs.npz", "--json")
        assert code == 0, error
        last = json.loads(out)["sets"][0]["points"][-1]
        assert (last["warning"] is not None) == warned
        code, out, _ = verify("--embeddings", tmp_path / "pairs.npz")
        text = "FAR 0.1: the threshold is as high as the similarity of two copies"
        assert (text in " ".join(out.split())) == warned
