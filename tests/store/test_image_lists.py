"""Image lists and noise lists; features lists are tested with MegaFace's."""

import pytest

from facelt.errors import UserError
from facelt.store.feature_tree import read_image_list, read_noise_names


@pytest.fixture
def write(tmp_path):
    def to(text):
        path = tmp_path / "list"
        path.write_text(text)
        return path

    return to


def test_a_list_is_lines_or_json(write):
    assert read_image_list(write("# images\na/1.jpg\n\nb/2.jpg\n")) == ["a/1.jpg", "b/2.jpg"]
    assert read_image_list(write('{"path": ["a/1.jpg"], "id": ["0"]}')) == ["a/1.jpg"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "lists no images"),
        ("# nothing\n", "lists no images"),
        ("a/1.jpg\na/1.jpg\n", "'a/1.jpg' is listed more than once"),
        ("../1.jpg\n", "is not a relative path under the folder of the images"),
        ("/1.jpg\n", "is not a relative path under the folder of the images"),
        ("{", "not a JSON features list"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(write, text, what):
    path = write(text)
    with pytest.raises(UserError) as error:
        read_image_list(path)
    assert str(error.value).startswith(f"{path}: ")
    assert what in str(error.value)


def test_noise_names_are_the_second_field_where_there_are_tabs(write):
    assert read_noise_names(write("# noise\nx_1.png\n3\ty/2.jpg\tz\n\n")) == ["x_1.png", "y/2.jpg"]
    with pytest.raises(UserError, match="cannot be read"):
        read_noise_names(write("").with_name("absent"))
