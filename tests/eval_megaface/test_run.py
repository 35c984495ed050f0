"""MegaFace evaluation as a script and as a function, and its one-line errors."""

import json
import subprocess
import sys

import pytest

from eval_megaface.run import main


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_script_writes_the_report(small, root, tmp_path):
    command = [sys.executable, str(root / "eval_megaface/run.py"), "--config", str(small.write_config())]
    command += ["--set", "noise.mode=raw", "--set", "title=Small & raw", "--out", str(tmp_path / "there")]
    command += ["--set", "verification=true", "--set", "open_set={}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "there/report.json").read_text())
    assert report["title"] == "Small & raw"
    assert report["suite"]["noise"]["mode"] == "raw"
    assert "there/report.html" in done.stdout
    assert "Verification: TAR in % at FAR" in done.stdout
    assert "- FPIR 0.1: a rate of 0.1 needs 10 non-mated searches" in done.stdout
    run, page = report["run"], (tmp_path / "there/report.html").read_text()
    assert run["command"].startswith("facelt megaface --config ")
    assert run["seeds"] == {"noise.seed": 0, "open_set.seed": 0}
    assert run["settings"]["noise"]["mode"] == "raw"
    for item in run["inputs"]:
        again = subprocess.run(["bash", "-c", item["command"]], capture_output=True, text=True, cwd=tmp_path)
        assert again.stdout.split()[0] == item["sha256"]
        assert item["sha256"] in page
    assert len(run["inputs"]) > 4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--set", "noise.mode=none"], "noise.mode"),
        (["--set", "suite.facescrub_lst=x"], "did you mean 'facescrub_list'"),
        (["--set", "ranks=[0]"], "ranks"),
        (["--set", "interval.replicates=2000"], "interval.replicates: unknown key; allowed: level"),
        (["--set", "suite.actors=null"], "actors and actresses go together"),
        (["--set", "suite.root=nowhere"], "cannot be read"),
    ],
)
def test_a_users_mistake_is_one_line(small, capsys, arguments, match):
    assert exit_code("--config", str(small.write_config()), *arguments) == 1
    error = capsys.readouterr().err
    assert match in error
    assert "Traceback" not in error
    assert not (small.root / "out").exists()


def test_allow_overlap(small, capsys):
    (small.root / "names.csv").write_text("name\nAnn_Lee\n")
    models = small.config()["models"]
    models["plain"]["training_identities"] = str(small.root / "names.csv")
    config = str(small.write_config(models=models))
    assert exit_code("--config", config) == 1
    assert "Ann_Lee" in capsys.readouterr().err
    assert exit_code("--config", config, "--allow-overlap") == 0
    assert "Ann_Lee" in json.loads((small.root / "out/report.json").read_text())["notes"][-1]


def test_shipped_configuration_is_valid(root):
    from eval_megaface.config import MegafaceConfig
    from facelt.config.loading import load_config

    assert load_config(root / "configs/megaface.yaml", MegafaceConfig).shots_reference_model("oltr") == "plain"


def test_help_loads_nothing_heavy(root):
    code = "import sys; from eval_megaface.run import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'faiss', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_no_file_bears_a_standard_library_name(root):
    names = {path.stem for path in (root / "eval_megaface").glob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)
