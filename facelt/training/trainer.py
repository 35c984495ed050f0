"""Trainer of one stage: steps, validation, checkpoints, and the saved model."""

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta

import torch
import torch.distributed as dist

from facelt.config.train import StageConfig, TrainConfig
from facelt.data.batch import Batch
from facelt.data.kind import TrainingData
from facelt.distributed.comm import all_reduce, world_size
from facelt.distributed.ddp import convert_batch_norms, sync_batch_norm_stats, wrap_ddp
from facelt.distributed.launch import all_gather_str, run_on_rank0
from facelt.errors import Interrupted, UserError
from facelt.inference.model import build_card, save_weights, write_card
from facelt.inference.predict import EvalLoaderConfig, Predictor, predict, predict_all, sync_step_info
from facelt.methods.base import Method, StepContext, TrainBatch
from facelt.metrics.classification import shot_accuracy
from facelt.training.checkpoint import Checkpoints
from facelt.training.loaders import build_train_loaders, require_enough_images, split_micro_batches
from facelt.training.logs import RunLog, StageDisplay
from facelt.training.optim import Optimisers, freeze
from facelt.training.run_folder import RunFolder
from facelt.training.state import TrainingState
from facelt.training.step_check import BufferSnapshot, StepReport, find_inf
from recordio_tools.atomic_io import sha256_of, write_text


