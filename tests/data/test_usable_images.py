"""Datasets of which no image can be used are refused from a few images, all others are accepted."""

import numpy as np
import pytest

from facelt.data.dataset import ImageDataset
from facelt.data.decode import BadImageError
from facelt.data.transforms import ExpectSize
from facelt.errors import UserError


class Usable(ImageDataset):
    """Images of which only some can be read; `read` lists the others that were tried."""

    def __init__(self, images: int, usable: set[int]) -> None:
        super().__init__(np.zeros(images, dtype=np.int64), 1, ExpectSize((4, 4)))
        self.usable, self.tried = usable, []

    def image_name(self, index: int) -> str:
        return f"image {index}"

    def read_image(self, index: int) -> np.ndarray:
        self.tried.append(index)
        if index not in self.usable:
            raise BadImageError("damaged")
        return np.zeros((4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("usable", range(7))
def test_one_usable_image_of_few_is_enough(usable):
    Usable(7, {usable}).require_usable(np.arange(7))


def test_members_are_tried_over_their_whole_range():
    dataset = Usable(1000, set())
    with pytest.raises(UserError, match=r"^image 300: damaged; none of the 16 images that were tried can be used$"):
        dataset.require_usable(np.arange(300, 1000))
    assert dataset.tried == [int(index) for index in np.linspace(300, 999, 16)]
    dataset = Usable(1000, {999})
    dataset.require_usable(np.arange(300, 1000))
    dataset = Usable(1000, {300})
    dataset.require_usable(np.arange(300, 1000))
    assert dataset.tried == [300]


def test_without_members_nothing_is_tried():
    Usable(3, set()).require_usable(np.arange(0))
