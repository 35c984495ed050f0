"""Saved models: loading restores the same model; damaged or mismatching files are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from facelt.errors import UserError
from facelt.inference.model import describe_model, find_model_folder, load_model, save_weights

CPU = torch.device("cpu")


@pytest.fixture
def model_folder(finished_run, tmp_path):
    """A copy of the second stage's folder, to damage."""
    return shutil.copytree(finished_run / "oltr", tmp_path / "oltr")


def change_card(folder, **changes) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def test_a_run_its_last_stage_and_the_weights_name_the_same_model(finished_run):
    assert find_model_folder(finished_run) == finished_run / "oltr"
    assert find_model_folder(finished_run / "oltr") == finished_run / "oltr"
    assert find_model_folder(finished_run / "oltr/model.safetensors") == finished_run / "oltr"


def test_a_loaded_model_embeds_as_the_saved_one(finished_run, model_folder):
    torch.manual_seed(1)
    image = torch.randn(3, 3, 32, 32)
    before = torch.get_rng_state()
    model = load_model(finished_run, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.method.training
    with torch.no_grad():
        expected = model.method.embed(image)
        save_weights(model.method, model_folder / "model.safetensors")
        embeddings = load_model(model_folder, CPU).method.embed(image)
    assert all(torch.equal(embeddings.by_kind[kind], value) for kind, value in expected.by_kind.items())
    assert torch.equal(embeddings.reachability_B, expected.reachability_B)


def test_a_run_with_an_unfinished_stage_is_refused_unless_a_finished_one_is_named(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "oltr/card.json").unlink()
    with pytest.raises(UserError, match=f"stage oltr of this run is not finished; .*--resume.*: {run / 'plain'}$"):
        find_model_folder(run)
    assert find_model_folder(run / "plain") == run / "plain"
    (run / "plain/card.json").unlink()
    with pytest.raises(UserError, match="no stage of this run is finished"):
        find_model_folder(run)


def test_a_model_is_described_by_stage_and_epoch(finished_run, model_folder):
    card = json.loads((model_folder / "card.json").read_text())
    best = {**card["best"], "epoch": 1.0}
    change_card(model_folder, best=best)
    assert describe_model(model_folder) == f"{model_folder}: stage oltr, epoch 1 of 2"
    stages = [{**stage, "keep": "last"} for stage in card["config"]["stages"]]
    change_card(model_folder, best=best, config={**card["config"], "stages": stages})
    assert describe_model(model_folder) == f"{model_folder}: stage oltr, epoch 2 of 2"
    for damaged in ({}, {"epoch": "x"}, None):
        change_card(model_folder, best=damaged)
        assert describe_model(model_folder).endswith("epoch 2 of 2")
    assert describe_model(finished_run).startswith(f"{finished_run / 'oltr'}: stage oltr, ")


def test_neither_run_nor_model(tmp_path):
    with pytest.raises(UserError, match="neither a run nor a stage's folder"):
        load_model(tmp_path, CPU)
    with pytest.raises(UserError, match="neither a run nor a stage's folder"):
        load_model(tmp_path / "absent", CPU)
    (tmp_path / "backbone.safetensors").touch()
    with pytest.raises(
        UserError, match=r"backbone\.safetensors: a file, not the folder .* model\.pretrained .*epochs: 0"
    ):
        load_model(tmp_path / "backbone.safetensors", CPU)


def test_weights_of_another_model_are_refused(finished_run, model_folder):
    shutil.copy(finished_run / "plain/model.safetensors", model_folder / "model.safetensors")
    with pytest.raises(UserError, match="weights do not belong to this model") as caught:
        load_model(model_folder, CPU)
    assert "\n" not in str(caught.value)


def test_weights_of_another_width_are_refused(model_folder):
    path = model_folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "head.classifier.weight": torch.zeros(9, 16)}, path)
    with pytest.raises(UserError, match="weights do not belong to this model"):
        load_model(model_folder, CPU)


@pytest.mark.parametrize("length", [0, 4, 100, -10])
def test_weights_cut_short_are_refused(model_folder, length):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="cannot read the weights"):
        load_model(model_folder, CPU)


def test_missing_weights_are_named(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: cannot read the weights"):
        load_model(model_folder, CPU)


@pytest.mark.parametrize(
    "changes",
    [{"stage": "absent"}, {"num_classes": "many"}, {"num_classes": 0}, {"num_classes": 10**30}, {"config": None}],
)
def test_a_card_of_something_else_is_refused(model_folder, changes):
    change_card(model_folder, **changes)
    with pytest.raises(UserError, match=r"card\.json"):
        load_model(model_folder, CPU)


def test_another_schema_is_refused(model_folder):
    change_card(model_folder, schema="facelt.model/9")
    with pytest.raises(UserError, match=r"card\.json.*facelt\.model/9"):
        load_model(model_folder, CPU)


def test_a_card_without_preprocessing_is_refused(model_folder):
    card = json.loads((model_folder / "card.json").read_text())
    del card["preprocessing"]
    (model_folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="not a model card"):
        load_model(model_folder, CPU)


@pytest.mark.parametrize("text", ["5", '{"plain": 1}', '[["plain"]]', "[5]"])
def test_a_run_whose_list_of_stages_is_none_is_refused(tmp_path, text):
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(UserError, match=r"neither a run nor a stage's folder .*no list stages\.json"):
        find_model_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense"])
def test_a_card_that_is_none_is_refused(model_folder, text):
    (model_folder / "card.json").write_text(text)
    with pytest.raises(UserError, match="not a model card"):
        load_model(model_folder, CPU)


def test_a_card_with_an_unknown_key_names_it(model_folder):
    card = json.loads((model_folder / "card.json").read_text())
    change_card(model_folder, config={**card["config"], "optin": {}})
    with pytest.raises(UserError, match=r"card\.json: optin: unknown key"):
        load_model(model_folder, CPU)


def test_a_card_with_older_keys_at_several_levels_names_them(model_folder):
    config = json.loads((model_folder / "card.json").read_text())["config"]
    stage = config["stages"][0]
    stage["lr_share"] = stage.pop("lr_mult")
    stage["schedule"]["every"] = stage["schedule"].pop("step_size")
    change_card(model_folder, config={**config, "resident": True})
    with pytest.raises(UserError) as error:
        load_model(model_folder, CPU)
    lines = str(error.value).splitlines()
    for key in ("resident", "stages.0.lr_share", "stages.0.schedule.every"):
        assert sum(f"card.json: {key}: unknown key; allowed: " in line for line in lines) == 1
    assert len(lines) == 3


def test_more_identities_than_the_weights_have_cost_no_memory(model_folder):
    change_card(model_folder, num_classes=2**31 - 1)
    with pytest.raises(UserError, match=r"weights do not belong to this model: head\."):
        load_model(model_folder, CPU)
