"""Training run: all stages of a recipe, their initial weights and teachers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch

from facelt.config.train import StageConfig, TrainConfig, is_external_ref
from facelt.data.kind import TrainingData
from facelt.distributed.comm import rank
from facelt.distributed.launch import graceful_shutdown, process_group, run_on_rank0
from facelt.errors import Interrupted, UserError
from facelt.inference.model import (
    CARD_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    build_method,
    find_model_folder,
    load_model,
    network_state,
    open_weights,
    read_card,
)
from facelt.inference.predict import sync_step_info
from facelt.inference.verification import ValidationSets
from facelt.methods.base import Method
from facelt.models.network import Network
from facelt.models.pretrained import load_pretrained, load_stage_weights, matching_state, state_mismatch
from facelt.training.logs import NullLog, RunLog
from facelt.training.optim import as_teacher
from facelt.training.run_folder import RunFolder
from facelt.training.trainer import Trainer


def run(config: TrainConfig, resume: bool = False, stage_done: Callable[[str], None] = lambda stage: None) -> Path:
    """Trains every unfinished stage, on all processes of a torchrun launch; returns the run folder.

    `stage_done` is called with the name of each stage that this call has finished. Raises UserError; raises
    Interrupted, with a checkpoint saved, after SIGTERM or SIGINT.
    """
    with process_group(config.device, timedelta(minutes=config.timeout_minutes)) as device, graceful_shutdown():
        folder = RunFolder(config.out)
        if resume and folder.holds_all(config.stages):
            run_on_rank0(lambda: RunFolder.create(config, resume))
            return folder.path
        data = config.data.open(config.seed)
        # A stop requested while the data opened takes effect here, before anything is written.
        sync_step_info(())
        for split in (data.train, *data.evaluation.values()):
            split.dataset.require_usable(split.members)
        train_counts = data.train_counts.tolist()
        for stage in config.stages:
            if reason := stage.method.counts_error(train_counts):
                raise UserError(f"stages: {stage.name!r}: {reason}")
        validate_initial_weights(config, data.num_classes)
        verification = ValidationSets(config, device)
        run_on_rank0(lambda: RunFolder.create(config, resume))
        log = NullLog() if rank() else RunLog(folder.metrics, folder.tensorboard)
        try:
            for number, stage in enumerate(config.stages):
                if not folder.is_finished(stage.name):
                    torch.manual_seed(config.seed + number)
                    method = build_initialized_method(config, stage, data, folder)
                    method.set_teachers(_load_teachers(config, stage, folder, device))
                    Trainer(config, stage, method, data, folder, log, device, verification).fit()
                    stage_done(stage.name)
        except (RuntimeError, MemoryError) as error:
            if config.compile and _is_compiler_error(error):
                first, *_ = str(error.__cause__ or error).split("\n\n")
                message, reason = f"compile: the network of stage {stage.name} cannot be compiled for {device}", first
                advice = "install a C++ compiler, on a GPU also Triton, and add --resume, or set compile: false"
            elif _is_out_of_memory(error):
                message, reason = f"stage {stage.name}: out of memory", str(error)
                advice = "free some and add --resume, or lower optim.batch or raise optim.accumulate"
            else:
                raise
            shown_reason = " ".join(reason.split())[:200]
            raise UserError(f"{message} ({shown_reason}); {advice} {folder.place_for_changes()}") from None
        except Interrupted as error:
            advice = f"checkpoint saved in {config.out}, continue with --resume"
            raise Interrupted(error.signal_number, advice) from None
        finally:
            log.close()
        return folder.path


def validate_initial_weights(config: TrainConfig, num_classes: int) -> None:
    """Checks the initial weights and the external teachers of all unfinished stages.

    Raises UserError if a file is missing or does not fit its stage, and if an earlier stage has another backbone.
    Networks are built on the meta device, which allocates nothing.
    """
    networks: dict[str, Network] = {}
    for stage in config.stages:
        with torch.device("meta"):
            network = networks[stage.name] = build_method(config, stage, num_classes).network
        if RunFolder(config.out).is_finished(stage.name):
            continue
        for teacher in filter(is_external_ref, stage.teachers):
            _, _, teacher_stage = read_card(find_model_folder(Path(teacher)) / CARD_FILE)
            if reason := stage.method.teacher_error(teacher_stage):
                raise UserError(f"stages: {stage.name!r} has the teacher {teacher!r}, which {reason}")
        if stage.init_from is None and config.model.pretrained is not None:
            with _naming("model.pretrained"):
                matching_state(network, config.model.pretrained)
        initial_state: dict[str, torch.Tensor] = {}
        for source in stage.initial_stages:
            with _naming(f"stages: {stage.name!r} starts from {source!r}"):
                if is_external_ref(source):
                    with open_weights(find_model_folder(Path(source)) / WEIGHTS_FILE) as entries:
                        state = network_state(entries, StoredTensor.to_meta)
                else:
                    state = networks[source].state_dict()
                load_stage_weights(network, state)
                if initial_state and (mismatch := state_mismatch(initial_state, state)):
                    raise UserError(f"its network cannot be averaged with that of {stage.init_from!r}: {mismatch}")
                initial_state = initial_state or state


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Begins the message of a UserError with `source`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def build_initialized_method(config: TrainConfig, stage: StageConfig, data: TrainingData, folder: RunFolder) -> Method:
    """Returns a stage's method with its initial weights: an earlier stage's, the pretrained file's, or random ones."""
    method = build_method(config, stage, data.num_classes, torch.from_numpy(data.train_counts))
    if stage.init_from is not None:
        with open_weights(_stage_folder(stage.init_from, folder) / WEIGHTS_FILE) as entries:
            load_stage_weights(method.network, _averaged_state(network_state(entries), stage.average_with, folder))
            method.load_stage(entries)
    elif config.model.pretrained is not None:
        load_pretrained(method.network, config.model.pretrained)
    return method


def _averaged_state(
    state: dict[str, torch.Tensor], shares: Mapping[str, float], folder: RunFolder
) -> dict[str, torch.Tensor]:
    """Returns the mean of a network's tensors and those of other stages, which have `shares` of the weight.

    Whole numbers, which count batches, stay those of `state`.
    """
    averaged = {name: value * (1 - sum(shares.values())) for name, value in state.items() if value.is_floating_point()}
    for source, share in shares.items():
        with open_weights(_stage_folder(source, folder) / WEIGHTS_FILE) as entries:
            for name, value in network_state(entries).items():
                if name in averaged:
                    averaged[name] += share * value
    return state | averaged


def _load_teachers(config: TrainConfig, stage: StageConfig, folder: RunFolder, device: torch.device) -> list[Method]:
    teachers = []
    for name in stage.teachers:
        model = load_model(_stage_folder(name, folder), device)
        teacher = as_teacher(model.method)
        teacher.bf16 = config.precision == "bf16"
        teacher.validation = model.card.get("validation", {})
        teachers.append(teacher)
    return teachers


def _is_compiler_error(error: BaseException) -> bool:
    # Only a run that compiles loads the compiler.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory of the device or of the host ran out; torch has no class for the host's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _stage_folder(name: str, folder: RunFolder) -> Path:
    """Returns the folder of a stage of this run, or of another run's FOLDER/STAGE."""
    return find_model_folder(Path(name)) if is_external_ref(name) else folder.stage(name)
