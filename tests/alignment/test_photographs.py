"""Photographs: listing, identities, EXIF orientation, and refused formats."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelt.alignment import photographs
from facelt.alignment.photographs import (
    find_photographs,
    is_animated,
    printable_name,
    read_photograph,
    unsupported_format,
)
from facelt.data import decode
from facelt.data.decode import BadImageError
from facelt.errors import UserError
from tests.alignment.drawing import draw, encode, turned

PICTURE = draw(turned(0, 0.5, (60, 60)), height=120, width=100)
# EXIF 2.3, tag 0x0112: the transform that turns the image upright.
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: np.rot90(image, 2),
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.transpose(1, 0, 2), 2),
    8: lambda image: np.rot90(image, 1),
}


def reason(path: Path, payload: bytes, max_pixels: int = 10**6) -> str:
    path.write_bytes(payload)
    with pytest.raises(BadImageError) as error:
        read_photograph(path, max_pixels)
    return str(error.value)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("kind", "off"), [("PNG", 0), ("WEBP", 0), ("JPEG", 25)])
def test_photographs_are_turned_upright(tmp_path, kind, off, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.asarray(Image.fromarray(PICTURE).resize((12, 9)).resize((100, 120), Image.Resampling.BILINEAR))
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    (tmp_path / "photo").write_bytes(encode(smooth, kind, exif=exif, **options))
    image_HW3 = read_photograph(tmp_path / "photo", 10**6)
    assert np.abs(image_HW3.astype(int) - UPRIGHT[orientation](smooth)).max() <= off


def test_an_orientation_that_does_not_exist_changes_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    (tmp_path / "photo").write_bytes(encode(PICTURE, exif=exif))
    np.testing.assert_array_equal(read_photograph(tmp_path / "photo", 10**6), PICTURE)


def animation(kind: str, frames: int, **options) -> bytes:
    images = [Image.fromarray(PICTURE[::-1] if number % 2 else PICTURE) for number in range(frames)]
    return encode(PICTURE, kind, save_all=True, append_images=images[1:], **options)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animated_images_are_named_and_still_ones_are_not(tmp_path, kind):
    assert is_animated(animation(kind, 3))
    assert reason(tmp_path / "photo", animation(kind, 2)).startswith("animated images")
    assert not is_animated(encode(PICTURE, kind))
    (tmp_path / "photo").write_bytes(encode(PICTURE, kind))
    assert read_photograph(tmp_path / "photo", 10**6).shape == PICTURE.shape


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (encode(PICTURE, "GIF"), "GIF"),
        (animation("GIF", 2), "GIF"),
        (encode(PICTURE, "TIFF"), "TIFF"),
        (b"MM\0*" + bytes(90), "TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(90), "AVIF"),
        (b"\xff\x0a" + bytes(90), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(90), "JPEG 2000"),
    ],
)
def test_unsupported_formats_are_named(tmp_path, payload, name):
    assert reason(tmp_path / "photo", payload) == f"{name} images are not supported; convert it to PNG or JPEG"


def test_what_is_not_known_is_given_no_name():
    known = [encode(PICTURE, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    for payload in (b"", b"\0\0\0\x18ftypmp42", b"text", *known):
        assert unsupported_format(payload) is None


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_no_beginning_of_an_animation_breaks_the_look_at_it(kind):
    payload = animation(kind, 2)
    for length in range(0, len(payload), 7):
        assert is_animated(payload[:length]) in (False, True)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_bomb_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *_: pytest.fail("the decoder saw it"))
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(50_001 * 1_000))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(bomb) < 100_000
    assert reason(tmp_path / "photo", bomb).startswith("50000 x 50000 pixels, above the limit of 1000000")


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("it was read"))
    with (tmp_path / "photo").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(BadImageError, match="10000000000 bytes, more than an image of 1000000 pixels"):
        read_photograph(tmp_path / "photo", 10**6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_cut_image_is_refused(tmp_path, kind):
    payload = encode(PICTURE, kind)
    for share in (0.2, 0.6, 0.98):
        assert reason(tmp_path / "photo", payload[: int(len(payload) * share)])


def test_what_is_no_image_is_refused(tmp_path):
    assert reason(tmp_path / "photo", b"") == "empty, not an image"
    assert reason(tmp_path / "photo", b"<html>").startswith("not a JPEG")
    with pytest.raises(BadImageError, match="No such file"):
        read_photograph(tmp_path / "absent", 10**6)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadImageError, match="not a regular file"):
        read_photograph(tmp_path / "pipe", 10**6)


@pytest.fixture
def tree(tmp_path) -> Path:
    names = ["Ann/2.JPG", "Ann/10.jpg", "b/Bob Lee/x.png", "top_03.webp", "Ann/film.gif", "Ann/scan.TIFF"]
    for name in [*names, "Ann/._2.jpg", ".trash/9.jpg", "Ann/notes.txt"]:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    return tmp_path / "tree"


def test_a_folder_has_its_photographs_in_order_and_the_last_folder_names_people(tree):
    identities = {item.name: item.identity for item in find_photographs(tree)}
    names = ["Ann/10.jpg", "Ann/2.JPG", "Ann/film.gif", "Ann/scan.TIFF", "b/Bob Lee/x.png", "top_03.webp"]
    assert list(identities) == names
    assert list(identities.values()) == ["Ann"] * 4 + ["Bob Lee", ""]
    assert find_photographs(tree)[4].path == tree / "b/Bob Lee/x.png"


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("Ada_Byron_0002.jpg", "Ada_Byron"),
        ("x/Ada Byron 2.jpg", "Ada Byron"),
        ("ada2.jpg", "ada"),
        ("Ada.jpg", "Ada"),
        ("0002.jpg", "0002"),
        ("R2-D2_1.jpg", "R2-D2"),
    ],
)
def test_files_name_people_without_their_number(tmp_path, name, who):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert [item.identity for item in find_photographs(tmp_path, people="file")] == [who]


def test_lists_and_single_files(tree, tmp_path):
    (tmp_path / "plain.txt").write_text("Ann/2.JPG\nb/Bob Lee/x.png\n")
    assert [item.identity for item in find_photographs(tmp_path / "plain.txt", root=tree)] == ["Ann", "Bob Lee"]
    (tmp_path / "labelled.txt").write_text("Ann/2.JPG 7\nb/Bob Lee/x.png -1\n")
    photographs = find_photographs(tmp_path / "labelled.txt", root=tree)
    assert [(item.identity, item.path) for item in photographs] == [
        ("7", tree / "Ann/2.JPG"),
        ("-1", tree / "b/Bob Lee/x.png"),
    ]
    (single,) = find_photographs(tree / "Ann/2.JPG")
    assert (single.name, single.path) == ("2.JPG", tree / "Ann/2.JPG")


def test_what_holds_no_photograph_is_refused(tmp_path):
    with pytest.raises(UserError, match="the folder has no photographs"):
        find_photographs(tmp_path)
    (tmp_path / "train.rec").touch()
    with pytest.raises(UserError, match=r"a \.rec holds aligned faces"):
        find_photographs(tmp_path / "train.rec")
    for absent in ("list.txt", "photo.jpg", "folder"):
        with pytest.raises(UserError, match=f"{absent}: no such file or folder"):
            find_photographs(tmp_path / absent)
    with pytest.raises(UserError, match=r"aaa: cannot be read \(File name too long\)"):
        find_photographs(Path("a" * 300))
    (tmp_path / "list.txt").write_text("../secret.jpg\n")
    with pytest.raises(UserError, match="a list needs --root"):
        find_photographs(tmp_path / "list.txt")
    with pytest.raises(UserError, match="--root absent: no such folder"):
        find_photographs(tmp_path / "list.txt", root=Path("absent"))
    with pytest.raises(UserError, match="leads out of the root folder"):
        find_photographs(tmp_path / "list.txt", root=tmp_path)


def test_a_root_that_nothing_lies_in_is_refused(tree):
    for source in (tree, tree / "Ann/2.JPG"):
        with pytest.raises(UserError, match=r"--root elsewhere: .* is not a list"):
            find_photographs(source, root=Path("elsewhere"))


def test_a_folder_that_cannot_be_looked_into_stops(tree, monkeypatch):
    """Skipping it would silently drop all of its photographs."""
    scan = os.scandir

    def closed(path):
        if Path(path).name == "Bob Lee":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"b/Bob Lee: cannot be read \(Permission denied\)"):
        find_photographs(tree)


def test_a_name_that_is_no_text_is_spelt_out(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9\n.png"))
    path.write_bytes(encode(PICTURE))
    (item,) = find_photographs(tmp_path)
    assert item.name == r"caf\xe9\x0a.png"
    assert read_photograph(item.path, 10**6).shape == PICTURE.shape
    assert printable_name("Zoë, =1+1 \\o/.jpg") == "Zoë, =1+1 \\o/.jpg"
    assert printable_name("gpj.\u202e\u2066x") == r"gpj.\u202e\u2066x"


def test_names_that_are_spelt_out_are_no_other_files():
    names = ["a\nb", r"a\x0ab", r"a\x5cx0ab", "a\u202eb", r"a\u202eb", "a\udc0a", "a\udc8a"]
    assert len({printable_name(name) for name in names}) == len(names)


def test_every_suffix_is_either_read_or_named():
    assert not set(photographs.READ_SUFFIXES) & set(photographs.UNREADABLE_SUFFIXES)
