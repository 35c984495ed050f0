"""Entries of the command line: output, files written, and one-line error messages."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from facelt.store.store import EmbeddingStore


@pytest.fixture
def recipe_file(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run")))
    return path


def python(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_python_m_facelt_train_ends_with_one_line_and_exit_code_1(recipe_file, tmp_path):
    result = python("-m", "facelt.train", "--config", recipe_file, "--set", "optim.lrr=1")
    assert (result.returncode, result.stdout) == (1, "")
    allowed = "accumulate, batch, fused, lr, momentum, nesterov, weight_decay"
    expected = f"optim.lrr: unknown key; allowed: {allowed}; did you mean 'lr'?"
    assert result.stderr == f"error: {recipe_file}: {expected}\n"
    assert not (tmp_path / "run").exists()


def test_python_m_facelt_train_names_the_run_folder(recipe, tmp_path):
    result = python("-m", "facelt.train", *short_recipe(recipe, tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"finished: {tmp_path / 'run'}\n"
    assert "plain: epoch 1/1  validation_accuracy" in result.stderr


def short_recipe(recipe, tmp_path: Path) -> list[object]:
    """Returns the options of a run with few steps."""
    stage = {**recipe(tmp_path)["stages"][0], "epochs": 1}
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run", stages=[stage])))
    return ["--config", path]


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """Runs two gloo processes."""
    return python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments)


def test_the_console_script_and_python_m_facelt_train(recipe, root, tmp_path):
    module, _, function = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"][
        "facelt"
    ].partition(":")
    script = f"from {module} import {function}; {function}()"
    options = short_recipe(recipe, tmp_path)
    result = python("-c", script, "train", *options)
    assert result.stdout == f"finished: {tmp_path / 'run'}\n", result.stderr
    result = python("-m", "facelt", "train", *options, "--resume")
    done = f"nothing to do: {tmp_path / 'run'} is finished\n"
    assert (result.returncode, result.stdout) == (0, done), result.stderr


def test_torchrun_m_facelt_train_trains_on_two_processes(recipe, tmp_path):
    result = torchrun("-m", "facelt.train", *short_recipe(recipe, tmp_path))
    assert (result.returncode, result.stdout) == (0, f"finished: {tmp_path / 'run'}\n"), result.stderr
    assert result.stderr.count("plain: epoch 1/1  validation_accuracy") == 1
    assert "FutureWarning" not in result.stderr
    # The same run by the other entry: nothing is left to do.
    result = torchrun("-m", "facelt", "train", *short_recipe(recipe, tmp_path), "--resume")
    done = f"nothing to do: {tmp_path / 'run'} is finished\n"
    assert (result.returncode, result.stdout) == (0, done), result.stderr


def test_output_of_embed_and_evaluate(cli, finished_run, tiny_faces, tmp_path):
    words = ("--images", tiny_faces, "--out", tmp_path / "store", "--workers", 0)
    code, out, _ = cli("embed", "--checkpoint", finished_run, *words)
    assert (code, out) == (0, f"42 images embedded (direct, meta, meta_unit): {tmp_path / 'store'}\n")
    assert len(EmbeddingStore.open(tmp_path / "store")) == 42
    code, out, _ = cli("evaluate", "--checkpoint", finished_run / "plain", "--json", "--workers", 0)
    assert (code, json.loads(out)["images"]["few"]) == (0, 5)


def test_usage_errors(cli):
    assert cli("train")[0] == 2
    assert "--config: missing" in cli("train")[2]
    assert cli("trian")[0] == 2


def test_missing_files_are_named(refused, recipe_file, tmp_path):
    assert "absent.yaml: cannot read the configuration" in refused("train", "--config", tmp_path / "absent.yaml")
    assert "absent.rec" in refused("train", "--config", recipe_file, "--set", f"data.train={tmp_path}/absent.rec")
    assert not (tmp_path / "run").exists()
    manifest = f"data.manifest={tmp_path}/absent.csv"
    assert "absent.csv" in refused("train", "--config", recipe_file, "--set", manifest)
    assert not (tmp_path / "run").exists()


def test_messages_are_sanitized(refused, tmp_path):
    (tmp_path / "set.bin").write_bytes(b"\x80\x04\x8c\x08\x1b[2J\x1b[1m\x8c\x01x\x93.")
    error = refused("verify", "--checkpoint", "\x1b[31mabsent\x9b", "--set", tmp_path / "set.bin")
    assert error.startswith("error: \ufffd[31mabsent\ufffd: neither a run nor a stage's folder")


def test_missing_or_unfit_initial_weights_are_named_before_training(refused, recipe_file, tmp_path):
    message = refused("train", "--config", recipe_file, "--set", f"model.pretrained={tmp_path}/absent.pth")
    assert "model.pretrained: " in message
    assert "absent.pth: no such file" in message
    assert not (tmp_path / "run").exists()
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pth")
    message = refused("train", "--config", recipe_file, "--set", f"model.pretrained={tmp_path}/part.pth")
    assert "model.pretrained: " in message
    assert "part.pth: the weights do not fit this network: backbone.conv1.weight is" in message
    assert not (tmp_path / "run").exists()
    message = refused("train", "--config", recipe_file, "--set", "stages.1.init_from=absent/plain")
    assert "absent/plain: neither a run nor a stage's folder" in message
    assert not (tmp_path / "run").exists()


@pytest.fixture
def faces(tiny_faces, tmp_path):
    """A copy of the record that a test may damage."""
    return shutil.copytree(tiny_faces.parent, tmp_path / "faces") / "train.rec"


def test_a_truncated_record_is_refused(refused, recipe_file, faces, tmp_path):
    faces.write_bytes(faces.read_bytes()[:-2000])
    message = refused("train", "--config", recipe_file, "--set", f"data.train={faces}")
    assert "train.rec" in message
    assert not (tmp_path / "run").exists()


def test_a_label_outside_property_is_refused(refused, recipe_file, faces, tmp_path):
    (faces.parent / "property").write_text("3,32,32\n")
    message = refused("train", "--config", recipe_file, "--set", f"data.train={faces}")
    assert "train.rec" in message
    assert "3" in message
    assert not (tmp_path / "run").exists()


def test_images_of_another_size_are_refused_by_name(refused, recipe_file, tmp_path):
    code = refused("train", "--config", recipe_file, "--set", "data.image_size=[64, 64]")
    assert "train.rec:" in code
    assert "32 x 32" in code


def test_a_finished_run_and_other_settings_are_refused(refused, recipe, finished_run, tmp_path):
    path = tmp_path / "same.yaml"
    path.write_text(yaml.safe_dump(recipe(finished_run)))
    assert "already holds a run; add --resume" in refused("train", "--config", path)
    message = refused("train", "--config", path, "--resume", "--set", "optim.momentum=0.8")
    assert "has other settings (optim.momentum)" in message


def test_resuming_a_finished_run(cli, recipe, finished_run, tmp_path):
    path = tmp_path / "same.yaml"
    path.write_text(yaml.safe_dump(recipe(finished_run)))
    assert cli("train", "--config", path, "--resume")[:2] == (0, f"nothing to do: {finished_run} is finished\n")


def test_a_nonfinite_loss_is_a_one_line_error(cli, recipe_file):
    code, out, error = cli("train", "--config", recipe_file, "--set", "optim.lr=1e30")
    assert (code, out) == (1, "")
    assert "Traceback" not in error
    assert "is not finite; no update was made, and max_nonfinite_steps allows only 3" in error.splitlines()[-1]


def test_embed_refuses_to_overwrite_and_a_damaged_image(cli, refused, finished_run, tmp_path):
    from recordio_tools.reader import RecordReader

    folder = tmp_path / "images"
    folder.mkdir()
    with RecordReader(json.loads((finished_run / "plain/card.json").read_text())["config"]["data"]["train"]) as record:
        for key in (1, 2, 3):
            (folder / f"{key}.png").write_bytes(bytes(record.read(key).payload))
    (folder / "4.png").write_bytes(b"nothing")
    embed = ("embed", "--checkpoint", finished_run, "--images", folder, "--out", tmp_path / "store", "--workers", 0)
    assert "1 images cannot be used, --max-bad-images allows 0: 4.png: " in refused(*embed)
    shutil.rmtree(tmp_path / "store.partial")
    code, out, error = cli(*embed, "--max-bad-images", 1)
    assert code == 0
    assert "left out 4.png: " in error
    assert "3 images embedded" in out
    assert EmbeddingStore.open(tmp_path / "store").keys == ["1.png", "2.png", "3.png"]
    assert "exists already" in refused(*embed)


def test_embed_of_missing_images(refused, finished_run, tmp_path):
    embed = ("embed", "--checkpoint", finished_run, "--out", tmp_path / "store")
    assert "absent.rec" in refused(*embed, "--images", tmp_path / "absent.rec")
    assert "absent.txt: no such file or folder" in refused(*embed, "--images", tmp_path / "absent.txt")
    (tmp_path / "list.txt").write_text("1.png\n")
    assert "a list needs --root" in refused(*embed, "--images", tmp_path / "list.txt")
    (tmp_path / "empty").mkdir()
    assert "contains no image" in refused(*embed, "--images", tmp_path / "empty")
    assert "neither a run nor a stage's folder" in refused(
        *embed[:1], "--checkpoint", tmp_path, *embed[3:], "--images", "x"
    )
    assert not (tmp_path / "store").exists()


def test_an_unknown_or_missing_device(refused, finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ("evaluate", "--checkpoint", finished_run, "--device")
    assert "no GPU is available" in refused(*words, "cuda")
    assert "cpu" in refused(*words, "gpu")


@pytest.mark.parametrize(("packages", "extras"), [(["torch"], "train"), (["torch", "faiss"], "train,cpu")])
def test_a_missing_package_is_named_with_its_extra(packages, extras, tmp_path):
    without = f"import sys; sys.modules.update(dict.fromkeys({packages})); from facelt.cli.main import main; main()"
    result = python("-c", without, "evaluate", "--checkpoint", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: this command needs the package torch: pip install 'facelt[{extras}]'\n"


@pytest.fixture
def scores(tmp_path):
    """Pairs of twelve people, half of them `a`, whose mates score low, and their attributes."""
    people = [f"p{number}" for number in range(12)]
    lines = []
    for number, person in enumerate(people):
        lines += 3 * [f"{person},{person},{0.3 if number % 2 else 0.9},1"]
        lines += [f"{person},{other},{0.01 * number},0" for other in people[:number]]
    (tmp_path / "scores.csv").write_text("\n".join(["id1,id2,score,label", *lines]))
    rows = [f"{person},{'ab'[number % 2]}" for number, person in enumerate(people)]
    (tmp_path / "people.csv").write_text("\n".join(["identity,group", *rows]))
    return ("--scores", tmp_path / "scores.csv", "--attributes", tmp_path / "people.csv", "--out", tmp_path / "report")


def test_audit_writes_a_report_and_exits_with_3_where_a_condition_holds(cli, scores, tmp_path):
    words = ("audit", *scores, "--by", "group", "--threshold-at", "score=0.5", "--consent", "asked for")
    code, out, error = cli(*words)
    assert code == 0, error
    assert out.endswith(f"report: {tmp_path / 'report' / 'report.html'}\n")
    assert "False non-match rate: b 100.00 %, a 0 %" in " ".join(out.split())
    assert json.loads((tmp_path / "report/report.json").read_text())["provenance"]["consent"] == "asked for"
    words += ("--overwrite",)
    code, _, error = cli(*words, "--fail-if", "gap(fnmr).low > 0.2", "--fail-if", "gap(fmr).low > 0.9")
    assert code == 3
    assert error.splitlines()[-1].startswith("fails: gap(fnmr).low > 0.2: gap(fnmr, by=group) is 1, limits 0.")
    code, _, error = cli(*words, "--fail-if", "ratio(fmr) > 2", "--fail-if", "gap(fmr).low > 0.9")
    assert code == 4
    assert error.splitlines()[-1] == (
        "undecided: ratio(fmr) > 2: ratio(fmr, by=group) has no value, no group has a false match"
    )
    code, _, error = cli(*words, "--fail-if", "gap(speed) > 2")
    assert code == 1
    assert "this audit has no metric 'speed'" in error.splitlines()[-1]


def test_audit_names_the_option_at_fault(refused, scores, tmp_path):
    by = ("--by", "group")
    message = refused("audit", *scores, *by, "--threshold-at", "fmt=0.1")
    assert "command line: threshold.fmt: unknown key; allowed: fmr, fpir, score, store; did you mean 'fmr'?" in message
    assert "--bins age: expected NAME=VALUE, such as age=18,30" in refused("audit", *scores, *by, "--bins", "age")
    assert "bins.age: the edges must ascend" in refused("audit", *scores, *by, "--bins", "age=30,18")
    assert "by: this key is required" in refused("audit", *scores)
    assert "nothing to audit: name embeddings, scores or training.record" in refused("audit", *by, "--out", tmp_path)
    both = refused("audit", *scores, *by, "--embeddings", tmp_path)
    assert "embeddings and scores exclude each other" in both
    assert "name either score or fmr" in refused(
        "audit", *scores, *by, "--threshold-at", "score=0.1", "--threshold-at", "fmr=0.1"
    )
    assert not (tmp_path / "report").exists()


def test_audit_counts_a_training_record_alone(cli, tiny_faces, tmp_path):
    table = tmp_path / "identities.csv"
    table.write_text("label,name,gender\n" + "\n".join(f"{label},n{label},{'fm'[label % 2]}" for label in range(6)))
    words = ("--training", tiny_faces, "--set", f"training.identities={table}", "--by", "gender")
    code, _, error = cli("audit", *words, "--out", tmp_path / "r")
    assert code == 0, error
    training = json.loads((tmp_path / "r/report.json").read_text())["training"]
    # Of 14, 12, 9, 6, 1 and no images, every other person's.
    assert {row["group"][0]: row["images"] for row in training["groupings"][0]["groups"]} == {"f": 24, "m": 18}
