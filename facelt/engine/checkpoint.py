"""Where a stage stands, saved whole or not at all, and read back without running anything."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from facelt.engine.files import write_with
from facelt.errors import UserError


@dataclass
class Checkpoint:
    """The next step to take and everything needed to take it as if nothing had happened.

    `best` is the best validation accuracy so far and its epoch, `log_bytes` how much of metrics.jsonl belongs to the
    steps taken, `bad_images` the unusable images met so far by name.
    """

    epoch: int
    step: int
    method: dict[str, torch.Tensor]
    optimisers: list[dict[str, Any]]
    random_state: torch.Tensor
    log_bytes: int
    best: dict[str, float] = field(default_factory=dict)
    bad_images: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Raises UserError when the disk refuses; the file there before stays."""
        state = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_with(path, lambda temporary: torch.save(state, temporary))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Raises UserError on a damaged file or one that holds more than tensors and plain values."""
        try:
            # torch.load does not look at the checksums that torch.save wrote.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged file may break the parser anywhere
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{path}: not a usable checkpoint ({reason}); remove it to start the stage again") from None
