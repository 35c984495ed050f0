"""Where a stage stands: kept up by the trainer, saved, and read back."""

from datetime import timedelta

from facelt.config import StageConfig, TrainConfig
from facelt.data.bad_images import BadImageCount
from facelt.engine.checkpoint import Checkpoints
from facelt.engine.data import TrainingData
from facelt.engine.log import SilentLog
from facelt.engine.nonfinite import NonFiniteSteps
from facelt.engine.progress import StageDisplay
from facelt.engine.provenance import Provenance
from facelt.engine.replicas import average_statistics
from facelt.engine.run_folder import RunFolder
from facelt.engine.stage_state import StageState


class Standing:
    """Epoch and step of the epoch that come next, the best validation, and what was left out or skipped so far."""

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        data: TrainingData,
        state: StageState,
        folder: RunFolder,
        log: SilentLog,
    ) -> None:
        self.stage, self.state, self.log = stage.name, state, log
        self.provenance = Provenance(config, data)
        self.checkpoints = Checkpoints(
            folder.checkpoints(stage.name),
            config.keep_checkpoints,
            in_background=config.checkpoint_async,
            timeout=timedelta(minutes=config.timeout_minutes),
        )
        self.epoch = self.step = 0
        self._saved: tuple[int, int] | None = None
        self.best: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.bad = BadImageCount(config.data.max_bad_images)
        self.nonfinite = NonFiniteSteps(folder.nonfinite, stage.name, config.max_nonfinite_steps)

    def save(self, global_step: int) -> None:
        """Every rank saves its share, under the number of steps taken so far; once at a place, where nothing moves."""
        if self._saved == (self.epoch, self.step):
            return
        self._saved = self.epoch, self.step
        average_statistics(self.state.method.network, self.state.device)
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "log_bytes": self.log.size,
            "best": self.best,
            "validation": self.validation,
            "bad_images": self.bad.reasons,
            "nonfinite_steps": self.nonfinite.skipped,
            **self.provenance.facts,
            **self.state.facts(),
        }
        tensors = {**self.state.tensors(), **self.provenance.tensors()}
        self.checkpoints.save(global_step, tensors, self.state.split(), facts)

    def restore(self) -> bool:
        """Goes on from the newest usable checkpoint; False where there is none. Raises UserError."""

        def targets(facts):
            self.provenance.refuse_other_data(facts, self.checkpoints.folder)
            return self.state.targets(facts)

        tell = StageDisplay(self.stage, 0, 0).line
        found = self.checkpoints.restore(targets, self.state.split(), tell)
        if found is None:
            return False
        saved, tensors = found
        self.state.take_random(tensors)
        self.log.truncate(saved["log_bytes"])
        self.bad.reasons.update(saved["bad_images"])
        self.nonfinite.skipped = saved["nonfinite_steps"]
        self.epoch, self.step, self.best = saved["epoch"], saved["step"], saved["best"]
        self.validation = saved.get("validation", {})
        self._saved = self.epoch, self.step
        return True
