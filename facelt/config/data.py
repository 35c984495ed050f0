"""Where images come from and how they become network input."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from facelt.config.base import StrictModel
from facelt.config.registry import DATA_KINDS, register_data_kind
from recordio_tools.image_header import DEFAULT_MAX_PIXELS

Channels = tuple[float, float, float]
Side = Annotated[int, Field(ge=1, le=4096)]
Strength = Annotated[float, Field(ge=0)]
HueShift = Annotated[float, Field(ge=0, le=0.5)]


class ImageDataConfig(StrictModel):
    """What all kinds of data share. `mean` and `std` are in RGB order, in units of the full range: white is 1.

    `fused` compiles flips and normalisation to one kernel on GPUs, which needs Triton there; CPUs run them as they are.
    `cache_on_device` decodes the training images once, at the start of each stage, and keeps them on the device.
    """

    kind: str
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    workers: int = Field(2, ge=0)
    max_bad_images: int = Field(0, ge=0)
    max_pixels: int = Field(DEFAULT_MAX_PIXELS, ge=1)
    fused: bool = True
    cache_on_device: bool = False


@register_data_kind("record")
class RecordData(ImageDataConfig):
    """A .rec in InsightFace's layout; `manifest` is a selection of it as `recordio_tools sample` writes one.

    `validation_fraction` of the images, never an identity's last one, are held out of training.
    """

    train: Path
    manifest: Path | None = None
    image_size: tuple[Side, Side] = (112, 112)
    flip: bool = True
    validation_fraction: float = Field(0.05, ge=0, lt=1)


@register_data_kind("list")
class ListData(ImageDataConfig):
    """Lists of `path label` lines below one folder, as ImageNet-LT, Places-LT and others publish them.

    Training takes a random crop of `crop` pixels a side, mirrored or not, its brightness, contrast, saturation and hue
    changed by up to `jitter`; evaluation resizes the short side to `resize` and takes the centre. `open` lists images
    of no class of training (label -1), below `open_root` or else `root`.
    """

    root: Path
    train: Path
    validation: Path | None = None
    test: Path | None = None
    open: Path | None = None
    open_root: Path | None = None
    crop: Side = 224
    resize: Side = 256
    jitter: tuple[Strength, Strength, Strength, HueShift] = (0.4, 0.4, 0.4, 0.0)
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    num_classes: int | None = Field(None, ge=1)

    @field_validator("cache_on_device")
    @classmethod
    def _cannot_be_cached(cls, cache_on_device: bool) -> bool:
        if cache_on_device:
            raise ValueError(
                "list data crops training images at random and cannot cache them; only record and cifar data can"
            )
        return cache_on_device

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.crop, self.crop

    @property
    def lists(self) -> dict[str, Path]:
        """The lists that are named, by split."""
        named = {"train": self.train, "validation": self.validation, "test": self.test, "open": self.open}
        return {split: path for split, path in named.items() if path is not None}


@register_data_kind("cifar")
class CifarData(ImageDataConfig):
    """CIFAR-10 or CIFAR-100, long-tailed: `root` holds torchvision's files, or a train.rec and a test.rec.

    `imbalance` is the largest class over the smallest, 1 the balanced set; `profile` step gives the second half of the
    classes their `imbalance`-th part. Training images are padded by `pad` black pixels and cropped, turned by up to
    `rotation` degrees and mirrored, on the device. `open` is a folder of images of no class of training, brought to
    CIFAR's size; beside it the first `tuning` images of it and of the test set are splits of their own.
    """

    root: Path
    classes: Literal[10, 100] = 100
    imbalance: float = Field(100, ge=1)
    profile: Literal["exponential", "step"] = "exponential"
    download: bool = False
    open: Path | None = None
    tuning: int = Field(1000, ge=0)
    pad: int = Field(4, ge=0, le=32)
    rotation: float = Field(0, ge=0, le=180)
    flip: bool = True
    mean: Channels = (0.4914, 0.4822, 0.4465)
    std: Channels = (0.2023, 0.1994, 0.2010)
    workers: int = Field(0, ge=0)
    cache_on_device: bool = True

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return 32, 32


DataConfig = Annotated[ImageDataConfig, DATA_KINDS.choice()]
