"""What can be told of images that are made while training: blends of two, and moved foregrounds."""

from typing import Annotated, Any, Literal

from pydantic import Field

from facelt.config.strict import Strict


class _Mix(Strict):
    """Steps on blends of two images; the first one's share is drawn from Beta(alpha, alpha)."""

    alpha: float = Field(1.0, gt=0)

    @property
    def options(self) -> dict[str, Any]:
        """What a way to mix is built with."""
        return self.model_dump(exclude={"name"})


class MixupConfig(_Mix):
    """The images are blended, or their features: manifold mixup."""

    name: Literal["input", "manifold"]


class RemixConfig(_Mix):
    """The rarer class's label alone where the other class has `kappa` times the images and less than `tau` of it."""

    name: Literal["remix"]
    kappa: float = Field(3.0, gt=1)
    tau: float = Field(0.5, ge=0, le=1)


MixConfig = Annotated[MixupConfig | RemixConfig, Field(discriminator="name")]


class ForegroundConfig(Strict):
    """Images of rare classes with their foreground moved, as many as bring every class to one size.

    With a `threshold` classes of as many training images have none, and no class more than that.
    """

    threshold: int | None = Field(None, ge=1)
