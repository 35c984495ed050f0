"""One stage of training: epochs of steps over a method it knows by nothing but its interface."""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch

from facelt.config.train import StageConfig, TrainConfig
from facelt.data.batch import Batch
from facelt.data.module import TrainingData
from facelt.distributed.comm import world_size
from facelt.distributed.ddp import has_enough_images, sync_batch_norm_stats
from facelt.distributed.launch import Interrupted, run_on_rank0
from facelt.errors import UserError
from facelt.inference.model import make_card, save_card, save_weights
from facelt.inference.predict import EvalLoaderConfig, Predictor, predict, predict_all, sync_step_info
from facelt.methods.base import Method, Progress
from facelt.metrics.classification import shot_accuracy
from facelt.training.loaders import build_train_loaders
from facelt.training.logs import RunLog, StageDisplay
from facelt.training.optim import Optimisers, freeze
from facelt.training.run_folder import RunFolder
from facelt.training.state import StageState, Standing
from facelt.training.update import Update
from recordio_tools.atomic_io import sha256_of


class Trainer:
    """Trains one stage in a run's folder, from its beginning or from its checkpoint, on this rank's share.

    `measure` gives further figures of the method at each epoch's end, by name.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        method: Method,
        data: TrainingData,
        folder: RunFolder,
        log: RunLog,
        device: torch.device,
        measure: Callable[[Method], Mapping[str, float]] = lambda method: {},
    ) -> None:
        self.config, self.stage, self.data, self.folder, self.log = config, stage, data, folder, log
        self.device, self.measure = device, measure
        self.method = method.to(device)
        self.method.network.to(memory_format=torch.channels_last)
        self.method.bf16 = config.precision == "bf16"
        self.optim = stage.optim or config.optim
        freeze(method, stage.freeze)
        self.optimisers = Optimisers(method, self.optim, stage)
        self.update = Update(method, self.optimisers, data.preprocessing, self.optim.accumulate, device)
        self.at = Standing(config, stage, data, StageState(method, self.optimisers, device), folder, log)
        self.loaders = build_train_loaders(method, data, config, stage, device)
        self.steps = min(loader.steps_per_epoch for loader in self.loaders)
        batch, accumulate = self.optim.batch, self.optim.accumulate
        if not self.steps:
            raise UserError(f"optim.batch: {batch} is more than the {len(data.train.members)} training images")
        if not has_enough_images([[batch // world_size() // accumulate]] * world_size(), device):
            times = f" times optim.accumulate: {accumulate}" if accumulate > 1 else ""
            raise UserError(f"optim.batch: {batch} is too few for {world_size()} processes{times}, two images for each")

    def fit(self) -> None:
        """Trains to the end of the stage and hands on its model.

        Raises Interrupted, with the state saved, when a rank was asked to stop.
        """
        if not self.at.restore():
            self._pass_over_training_set()
            # From here on an interrupted stage knows which lines of the log are its own.
            self.at.save(self._taken)
        try:
            with StageDisplay(self.stage.name, self.stage.epochs * self.steps, self._taken) as display:
                while self.at.epoch < self.stage.epochs:
                    self._train_epoch(display)
        except Interrupted:
            self.at.save(self._taken)
            self.at.checkpoints.settle()
            raise
        finally:
            for loader in self.loaders:
                loader.close()
        self.at.checkpoints.settle()
        self._choose_setting()
        self._hand_on()

    def _train_epoch(self, display: StageDisplay) -> None:
        self.method.begin_epoch(self._progress(), self.at.validation)
        self._pass_over_training_set()
        self.method.train()
        if self.stage.batch_norm == "still":
            self.method.network.eval()
        streams = [loader.batches(self.at.epoch, self.at.step) for loader in self.loaders]
        for batches in zip(*streams, strict=False):
            self._step(batches, display)
            self.at.step += 1
            self.at.checkpoints.settle(wait=False)
            if self.at.step % self.config.checkpoint_every == 0 and self.at.step < self.steps:
                self.at.save(self._taken)
        # Until validation is over the epoch is not: who is stopped in it begins it again.
        self._end_epoch(display)
        self.at.epoch, self.at.step = self.at.epoch + 1, 0
        self.at.save(self._taken)

    def _step(self, batches: tuple[Batch, ...], display: StageDisplay) -> None:
        progress = self._progress()
        sizes, unusable = sync_step_info(batches)
        for item in self.at.bad.add(unusable):
            display.line(f"left out {item.name}: {item.reason}")
        gradient = self.update.gradient(batches, sizes, progress)
        display.step(sum(size for size, *_ in sizes))
        if gradient is None:
            return
        if not gradient.is_finite:
            self.update.discard()
            self.at.checkpoints.settle()
            names = [self.data.train.dataset.image_name(index) for batch in batches for index in batch.index_B.tolist()]
            display.line(self.at.nonfinite.skip(progress, gradient, names, self.at.checkpoints.found()[0]))
            return
        rate = self.update.apply(gradient, progress)
        if progress.step % self.config.log_every == 0:
            speed = display.samples_per_second()
            display.figures(gradient.loss, rate, speed)
            parts = {name: part.item() for name, part in gradient.parts.items()}
            self._write(loss=gradient.loss, lr=rate, samples_per_s=speed, **parts)

    def _end_epoch(self, display: StageDisplay) -> None:
        sync_batch_norm_stats(self.method.network, self.device)
        self.method.end_epoch()
        self.at.validation = {**self.validate(), **self.measure(self.method)}
        figures = {**self.method.diagnostics(), **self.at.validation}
        epoch = self.at.epoch + 1
        if figures:
            self.log.write(self.stage.name, epoch * self.steps, {"epoch": epoch, "step": 0, **figures})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        display.line(f"{self.stage.name}: epoch {epoch}/{self.stage.epochs}  {shown}".rstrip())
        accuracy = figures.get("validation_accuracy")
        if accuracy is not None and accuracy > self.at.best.get("validation_accuracy", -1.0):
            self.at.best = {**self.at.validation, "epoch": float(epoch)}
            save_weights(self.method, self.folder.best(self.stage.name))

    def validate(self) -> dict[str, float]:
        """Closed-set accuracy on the validation split, overall and by shots; empty without one."""
        split = self.data.evaluation.get("validation")
        if split is None:
            return {}
        result = predict_all(self._predictor, split, ("label", "prediction"))
        label_N, prediction_N = result.label_N.numpy(), result.prediction_N.numpy()
        accuracy = asdict(shot_accuracy(self.data.train_counts, label_N, prediction_N, "paper"))
        names = {"overall": "validation_accuracy", "many": "validation_many", "medium": "validation_medium"}
        names["few"] = "validation_few"
        return {name: accuracy[key] for key, name in names.items() if accuracy[key] is not None}

    def _choose_setting(self) -> None:
        """Gives the method the one of its settings that validates best; without validation images it keeps its own."""
        if not self.method.settings or "validation" not in self.data.evaluation:
            return
        found = {}
        for setting in self.method.settings:
            self.method.use(setting)
            found[setting] = self.validate()["validation_accuracy"]
            self._write(setting=setting, validation_accuracy=found[setting])
        best = max(found, key=found.__getitem__)
        self.method.use(best)
        self.at.best = {"validation_accuracy": found[best], "epoch": float(self.at.epoch), "setting": best}
        save_weights(self.method, self.folder.best(self.stage.name))

    @torch.no_grad()
    def _pass_over_training_set(self) -> None:
        """Shows the method the training set, as often as it wants to see it."""
        while self.method.wants_pass:
            self.method.eval()
            for batch in predict(self._predictor, self.data.train_plain, ("inputs",)):
                self.method.accumulate(batch.inputs)
            self.method.finish_pass()

    @property
    def _predictor(self) -> Predictor:
        loader = EvalLoaderConfig(self.optim.batch, self.config.data.workers, self.device, self.at.bad)
        return Predictor(self.method, self.data.preprocessing, loader)

    @property
    def _taken(self) -> int:
        """Steps taken since the stage began."""
        return self.at.epoch * self.steps + self.at.step

    def _progress(self) -> Progress:
        return Progress(self.at.epoch, self.stage.epochs, self.at.step, self.steps)

    def _write(self, **figures: float) -> None:
        self.log.write(self.stage.name, self._taken, {"epoch": self.at.epoch, "step": self.at.step, **figures})

    def _hand_on(self) -> None:
        if not (self.stage.keep == "best" and self.at.best):
            save_weights(self.method, self.folder.weights(self.stage.name))
        run_on_rank0(self._finish)

    def _finish(self) -> None:
        """Puts the weights in their place, then the card, which says that the stage is finished."""
        name = self.stage.name
        best = self.folder.best(name)
        if self.stage.keep == "best" and self.at.best:
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
            classes=self.at.provenance.classes.card(),
            weights_sha256=sha256_of(self.folder.weights(name)),
            training_images=len(self.data.train.members),
            best=self.at.best,
            validation=self.at.best if self.stage.keep == "best" and self.at.best else self.at.validation,
            bad_images=self.at.bad.reasons,
        )
        save_card(card, self.folder.card(name))
        self.at.checkpoints.remove()
