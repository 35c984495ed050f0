"""One stage of training: epochs of steps over a method it knows by nothing but its interface."""

from collections.abc import Mapping
from dataclasses import asdict

import torch

from facelt.config import StageConfig, TrainConfig
from facelt.data.bad_images import BadImageCount
from facelt.data.batch import Batch
from facelt.engine.checkpoint import Checkpoints
from facelt.engine.data import TrainingData
from facelt.engine.evaluate import evaluation_batches, predict
from facelt.engine.handed_on import make_card, save_card
from facelt.engine.log import RunLog
from facelt.engine.nonfinite import NonFiniteSteps
from facelt.engine.optimisation import Optimisers
from facelt.engine.progress import StageDisplay
from facelt.engine.ranks import agree, on_first_rank
from facelt.engine.replicas import average_statistics, enough_images
from facelt.engine.run_folder import RunFolder
from facelt.engine.stage_state import StageState
from facelt.engine.stopping import Stopped
from facelt.engine.streams import open_streams
from facelt.engine.update import Update
from facelt.engine.weights import save_weights
from facelt.errors import UserError
from facelt.methods import Inputs, Method, Progress
from facelt.metrics.accuracy import shot_accuracy
from facelt.parallel import world


class Trainer:
    """Trains one stage in a run's folder, from its beginning or from its checkpoint, on this rank's share."""

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        method: Method,
        data: TrainingData,
        folder: RunFolder,
        log: RunLog,
        device: torch.device,
    ) -> None:
        self.config, self.stage, self.data, self.folder, self.log = config, stage, data, folder, log
        self.device = device
        self.method = method.to(device)
        self.method.network.to(memory_format=torch.channels_last)
        self.method.bf16 = config.precision == "bf16"
        for part in stage.freeze:
            getattr(method.network, part).requires_grad_(False)
        self.optimisers = Optimisers(method, config.optim, stage)
        self.update = Update(method, self.optimisers, data.preparation, config.optim.accumulate, device)
        self.state = StageState(method, self.optimisers, device)
        self.checkpoints = Checkpoints(folder.checkpoints(stage.name), config.keep_checkpoints)
        self.bad = BadImageCount(config.data.max_bad_images)
        self.nonfinite = NonFiniteSteps(folder.nonfinite, stage.name, config.max_nonfinite_steps)
        self.loaders = open_streams(method, data, config, device)
        self.steps = min(loader.steps_per_epoch for loader in self.loaders)
        if not self.steps:
            raise UserError(
                f"optim.batch: {config.optim.batch} is more than the {len(data.train.members)} training images"
            )
        if not enough_images([[config.optim.batch // world() // config.optim.accumulate]] * world(), device):
            times = f" times optim.accumulate: {config.optim.accumulate}" if config.optim.accumulate > 1 else ""
            raise UserError(
                f"optim.batch: {config.optim.batch} is too few for {world()} processes{times}, two images for each"
            )
        self.epoch = self.next_step = 0
        self.best: dict[str, float] = {}

    def fit(self) -> None:
        """Trains to the end of the stage and hands on its model.

        Raises Stopped, with the state saved, when a rank was asked to stop.
        """
        if not self._restore():
            if self.method.wants_pass:
                self._pass_over_training_set()
            # From here on an interrupted stage knows which lines of the log are its own.
            self._save()
        done = self.epoch * self.steps + self.next_step
        try:
            with StageDisplay(self.stage.name, self.stage.epochs * self.steps, done) as display:
                while self.epoch < self.stage.epochs:
                    self._train_epoch(display)
        except Stopped:
            self._save()
            raise
        finally:
            for loader in self.loaders:
                loader.close()
        self._hand_on()

    def _train_epoch(self, display: StageDisplay) -> None:
        self.method.train()
        self.method.begin_epoch(self._progress(), self.best)
        streams = [loader.epoch(self.epoch, self.next_step) for loader in self.loaders]
        for batches in zip(*streams, strict=False):
            self._step(batches, display)
            self.next_step += 1
            if self.next_step % self.config.checkpoint_every == 0 and self.next_step < self.steps:
                self._save()
        # Until validation is over the epoch is not: who is stopped in it begins it again.
        self._end_epoch(display)
        self.epoch, self.next_step = self.epoch + 1, 0
        self._save()

    def _step(self, batches: tuple[Batch, ...], display: StageDisplay) -> None:
        progress = self._progress()
        sizes, unusable = agree(batches)
        for item in self.bad.add(unusable):
            display.line(f"left out {item.name}: {item.reason}")
        gradient = self.update.gradient(batches, sizes, progress)
        display.step(sum(size for size, *_ in sizes))
        if gradient is None:
            return
        if not gradient.is_finite:
            self.update.discard()
            names = [self.data.train.dataset.names(index) for batch in batches for index in batch.index_B.tolist()]
            display.line(self.nonfinite.skip(progress, gradient, names, self.checkpoints.found()[0]))
            return
        rate = self.update.apply(gradient, progress)
        if progress.step % self.config.log_every == 0:
            speed = display.samples_per_second()
            display.figures(gradient.loss, rate, speed)
            parts = {name: part.item() for name, part in gradient.parts.items()}
            self._write(loss=gradient.loss, lr=rate, samples_per_s=speed, **parts)

    def _end_epoch(self, display: StageDisplay) -> None:
        average_statistics(self.method.network, self.device)
        figures = {**self.method.diagnostics(), **self.validate()}
        epoch = self.epoch + 1
        if figures:
            self.log.write(self.stage.name, epoch * self.steps, {"epoch": epoch, "step": 0, **figures})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        display.line(f"{self.stage.name}: epoch {epoch}/{self.stage.epochs}  {shown}".rstrip())
        accuracy = figures.get("validation_accuracy")
        if accuracy is not None and accuracy > self.best.get("validation_accuracy", -1.0):
            self.best = {"validation_accuracy": accuracy, "epoch": float(epoch)}
            save_weights(self.method, self.folder.best(self.stage.name))

    def validate(self) -> Mapping[str, float]:
        """Closed-set accuracy on the validation split, overall and by shots; empty without one."""
        split = self.data.evaluation.get("validation")
        if split is None:
            return {}
        label_N, prediction_N = predict(
            self.method,
            split,
            self.data.preparation,
            batch=self.config.optim.batch,
            workers=self.config.data.workers,
            device=self.device,
            bad=self.bad,
        )
        accuracy = asdict(shot_accuracy(self.data.train_counts, label_N, prediction_N, "paper"))
        names = {"overall": "validation_accuracy", "many": "validation_many", "medium": "validation_medium"}
        names["few"] = "validation_few"
        return {name: accuracy[key] for key, name in names.items() if accuracy[key] is not None}

    @torch.no_grad()
    def _pass_over_training_set(self) -> None:
        self.method.eval()
        for batch in evaluation_batches(
            self.data.train_plain, self.config.optim.batch, self.config.data.workers, self.device, self.bad
        ):
            self.method.accumulate(Inputs(self.data.preparation.for_evaluation(batch), batch.label_B))
        self.method.finish_pass()

    def _progress(self) -> Progress:
        return Progress(self.epoch, self.stage.epochs, self.next_step, self.steps)

    def _write(self, **figures: float) -> None:
        step = self.epoch * self.steps + self.next_step
        self.log.write(self.stage.name, step, {"epoch": self.epoch, "step": self.next_step, **figures})

    def _save(self) -> None:
        average_statistics(self.method.network, self.device)
        facts = {
            "epoch": self.epoch,
            "step": self.next_step,
            "log_bytes": self.log.size,
            "best": self.best,
            "bad_images": self.bad.reasons,
            "nonfinite_steps": self.nonfinite.skipped,
        }
        step = self.epoch * self.steps + self.next_step
        self.checkpoints.save(step, self.state.tensors(), self.state.split(), {**facts, **self.state.facts()})

    def _restore(self) -> bool:
        """Goes on from the newest usable checkpoint; False where there is none."""
        tell = StageDisplay(self.stage.name, 0, 0).line
        found = self.checkpoints.restore(self.state.targets, self.state.split(), tell)
        if found is None:
            return False
        saved, tensors = found
        self.state.take_random(tensors)
        self.log.truncate(saved["log_bytes"])
        self.bad.reasons.update(saved["bad_images"])
        self.nonfinite.skipped = saved["nonfinite_steps"]
        self.epoch, self.next_step, self.best = saved["epoch"], saved["step"], saved["best"]
        return True

    def _hand_on(self) -> None:
        if not (self.stage.keep == "best" and self.best):
            save_weights(self.method, self.folder.weights(self.stage.name))
        on_first_rank(self._finish)

    def _finish(self) -> None:
        """Puts the weights in their place, then the card, which says that the stage is finished."""
        name = self.stage.name
        best = self.folder.best(name)
        if self.stage.keep == "best" and self.best:
            if best.exists():  # otherwise it was handed on already, just before an interruption
                best.replace(self.folder.weights(name))
        else:
            best.unlink(missing_ok=True)
        card = make_card(
            self.config,
            self.stage,
            self.method,
            num_classes=self.data.num_classes,
            data_fingerprint=self.data.fingerprint(),
            training_images=len(self.data.train.members),
            best=self.best,
            bad_images=self.bad.reasons,
        )
        save_card(card, self.folder.card(name))
        self.checkpoints.remove()
