"""Figure files: bar heights, point positions, unchanged images, and names as text."""

import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from facelt.errors import UserError
from facelt.report.drawing import figure_files
from facelt.report.figures import GROUP_COLOURS, OPEN, draw_concepts, draw_gains, draw_points

SVG = "{http://www.w3.org/2000/svg}"


def shapes(path, colour):
    """Returns the points of each filled path of that colour in an SVG file, as arrays of (x, y)."""
    result = []
    for entry in ElementTree.parse(path).iter(f"{SVG}path"):
        if f"fill: {colour}" in entry.get("style", ""):
            numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", entry.get("d", ""))]
            result.append(np.array(numbers).reshape(-1, 2))
    return result


def texts(path):
    return ["".join(entry.itertext()) for entry in ElementTree.parse(path).iter(f"{SVG}text")]


def test_bars_are_as_high_as_their_gains_and_the_key_says_the_means(tmp_path):
    gain_K = np.array([0.1, -0.2, np.nan, 0.3, 0.4, 0.05])
    group_K = ["many", "many", "medium", "few", "few", OPEN]
    draw_gains(gain_K, group_K, np.array([500, 400, 50, 9, 5, 0]), tmp_path / "gain", baseline="plain")
    svg = tmp_path / "gain.svg"
    scale = {}
    for group, gains in (("many", [0.1, -0.2]), ("few", [0.3, 0.4]), (OPEN, [0.05])):
        # The last path is the one in the key.
        *bars, _ = shapes(svg, GROUP_COLOURS[group])
        heights = [float(np.ptp(bar[:, 1])) for bar in bars]
        scale[group] = [height / abs(gain) for height, gain in zip(heights, gains, strict=True)]
    together = [entry for ratios in scale.values() for entry in ratios]
    assert together == pytest.approx([together[0]] * 5, rel=1e-3)
    assert len(shapes(svg, GROUP_COLOURS["medium"])) == 0
    words = texts(svg)
    assert {"many (-5.0)", "few (+35.0)", "open set (+5.0)"} <= set(words)
    assert {"500", "400", "50", "9", "5", "open", "gain in F1 over plain, points"} <= set(words)


def test_every_point_is_drawn_in_its_place_with_its_groups_colour(tmp_path):
    random = np.random.default_rng(0)
    place_N2, group_N = random.normal(size=(40, 2)), random.permutation(["many"] * 20 + ["few"] * 12 + [OPEN] * 8)
    draw_points(place_N2, group_N, tmp_path / "tsne")
    for group, count in (("many", 20), ("few", 12), (OPEN, 8)):
        used = [
            (float(entry.get("x")), -float(entry.get("y")))
            for entry in ElementTree.parse(tmp_path / "tsne.svg").iter(f"{SVG}use")
            if f"fill: {GROUP_COLOURS[group]}" in entry.get("style", "")
        ][:count]
        # Up to a scale that is the same on both axes, and a shift.
        drawn, expected_points = (places - places.mean(0) for places in (np.array(used), place_N2[group_N == group]))
        np.testing.assert_allclose(
            drawn, expected_points * (np.ptp(drawn) / np.ptp(expected_points)), atol=0.01 * np.ptp(drawn)
        )
        assert f"{group} ({count})" in texts(tmp_path / "tsne.svg")


def test_pictures_are_in_a_grid_with_their_captions(tmp_path):
    flat = [np.full((8, 8, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    rows = [
        ((flat[0], "class 7"), [(flat[1], "class 1: 0.900"), (None, "class 2: 0.050")]),
        ((flat[2], "open set"), []),
    ]
    draw_concepts(rows, tmp_path / "concepts")
    pixels_HW3 = cv2.imread(str(tmp_path / "concepts.png"))[:, :, ::-1]
    height, width, _ = pixels_HW3.shape
    middles = [
        pixels_HW3[int(height * y), int(width * x)].tolist() for y, x in ((0.3, 1 / 6), (0.3, 0.5), (0.75, 1 / 6))
    ]
    assert middles == [[250, 0, 0], [0, 250, 0], [0, 0, 250]]
    assert pixels_HW3[int(height * 0.3), int(width * 5 / 6)].tolist() == [255, 255, 255]
    words = texts(tmp_path / "concepts.svg")
    assert {"class 7", "class 1: 0.900", "class 2: 0.050", "open set", "image", "concept 1", "concept 2"} == set(words)


def test_equal_drawings_are_equal_files_without_a_date(tmp_path):
    for folder in ("a", "b"):
        draw_gains(np.array([0.1]), ["few"], np.array([3]), tmp_path / folder / "gain", baseline="x")
    for suffix in (".svg", ".png"):
        assert (tmp_path / "a" / f"gain{suffix}").read_bytes() == (tmp_path / "b" / f"gain{suffix}").read_bytes()


def test_hostile_names_stay_text(tmp_path):
    name = "<script>$\\frac{$\x1b\x00"
    draw_gains(np.array([0.1]), ["few"], np.array([3]), tmp_path / "gain", baseline=name)
    assert "gain in F1 over <script>$\\frac{$\ufffd\ufffd, points" in texts(tmp_path / "gain.svg")
    assert not list(ElementTree.parse(tmp_path / "gain.svg").iter(f"{SVG}script"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot write .*choose another folder with --out"),
        figure_files(1, 1, tmp_path / "file" / "x"),
    ):
        pass
