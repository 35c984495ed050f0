"""A whole run: every stage of the recipe, each starting where its configuration says."""

from pathlib import Path

import torch

from facelt.config import StageConfig, TrainConfig
from facelt.engine.data import TrainingData, open_data
from facelt.engine.device import resolve_device
from facelt.engine.handed_on import WEIGHTS, build_method, find_model, load_weights
from facelt.engine.log import RunLog
from facelt.engine.run_folder import RunFolder
from facelt.engine.trainer import Trainer
from facelt.errors import UserError
from facelt.methods import Method
from facelt.models.initialise import load_stage
from facelt.models.pretrained import load_pretrained


def run(config: TrainConfig, resume: bool = False) -> Path:
    """Trains every stage that is not finished; returns the run's folder. Raises UserError."""
    device = resolve_device(config.device)
    data = open_data(config.data, config.seed)
    _refuse_missing_starts(config)
    folder = RunFolder.create(config, resume)
    log = RunLog(folder.metrics, folder.tensorboard)
    try:
        for position, stage in enumerate(config.stages):
            if not folder.is_finished(stage.name):
                torch.manual_seed(config.seed + position)
                method = start_method(config, stage, data, folder)
                Trainer(config, stage, method, data, folder, log, device).fit()
    finally:
        log.close()
    return folder.path


def _refuse_missing_starts(config: TrainConfig) -> None:
    """Weights from outside the run that are not there stop it before it has a folder, unless their stage is done."""
    for stage in config.stages:
        if RunFolder(config.out).is_finished(stage.name):
            continue
        if stage.start is None:
            if config.model.pretrained is not None and not config.model.pretrained.is_file():
                raise UserError(f"model.pretrained: {config.model.pretrained}: no such file")
        elif "/" in stage.start:
            find_model(Path(stage.start))


def start_method(config: TrainConfig, stage: StageConfig, data: TrainingData, folder: RunFolder) -> Method:
    """A stage's method with the weights it starts from: an earlier stage's, the pretrained file's, or fresh ones."""
    method = build_method(config, stage, data.num_classes)
    if stage.start is not None:
        elsewhere = "/" in stage.start
        state = load_weights(find_model(Path(stage.start)) / WEIGHTS if elsewhere else folder.weights(stage.start))
        prefix = "network."
        load_stage(method.network, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        method.start_from(state)
    elif config.model.pretrained is not None:
        load_pretrained(method.network, config.model.pretrained)
    return method
