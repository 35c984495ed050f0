"""A whole run: every stage of the recipe, each starting where its configuration says."""

from datetime import timedelta
from pathlib import Path

import torch

from facelt.config import StageConfig, TrainConfig
from facelt.engine.data import TrainingData, open_data
from facelt.engine.freezing import frozen
from facelt.engine.handed_on import WEIGHTS, build_method, find_model, load_model
from facelt.engine.log import RunLog, SilentLog
from facelt.engine.ranks import agree, on_first_rank, process_group
from facelt.engine.run_folder import RunFolder
from facelt.engine.stopping import stoppable
from facelt.engine.trainer import Trainer
from facelt.engine.verification import TrainingSets
from facelt.engine.weights import network_state, open_weights
from facelt.errors import UserError
from facelt.methods import Method
from facelt.models.initialise import load_stage
from facelt.models.pretrained import fitting_state, load_pretrained
from facelt.parallel import rank


def run(config: TrainConfig, resume: bool = False) -> Path:
    """Trains every stage that is not finished, with the other processes of torchrun; returns the run's folder.

    Raises UserError, and Stopped, with the state saved, once a signal asks for it.
    """
    with process_group(config.device, timedelta(minutes=config.timeout_minutes)) as device, stoppable():
        data = open_data(config.data, config.seed)
        # Who was asked to stop while the data opened stops here, before anything is written.
        agree(())
        _refuse_unfit_starts(config, data.num_classes)
        sets = TrainingSets(config, device)
        on_first_rank(lambda: RunFolder.create(config, resume))
        folder = RunFolder(config.out)
        log = SilentLog() if rank() else RunLog(folder.metrics, folder.tensorboard)
        try:
            for position, stage in enumerate(config.stages):
                if not folder.is_finished(stage.name):
                    torch.manual_seed(config.seed + position)
                    method = start_method(config, stage, data, folder)
                    method.learn_from(load_teachers(config, stage, folder, device))
                    Trainer(config, stage, method, data, folder, log, device, sets).fit()
        finally:
            log.close()
        return folder.path


def _refuse_unfit_starts(config: TrainConfig, num_classes: int) -> None:
    """Weights from outside the run that are not there, and a pretrained file of another network, stop it before it has
    a folder, unless their stage is done.
    """
    for stage in config.stages:
        if RunFolder(config.out).is_finished(stage.name):
            continue
        if stage.start is None and config.model.pretrained is not None:
            with torch.device("meta"):
                outline = build_method(config, stage, num_classes).network
            try:
                fitting_state(outline, config.model.pretrained)
            except UserError as error:
                raise UserError(f"model.pretrained: {error}") from None
        for elsewhere in (stage.start, *stage.teachers):
            if elsewhere is not None and "/" in elsewhere:
                find_model(Path(elsewhere))


def start_method(config: TrainConfig, stage: StageConfig, data: TrainingData, folder: RunFolder) -> Method:
    """A stage's method with the weights it starts from: an earlier stage's, the pretrained file's, or fresh ones."""
    method = build_method(config, stage, data.num_classes, torch.from_numpy(data.train_counts))
    if stage.start is not None:
        with open_weights(_stage_folder(stage.start, folder) / WEIGHTS) as entries:
            load_stage(method.network, network_state(entries))
            method.start_from(entries)
    elif config.model.pretrained is not None:
        load_pretrained(method.network, config.model.pretrained)
    return method


def load_teachers(config: TrainConfig, stage: StageConfig, folder: RunFolder, device: torch.device) -> list[Method]:
    """The stage's teachers, trained and still."""
    teachers = []
    for name in stage.teachers:
        model = load_model(_stage_folder(name, folder), device)
        teacher = frozen(model.method)
        teacher.bf16 = config.precision == "bf16"
        teacher.validation = model.card.get("validation", {})
        teachers.append(teacher)
    return teachers


def _stage_folder(name: str, folder: RunFolder) -> Path:
    """Where an earlier stage's model is: of this run, or FOLDER/STAGE."""
    return find_model(Path(name)) if "/" in name else folder.stage(name)
