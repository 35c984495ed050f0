"""A whole run: every stage of the recipe, each starting where its configuration says."""

from datetime import timedelta
from pathlib import Path

import torch

from facelt.config import TrainConfig
from facelt.engine.data import open_data
from facelt.engine.log import RunLog, SilentLog
from facelt.engine.ranks import agree, on_first_rank, process_group
from facelt.engine.run_folder import RunFolder
from facelt.engine.starts import load_teachers, refuse_unfit_starts, start_method
from facelt.engine.stopping import stoppable
from facelt.engine.trainer import Trainer
from facelt.engine.verification import TrainingSets
from facelt.parallel import rank


def run(config: TrainConfig, resume: bool = False) -> Path:
    """Trains every stage that is not finished, with the other processes of torchrun; returns the run's folder.

    Raises UserError, and Stopped, with the state saved, once a signal asks for it.
    """
    with process_group(config.device, timedelta(minutes=config.timeout_minutes)) as device, stoppable():
        data = open_data(config.data, config.seed)
        # Who was asked to stop while the data opened stops here, before anything is written.
        agree(())
        refuse_unfit_starts(config, data.num_classes)
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
