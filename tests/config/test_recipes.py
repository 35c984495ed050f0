"""Recipes by name: files, summaries, texts that work in any folder, and words that are no recipe."""

import re
from pathlib import Path

import pytest
import yaml

from facelt.config.audit import AuditConfig
from facelt.config.loading import command_of, load_config, read_layers
from facelt.config.recipes import RECIPES_FOLDER, find_config, recipe_names, recipe_summary, recipe_text
from facelt.config.train import TrainConfig
from facelt.errors import UserError

NAMES = recipe_names()


def test_every_file_of_configs_is_a_recipe(root):
    files = {str(path.relative_to(root / "configs")) for path in (root / "configs").rglob("*.yaml")}
    assert {f"{name}.yaml" for name in NAMES} == files
    assert root / "configs" == RECIPES_FOLDER


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_is_one_sentence_without_commands(name):
    summary = recipe_summary(name)
    assert summary.endswith(".")
    assert not re.search(r"facelt|python|configs/|\.\s", summary)
    assert len(summary) < 260


def test_the_summary_is_the_first_sentence_of_the_comment_over_its_lines(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("# Faces (Li et al., 2020) at 64\n# pixels. More.\nout: x\n# Other.\n")
    (tmp_path / "none.yaml").write_text("out: x\n")
    monkeypatch.setattr("facelt.config.recipes.RECIPES_FOLDER", tmp_path)
    assert recipe_summary("mine") == "Faces (Li et al., 2020) at 64 pixels."
    assert recipe_summary("none") == ""


@pytest.mark.parametrize("name", ["ms1m_lt", "faces_small_oltr", "cifar100_lt/ldam_drw"])
def test_a_printed_recipe_works_in_any_folder(name, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(recipe_text(name))
    monkeypatch.chdir(tmp_path)
    assert read_layers(Path("mine.yaml")).values() == read_layers(RECIPES_FOLDER / f"{name}.yaml").values()
    # The base was not resolved by a file that happens to be in the folder.
    assert not re.search(r"^base: .*\.yaml", recipe_text(name), re.MULTILINE)


def test_a_name_a_path_and_a_base_find_the_same_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = load_config(Path("cifar100_lt/ldam"), TrainConfig)
    assert by_name == load_config(RECIPES_FOLDER / "cifar100_lt" / "ldam.yaml", TrainConfig)
    Path("mine.yaml").write_text("base: cifar100_lt/ldam\nseed: 7\n")
    assert load_config(Path("mine.yaml"), TrainConfig) == by_name.model_copy(update={"seed": 7})


def test_a_file_comes_before_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert find_config("demo") == RECIPES_FOLDER / "demo.yaml"
    Path("ms1m_lt").write_text("seed: 3\n")
    assert find_config("ms1m_lt") == Path("ms1m_lt")
    assert read_layers(Path("ms1m_lt")).values() == {"seed": 3}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ms1mlt", r"^ms1mlt: neither a file nor a recipe; did you mean ms1m_lt\? `facelt recipes` lists"),
        ("ldam_drw", r"did you mean cifar100_lt/ldam_drw\?"),
        ("../configs/demo", "neither a file nor a recipe"),
        ("configs/demo.yaml", "No such file or directory.; the recipe that comes with facelt is named demo"),
        ("absent.yaml", r"No such file or directory\)$"),
    ],
)
def test_a_word_that_is_neither_file_nor_recipe_is_refused(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        read_layers(Path(word)).values()
    Path("mine.yaml").write_text(yaml.safe_dump({"base": word}))
    refusal = "cannot read the configuration" if word.endswith(".yaml") else "mine.yaml: base: "
    with pytest.raises(UserError, match=refusal):
        read_layers(Path("mine.yaml")).values()


@pytest.mark.parametrize(
    ("name", "command"), [("megaface", "megaface"), ("audit_scores", "audit"), ("ms1m_lt", "train"), ("demo", "train")]
)
def test_a_configuration_of_another_command_is_answered_with_that_command(name, command):
    assert command_of(read_layers(name).values()) == command
    other = AuditConfig if command == "train" else TrainConfig
    with pytest.raises(UserError, match=f"^{name}: this is a configuration of `facelt {command}`: facelt {command} -"):
        load_config(Path(name), other)


def test_a_mistake_is_not_taken_for_another_command(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: ms1m_lt\nby: gender\noptim: {lrr: 1}\n")
    with pytest.raises(UserError, match=r"optim.lrr: unknown key"):
        load_config(path, TrainConfig)
    # These keys belong to several commands.
    path.write_text("out: runs/x\nname: y\n")
    assert command_of(read_layers(path).values()) is None
    with pytest.raises(UserError, match="name: unknown key"):
        load_config(path, AuditConfig)
