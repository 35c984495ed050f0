"""What a stage begins with: its network's weights and its teachers, of this run or another.

A whole run: every stage of the recipe, each starting where its configuration says.
"""

from datetime import timedelta
from pathlib import Path

import torch

from facelt.config.train import StageConfig, TrainConfig, is_elsewhere
from facelt.data.module import TrainingData, open_data
from facelt.distributed.comm import rank
from facelt.distributed.launch import graceful_shutdown, process_group, run_on_rank0
from facelt.errors import UserError
from facelt.inference.model import (
    CARD,
    WEIGHTS,
    Entry,
    build_method,
    find_model,
    load_model,
    network_state,
    open_weights,
    read_card,
)
from facelt.inference.predict import sync_step_info
from facelt.inference.verification import TrainingSets
from facelt.methods.base import Method
from facelt.models.network import Network
from facelt.models.pretrained import fitting_state, load_pretrained, load_stage
from facelt.training.logs import RunLog, SilentLog
from facelt.training.optim import as_teacher
from facelt.training.run_folder import RunFolder
from facelt.training.trainer import Trainer


def validate_initial_weights(config: TrainConfig, num_classes: int) -> None:
    """Raises UserError where a stage that is yet to come could not begin: weights or teachers from outside the run that
    are not there or do not fit, an earlier stage with another backbone.

    Networks are built without values, so that this costs the same whatever their size.
    """
    outlines: dict[str, Network] = {}
    for stage in config.stages:
        with torch.device("meta"):
            outline = outlines[stage.name] = build_method(config, stage, num_classes).network
        if RunFolder(config.out).is_finished(stage.name):
            continue
        for teacher in filter(is_elsewhere, stage.teachers):
            _, _, taught = read_card(find_model(Path(teacher)) / CARD)
            if reason := stage.method.why_no_teacher(taught):
                raise UserError(f"stages: {stage.name!r} has the teacher {teacher!r}, which {reason}")
        try:
            _fit(config, stage, outline, outlines)
        except UserError as error:
            told = "model.pretrained" if stage.start is None else f"stages: {stage.name!r} starts from {stage.start!r}"
            raise UserError(f"{told}: {error}") from None


def build_initialized_method(config: TrainConfig, stage: StageConfig, data: TrainingData, folder: RunFolder) -> Method:
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
        teacher = as_teacher(model.method)
        teacher.bf16 = config.precision == "bf16"
        teacher.validation = model.card.get("validation", {})
        teachers.append(teacher)
    return teachers


def _fit(config: TrainConfig, stage: StageConfig, outline: Network, outlines: dict[str, Network]) -> None:
    if stage.start is None:
        if config.model.pretrained is not None:
            fitting_state(outline, config.model.pretrained)
    elif is_elsewhere(stage.start):
        with open_weights(find_model(Path(stage.start)) / WEIGHTS) as entries:
            load_stage(outline, network_state(entries, Entry.outline))
    else:
        load_stage(outline, outlines[stage.start].state_dict())


def _stage_folder(name: str, folder: RunFolder) -> Path:
    """Where an earlier stage's model is: of this run, or FOLDER/STAGE."""
    return find_model(Path(name)) if is_elsewhere(name) else folder.stage(name)


def run(config: TrainConfig, resume: bool = False) -> Path:
    """Trains every stage that is not finished, with the other processes of torchrun; returns the run's folder.

    Raises UserError, and Interrupted, with the state saved, once a signal asks for it.
    """
    with process_group(config.device, timedelta(minutes=config.timeout_minutes)) as device, graceful_shutdown():
        data = open_data(config.data, config.seed)
        # Who was asked to stop while the data opened stops here, before anything is written.
        sync_step_info(())
        validate_initial_weights(config, data.num_classes)
        sets = TrainingSets(config, device)
        run_on_rank0(lambda: RunFolder.create(config, resume))
        folder = RunFolder(config.out)
        log = SilentLog() if rank() else RunLog(folder.metrics, folder.tensorboard)
        try:
            for position, stage in enumerate(config.stages):
                if not folder.is_finished(stage.name):
                    torch.manual_seed(config.seed + position)
                    method = build_initialized_method(config, stage, data, folder)
                    method.learn_from(load_teachers(config, stage, folder, device))
                    Trainer(config, stage, method, data, folder, log, device, sets).fit()
        finally:
            log.close()
        return folder.path
