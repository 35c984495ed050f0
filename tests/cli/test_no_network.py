"""Training, embedding and an audit need no network: they run in a network namespace without any interface."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

# As `facelt` does it, in one process: libraries are loaded once.
PROGRAM = """
import json, socket, sys
from facelt.cli.main import app
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
    raise SystemExit("this process has a network")
except OSError:
    pass
for command in json.loads(sys.argv[1]):
    try:
        app(command)
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def isolated():
    """The words before a command that take its network away; the user becomes root of the namespace only."""
    words = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("network namespaces are not permitted here")
    return words


def test_one_step_of_training_embedding_and_an_audit(isolated, recipe, tiny_faces, tmp_path):
    stage = {**recipe(tmp_path)["stages"][0], "epochs": 1}
    values = recipe(tmp_path / "run", stages=[stage], optim={"lr": 0.05, "batch": 32})
    values["data"]["validation_fraction"] = 0
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    table = tmp_path / "groups.csv"
    table.write_text("identity,group\n" + "".join(f"{label},{'ab'[label % 2]}\n" for label in range(6)))
    run, store, report = (str(tmp_path / name) for name in ("run", "store", "report"))
    audit = ["audit", "--embeddings", store, "--attributes", str(table), "--by", "group", "--min-identities", "2"]
    commands = [
        ["train", "--config", str(tmp_path / "recipe.yaml")],
        ["embed", "--checkpoint", run, "--images", str(tiny_faces), "--out", store],
        [*audit, "--out", report, "--set", "threshold.fmr=0.1"],
    ]
    command = [*isolated, sys.executable, "-c", PROGRAM, json.dumps(commands)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "report/report.json").read_text())["groupings"]
    # The page does not load anything either.
    assert "://" not in (tmp_path / "report/report.html").read_text()
