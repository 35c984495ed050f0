"""Commands that load a trained model name its stage and epoch, and refuse a run that is not finished."""

import shutil

import pytest


@pytest.fixture
def commands(tiny_faces, tiny_pairs, tmp_path):
    """commands(run) -> the words of each command that loads the model of a run."""

    def words(run):
        images = ("--images", tiny_faces, "--workers", 0)
        return {
            "embed": ("embed", "--checkpoint", run, *images, "--out", tmp_path / "store"),
            "evaluate": ("evaluate", "--checkpoint", run, "--workers", 0),
            "known people": ("evaluate", "--checkpoint", run, "--open-images", tiny_faces),
            "verify": ("verify", "--checkpoint", run, "--set", tiny_pairs, "--workers", 0),
            "export": ("export", "--checkpoint", run, "--format", "safetensors", "--out", tmp_path / "x.safetensors"),
            "figures": ("figures", "tsne", "--checkpoint", run, "--split", "validation", "--out", tmp_path / "figures"),
            "gallery": ("gallery", "create", tmp_path / "people", "--checkpoint", run),
        }

    return words


def test_every_command_refuses_a_run_whose_last_stage_is_not_finished(refused, commands, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "oltr/card.json").unlink()
    for name, words in commands(run).items():
        message = refused(*words)
        assert message.startswith(f"error: {run}: stage oltr of this run is not finished; "), name
        assert message.endswith(f"{run / 'plain'}\n"), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_stage_and_the_epoch_are_one_line(cli, commands, finished_run):
    for name in ("embed", "verify", "export"):
        code, out, error = cli(*commands(finished_run / "plain")[name])
        assert code == 0, error
        lines = [line for line in error.splitlines() if line.startswith("model: ")]
        assert len(lines) == 1, name
        assert lines[0].startswith(f"model: {finished_run / 'plain'}: stage plain, epoch "), name
        assert lines[0].endswith(" of 2"), name
        assert "model: " not in out, name
