"""Examples of docs/python.md, run in order in a folder as the page describes it, against the commands."""

import json
import re

import numpy as np
import pytest

from recordio_tools.face_set import FaceRecord
from tests.conftest import TINY_COUNTS

BLOCKS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(finished_run, tiny_faces, tmp_path, monkeypatch):
    """The run, crops of five people and their groups, in the current folder."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "faces").symlink_to(finished_run)
    with FaceRecord(tiny_faces) as record:
        for key, label in zip(record.image_keys.tolist(), np.repeat(range(len(TINY_COUNTS)), TINY_COUNTS), strict=True):
            person = tmp_path / "crops" / f"p{label}"
            person.mkdir(parents=True, exist_ok=True)
            (person / f"{key:03d}.png").write_bytes(bytes(record.read(key).payload))
    rows = [f"p{label},{'ab'[label % 2]}" for label in range(5)]
    (tmp_path / "people.csv").write_text("\n".join(["identity,group", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_give_what_the_commands_give(folder, root, cli, capsys):
    pytest.importorskip("pandas")
    blocks = BLOCKS.findall((root / "docs" / "python.md").read_text())
    assert len(blocks) == 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "('direct', 'meta', 'meta_unit') (32, 32) (42, " in printed
    assert (folder / "report" / "report.html").is_file()
    # facelt embed on the same folder.
    words = ("--images", "crops", "--out", "store", "--dtype", "float32", "--workers", 0)
    assert cli("embed", "--checkpoint", "runs/faces", *words)[0] == 0
    for kind, value_ND in names["embeddings"].items():
        np.testing.assert_allclose(value_ND, np.load(folder / "store" / f"{kind}.npy"), atol=1e-5)
    # facelt audit on that store.
    words = ("--attributes", "people.csv", "--by", "group", "--threshold-at", "score=0.5", "--min-identities", 2)
    code, _, error = cli("audit", "--embeddings", "store", *words, "--out", "command")
    assert code == 0, error
    written, of_arrays = (json.loads((folder / name / "report.json").read_text()) for name in ("command", "report"))
    for part in ("overall", "groupings", "thresholds", "statistics"):
        assert of_arrays[part] == written[part], part
    # facelt gallery on the gallery of the page.
    probe = names["keys"][0]
    code, out, error = cli("gallery", "identify", "people", probe, "--checkpoint", "runs/faces", "--threshold", 0.1)
    assert code == 0, error
    candidate = names["result"].probes[0].candidates[0]
    assert f"{candidate.person} {candidate.score:.3f}" in out
    assert f"{probe} [('{candidate.person}', {round(candidate.score, 3)})" in printed
