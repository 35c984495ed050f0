"""`facelt recipes`, and recipes by name on the command line."""

import json

import yaml

from facelt.config.recipes import RECIPES_FOLDER, recipe_names
from recordio_tools.face_set import FaceRecord


def test_recipes_are_listed_with_command_and_summary(cli):
    code, out, error = cli("recipes")
    assert code == 0, error
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    assert [row[0] for row in rows] == recipe_names()
    assert {row[1] for row in rows} == {"train", "audit", "megaface"}
    assert ["audit_scores", "audit", "Audit of scores of another system."] in rows


def test_show_prints_the_yaml(cli, refused):
    code, out, _ = cli("recipes", "show", "demo")
    assert (code, out) == (0, (RECIPES_FOLDER / "demo.yaml").read_text())
    assert "dmo: no such recipe; did you mean demo" in refused("recipes", "show", "dmo")


def test_the_version_is_printed(cli):
    import facelt

    assert cli("--version")[:2] == (0, f"facelt {facelt.__version__}\n")


def test_a_recipe_is_named_by_a_word_or_the_option(cli, tiny_faces, tmp_path):
    words = ("demo", "--set", f"data.train={tiny_faces}", "--set", "data.image_size=[32, 32]", "--json")
    results = [cli("dataset", *words), cli("dataset", "--config", *words)]
    assert [code for code, _, _ in results] == [0, 0], results
    assert results[0] == results[1]
    with FaceRecord(tiny_faces) as record:
        images = len(record.image_keys)
    splits = json.loads(results[0][1])["splits"]
    assert sum(splits[name]["images"] for name in ("train", "validation", "test")) == images


def test_a_recipe_that_is_missing_or_given_twice_is_a_usage_error(cli, tmp_path):
    for command in ("train", "dataset", "megaface"):
        code, _, error = cli(command)
        assert code == 2
        assert "--config" in error
        assert cli(command, "demo", "--config", "demo")[0] == 2
    assert cli("audit", "demo", "--config", "demo")[0] == 2
    assert cli("train", "demo", "ms1m_lt")[0] == 2


def test_train_takes_a_word_next_to_resume_and_auto(cli, refused, recipe, finished_run, tmp_path):
    path = tmp_path / "same.yaml"
    path.write_text(yaml.safe_dump(recipe(finished_run)))
    expected = (0, f"nothing to do: {finished_run} is finished\n")
    assert cli("train", path, "--resume")[:2] == expected
    assert cli("train", path, "--resume", "auto")[:2] == expected
    assert cli("train", "--resume", path)[:2] == expected
    assert cli("train", path, "auto")[0] == 2
    assert "this is a configuration of `facelt megaface`" in refused("train", "megaface")
    assert "this is a configuration of `facelt train`" in refused("megaface", path)
    assert "this is a configuration of `facelt train`" in refused("audit", path, "--by", "gender")