class Trainer:
    """Trains one stage on this rank's share of the batches, from its start or from its last checkpoint.

    The method is known by its interface only. `measure` returns further figures by name at the end of each epoch.
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
        self.method = method.to(device, memory_format=torch.channels_last)
        self.method.bf16 = config.precision == "bf16"
        self.optim = stage.optim or config.optim
        freeze(method, stage.freeze)
        self.optimisers = Optimisers(method, self.optim, stage)
        convert_batch_norms(method, device)
        self._ddp = wrap_ddp(method.network, device)
        trained = method.network if self._ddp is None else self._ddp
        if config.compile:
            # A wrapper: the network keeps its names, and predicts without the compiler.
            trained = torch.compile(trained)
        method.training_network = None if trained is method.network else trained.__call__
        self._running_statistics = BufferSnapshot(method.network)
        self.loaders = build_train_loaders(method, data, config, stage, device)
        steps = min(loader.steps_per_epoch for loader in self.loaders)
        self._check_batch_size(steps)
        self.state = TrainingState(config, stage, data, method, self.optimisers, steps, device)
        self.checkpoints = Checkpoints(
            folder.checkpoints(stage.name),
            config.keep_checkpoints,
            in_background=config.checkpoint_async,
            timeout=timedelta(minutes=config.timeout_minutes),
        )
        self._saved_position: tuple[int, int] | None = None
        # The steps whose check the host has not read, the oldest first.
        self._unread: deque[StepReport] = deque()
        self.display = StageDisplay(stage.name, stage.epochs, steps)

    def fit(self) -> None:
        """Trains to the end of the stage and saves its model.

        Raises Interrupted, with a checkpoint saved, after a stop request on any rank.
        """
        state = self.state
        if not self._restore():
            self._run_dataset_passes()
            # Records where the stage's lines in the log begin, for a resumed run: no step may precede it.
            self._save()
            self.checkpoints.commit()
        try:
            with self.display.start(state.global_step):
                while state.epoch < self.stage.epochs:
                    self.method.begin_epoch(state.context, state.validation)
                    self._run_dataset_passes()
                    self._set_train_mode()
                    streams = [loader.batches(state.epoch, state.step) for loader in self.loaders]
                    for batches in zip(*streams, strict=False):
                        self.train_step(batches)
                        state.step += 1
                        self.checkpoints.commit(wait=False)
                        if state.step % self.config.checkpoint_every == 0 and state.step < state.steps_per_epoch:
                            self._save()
                    # If interrupted during validation, the epoch's validation is repeated on resume.
                    self._end_epoch()
                    state.epoch, state.step = state.epoch + 1, 0
                    self._save()
        except Interrupted:
            self._save()
            self.checkpoints.commit()
            raise
        finally:
            for loader in self.loaders:
                loader.close()
        self.checkpoints.commit()
        self._tune()
        self._finalize()

    def train_step(self, batches: tuple[Batch, ...]) -> None:
        """Makes one update from this rank's share of a global batch; a batch with too few images makes none.

        The gradient is that of the mean loss over the global batch: micro-batch losses are weighted by their share of
        its images, and the ranks' gradients are summed once, with the last micro-batch.
        """
        state, context = self.state, self.state.context
        sizes, bad_images = sync_step_info(batches)
        for image in state.bad_images.add(bad_images):
            self.display.print(f"left out {image.name}: {image.reason}")
        self.display.advance(sum(size for size, *_ in sizes))
        micro_batches = split_micro_batches(batches, sizes, self.optim.accumulate, self.device)
        if not micro_batches:
            return

        # Forward, loss and backward.
        self._running_statistics.take()
        self.optimisers.zero_grad()
        loss_sum, parts, callbacks = torch.zeros((), device=self.device), Counter(), []
        for number, (weight, micro_batch) in enumerate(micro_batches, start=1):
            inputs = [TrainBatch(self.data.preprocessing.for_training(batch), batch.label_B) for batch in micro_batch]
            with self._grad_sync(number == len(micro_batches)):
                output = self.method.step(inputs, context)
                (output.loss * weight).backward()
            loss_sum = loss_sum + output.loss.detach() * weight
            parts.update({name: value * weight for name, value in output.parts.items()})
            callbacks.append(output.after)

        # Non-finite check on the device, with the same result on all ranks. The host reads it in a later step.
        norm = self.optimisers.gradient_norm().to(self.device)
        found_inf = find_inf(loss_sum, norm)
        is_finite = all_reduce(found_inf, dist.ReduceOp.MAX) == 0
        self._running_statistics.restore(is_finite)

        # Update; a step that is not finite changes no bit.
        lr = self.optimisers.step(context, found_inf)
        for callback in callbacks:
            callback(is_finite)

        # Report.
        is_logged = context.step % self.config.log_every == 0
        figures = (found_inf, loss_sum, norm)
        self._unread.append(StepReport.send(context, batches, lr, figures, parts if is_logged else None))
        self._read_reports()

    def _grad_sync(self, is_last: bool):
        """Returns a context in which backward sums gradients over the ranks only for the last micro-batch."""
        return nullcontext() if is_last or self._ddp is None else self._ddp.no_sync()

    def _read_reports(self, *, all_steps: bool = False) -> None:
        """Reads the checks of earlier steps, logs those steps that are due, and records those that are not finite.

        They are read up to the step before the last one, so that the device still has work, once that step is logged
        or `log_every` steps have come together; with `all_steps` all of them are read. The same on all ranks. Raises
        UserError as `_record_nonfinite_step`.
        """
        earlier = len(self._unread) - 1
        is_due = earlier >= self.config.log_every or (earlier > 0 and self._unread[-2].is_logged)
        for _ in range(len(self._unread) if all_steps else earlier * is_due):
            report = self._unread.popleft()
            is_bad, loss, norm, *parts = report.figures.read()
            if is_bad:
                self._record_nonfinite_step(report, loss, norm)
            elif report.is_logged:
                speed = self.display.samples_per_second()
                self.display.show(report.context.global_step, loss, report.lr, speed)
                figures = {"loss": loss, "lr": report.lr, "samples_per_s": speed}
                self._log(report.context, **figures, **dict(zip(report.parts, parts, strict=True)))

    def _record_nonfinite_step(self, report: StepReport, loss: float, norm: float) -> None:
        """Counts a skipped step and writes its images to nonfinite/<stage>-<epoch>-<step>.json.

        Raises UserError on all ranks when more steps than allowed are not finite, and if the file cannot be written.
        """
        self.checkpoints.commit()
        state, name, allowed = self.state, self.stage.name, self.config.max_nonfinite_steps
        epoch, step = report.context.epoch, report.context.step
        images = [self.data.train.dataset.image_name(index) for part in report.index_B for index in part.tolist()]
        by_rank = [json.loads(text) for text in all_gather_str(json.dumps([_json_number(norm), images]))]
        record = {
            "stage": name,
            "epoch": epoch,
            "step": step,
            "loss": _json_number(loss),
            "gradient_norm_by_rank": [rank_norm for rank_norm, _ in by_rank],
            "images": [image for _, rank_images in by_rank for image in rank_images],
        }
        path = self.folder.nonfinite / f"{name}-{epoch}-{step}.json"
        run_on_rank0(lambda: write_text(path, json.dumps(record, indent=1) + "\n"))
        message = (
            f"stage {name}, epoch {epoch}, step {step}: the loss ({loss}) or its gradient is not finite; "
            "no update was made"
        )
        if state.nonfinite_steps == allowed:
            raise UserError(
                f"{message}, and max_nonfinite_steps allows only {allowed} such steps per stage; last checkpoint: "
                f"{self.checkpoints.paths()[0]}; lower optim.lr {self.folder.place_for_changes()}, or check "
                f"the images of this step: {path}"
            )
        state.nonfinite_steps += 1
        self.display.print(f"{message}, skipped step {state.nonfinite_steps} of {allowed} allowed; its images: {path}")

    def _set_train_mode(self) -> None:
        self.method.train()
        if self.stage.batch_norm == "frozen":
            self.method.network.eval()

    @torch.no_grad()
    def _run_dataset_passes(self) -> None:
        """Runs the passes over the training set that the method needs."""
        while self.method.needs_dataset_pass:
            self.method.eval()
            for batch in predict(self._predictor, self.data.train_plain, ("inputs",)):
                self.method.observe(batch.inputs)
            self.method.end_dataset_pass()

    def _end_epoch(self) -> None:
        """Validates the method, logs its figures, and keeps its weights if they are the best so far."""
        self._read_reports(all_steps=True)
        sync_batch_norm_stats(self.method.network, self.device)
        self.method.end_epoch()
        state, name, epoch = self.state, self.stage.name, self.state.epoch + 1
        state.validation = {**self.validate(), **self.measure(self.method)}
        figures = {**self.method.diagnostics(), **state.validation}
        if figures:
            self.log.write(name, epoch * state.steps_per_epoch, {"epoch": epoch, "step": 0, **figures})
        shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        self.display.print(f"{name}: epoch {epoch}/{self.stage.epochs}  {shown}".rstrip())
        accuracy = figures.get("validation_accuracy")
        if accuracy is not None and accuracy > state.best.get("validation_accuracy", -1.0):
            state.best = {**state.validation, "epoch": float(epoch)}
            save_weights(self.method, self.folder.best(name))

    def validate(self) -> dict[str, float]:
        """Returns closed-set accuracy on the validation split, overall and by shots; empty without one."""
        split = self.data.evaluation.get("validation")
        if split is None:
            return {}
        result = predict_all(self._predictor, split, ("label", "prediction"))
        label_N, prediction_N = result.label_N.numpy(), result.prediction_N.numpy()
        accuracy = asdict(shot_accuracy(self.data.train_counts, label_N, prediction_N, "paper"))
        names = {"overall": "validation_accuracy", "many": "validation_many", "medium": "validation_medium"}
        names["few"] = "validation_few"
        return {name: accuracy[key] for key, name in names.items() if accuracy[key] is not None}

    def _tune(self) -> None:
        """Sets the method's tunable value to the one with the best validation accuracy, if there is validation."""
        if not self.method.tunable_values or "validation" not in self.data.evaluation:
            return
        accuracy_of = {}
        for value in self.method.tunable_values:
            self.method.set_value(value)
            accuracy_of[value] = self.validate()["validation_accuracy"]
            self._log(self.state.context, setting=value, validation_accuracy=accuracy_of[value])
        best = max(accuracy_of, key=accuracy_of.__getitem__)
        self.method.set_value(best)
        self.state.best = {
            "validation_accuracy": accuracy_of[best],
            "epoch": float(self.state.epoch),
            "setting": best,
        }
        save_weights(self.method, self.folder.best(self.stage.name))

    def _finalize(self) -> None:
        """Saves the stage's model and card, and removes its checkpoints."""
        keep_best = self.stage.keep == "best" and bool(self.state.best)
        if not keep_best:
            save_weights(self.method, self.folder.weights(self.stage.name))
        run_on_rank0(lambda: self._write_card(keep_best))

    def _write_card(self, keep_best: bool) -> None:
        """Moves the weights to their final name, then writes the card, which marks the stage as finished."""
        name, state = self.stage.name, self.state
        best = self.folder.best(name)
        if not keep_best:
            best.unlink(missing_ok=True)
        elif best.exists():  # after an interruption it may have been moved already
            best.replace(self.folder.weights(name))
        card = build_card(
            self.config,
            self.stage,
            self.method,
            num_classes=self.data.num_classes,
            data_fingerprint=self.data.fingerprint(),
            classes=state.class_map.card(),
            weights_sha256=sha256_of(self.folder.weights(name)),
            training_images=len(self.data.train.members),
            best=state.best,
            validation=state.best if keep_best else state.validation,
            bad_images=state.bad_images.reasons,
        )
        write_card(self.folder.card(name), card)
        self.checkpoints.remove()

    def _save(self) -> None:
        """Saves a checkpoint under the global step, all steps checked; a no-op if this position has been saved."""
        self._read_reports(all_steps=True)
        state = self.state
        if self._saved_position == (state.epoch, state.step):
            return
        self._saved_position = state.epoch, state.step
        sync_batch_norm_stats(self.method.network, self.device)
        metadata = {**state.metadata(), "log_bytes": self.log.size}
        self.checkpoints.save(state.global_step, state.tensors(), state.sharded(), metadata)

    def _restore(self) -> bool:
        """Restores the newest usable checkpoint; returns False if there is none."""
        state = self.state
        restored = self.checkpoints.restore(state.allocate, state.sharded(), warn=self.display.print)
        if restored is None:
            return False
        metadata, tensors = restored
        state.load(metadata, tensors)
        self.log.truncate(metadata["log_bytes"])
        self._saved_position = state.epoch, state.step
        return True

    def _check_batch_size(self, steps: int) -> None:
        if not steps:
            raise UserError(
                f"optim.batch: {self.optim.batch} is more than the {len(self.data.train.members)} training images"
            )
        require_enough_images(self.optim, world_size(), self.device)

    @property
    def _predictor(self) -> Predictor:
        loader = EvalLoaderConfig(self.optim.batch, self.config.data.workers, self.device, self.state.bad_images)
        return Predictor(self.method, self.data.preprocessing, loader)

    def _log(self, context: StepContext, **figures: float) -> None:
        line = {"epoch": context.epoch, "step": context.step, **figures}
        self.log.write(self.stage.name, context.global_step, line)


def _json_number(value: float) -> float | str:
    """Returns non-finite numbers as strings, which JSON lacks otherwise."""
    return value if math.isfinite(value) else str(value)
