"""How many images a run may lose before it stops."""

from collections.abc import Iterable

from facelt.data.batch import BadImage
from facelt.errors import UserError

_NAMED = 5


class BadImageCount:
    """Counts distinct unusable images over a run; an image met again in a later epoch counts once.

    `setting` is what a user changes to allow more than `limit`.
    """

    def __init__(self, limit: int, setting: str = "data.max_bad_images") -> None:
        self.limit = limit
        self.setting = setting
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, bad: Iterable[BadImage]) -> tuple[BadImage, ...]:
        """Take the bad images of a batch; returns those not met before, so that each is reported once.

        Raises UserError when more than `limit` different images were bad, naming the first few.
        """
        new = tuple(item for item in dict(bad).items() if item[0] not in self.reasons)
        self.reasons.update(new)
        if len(self.reasons) > self.limit:
            first = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:_NAMED])
            rest = len(self.reasons) - _NAMED
            more = f"; and {rest} more" if rest > 0 else ""
            raise UserError(
                f"{len(self.reasons)} images cannot be used, {self.setting} allows {self.limit}: {first}{more}"
            )
        return tuple(BadImage(*item) for item in new)
