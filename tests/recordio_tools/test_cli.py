"""Command line of recordio_tools: output, files written, and error messages."""

import ast
import csv
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import recordio_tools
from recordio_tools import cli
from recordio_tools.__main__ import main
from recordio_tools.face_set import FaceRecord
from recordio_tools.verify import verify_record_file


def run(*arguments) -> int:
    """Runs one command; returns its exit code."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code or 0


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def table(faces):
    """An identities.csv next to the face set."""
    path = faces.with_name("identities.csv")
    path.write_text('label,name,gender,images\n0,"Ann ""A"", B",female,4\n1,Bo,male,1\n2,Cy,male,3\n')
    return path


def test_a_sample_has_all_its_files(faces, table, tmp_path, capsys):
    out = tmp_path / "lt"
    assert run("sample", faces, "--out", out, "--images", 4, "--identities", 2, "--seed", 3, "--pack", "--json") == 0
    statistics = json.loads(capsys.readouterr().out)
    assert statistics == json.loads((out / "statistics.json").read_text())
    assert statistics["selection"]["images"] == 4
    assert statistics["selection"]["identities"] == 2
    assert statistics["source"]["images_per_identity"] == {
        "min": 1,
        "median": 3.0,
        "mean": pytest.approx(8 / 3),
        "max": 4,
    }
    manifest = [tuple(map(int, row.values())) for row in read_csv(out / "manifest.csv")]
    with FaceRecord(faces) as source, FaceRecord(out / "train.rec") as packed:
        assert packed.labels.tolist() == [new_label for _, _, new_label in manifest]
        for number, (key, label, new_label) in enumerate(manifest, start=1):
            assert source.labels[source.image_keys == key].tolist() == [label]
            assert bytes(packed.read(number).payload) == bytes(source.read(key).payload)
            assert packed.read(number).header.label == new_label
        assert sum(count * identities for count, identities in statistics["histogram"]) == 4
        rows = read_csv(out / "identities.csv")
        assert [int(row["images"]) for row in rows] == packed.counts.tolist()
    names = {int(row["label"]): row["name"] for row in read_csv(table)}
    kept = sorted({label for _, label, _ in manifest})
    assert [(row["label"], row["name"]) for row in rows] == [(str(new), names[old]) for new, old in enumerate(kept)]
    assert verify_record_file(out / "train.rec").issues == []
    assert sorted(file.name for file in out.iterdir()) == [
        "distribution.svg",
        "identities.csv",
        "manifest.csv",
        "property",
        "statistics.json",
        "train.idx",
        "train.rec",
    ]


def test_the_drawing_is_a_labelled_svg(faces, tmp_path):
    run("sample", faces, "--out", tmp_path / "lt", "--images", 4)
    drawing = ElementTree.parse(tmp_path / "lt/distribution.svg")
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"identity, by rank", "images per identity", "source, 3 identities"} <= set(texts)


def test_without_matplotlib_there_is_no_drawing(faces, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("sample", faces, "--out", tmp_path / "lt", "--images", 4) == 0
    assert sorted(path.name for path in (tmp_path / "lt").iterdir()) == ["manifest.csv", "statistics.json"]


def test_the_same_seed_gives_the_same_manifest(golden, tmp_path, capsys):
    source = golden / "recordio"
    for name in ("a", "b"):
        run("sample", source, "--out", tmp_path / name, "--images", 9, "--seed", 11)
    run("sample", source, "--out", tmp_path / "c", "--images", 9, "--seed", 12)
    first, second, other = ((tmp_path / name / "manifest.csv").read_text() for name in "abc")
    assert first == second != other
    # Found by waiting times of 40 digits from pure integers, as test_long_tail computes them.
    assert [row["key"] for row in read_csv(tmp_path / "a/manifest.csv")] == MANIFEST_OF_SEED_11
    assert "images                 9" in capsys.readouterr().out


MANIFEST_OF_SEED_11 = ["1", "3", "5", "6", "12", "16", "22", "26", "27"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--images", 9], "9 images cannot be drawn from 8"),
        ([], "--images is required"),
        (["--profile", "pareto", "--images", 3], "--images does not apply to --profile pareto"),
        (["--images", 3, "--alpha", 2], "--alpha does not apply to --profile proportional"),
        (["--profile", "exponential", "--imbalance", 2], "lower --max"),
        (["--images", 3, "--seed", -1], "seed must be"),
    ],
)
def test_impossible_samples_are_refused(faces, tmp_path, capsys, arguments, reason):
    assert run("sample", faces, "--out", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_profiles_name_their_parameters(faces, tmp_path, capsys):
    options = ["--profile", "exponential", "--imbalance", 1, "--max", 1, "--json"]
    assert run("sample", faces, "--out", tmp_path / "exponential", *options) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    assert profile == {"name": "exponential", "seed": 0, "imbalance": 1.0, "max": 1, "identities": None}
    options = ["--profile", "pareto", "--max", 3, "--min", 1, "--identities", 2]
    assert run("sample", faces, "--out", tmp_path / "pareto", *options) == 0
    manifest = np.genfromtxt(tmp_path / "pareto/manifest.csv", delimiter=",", names=True)
    assert manifest["new_label"].tolist() == [0, 0, 0, 1]


def test_the_source_is_never_overwritten(faces, capsys):
    before = faces.read_bytes()
    linked = faces.parent.with_name("link")
    linked.symlink_to(faces.parent)
    for command, options in (("sample", ["--images", 3, "--pack"]), ("unpack", [])):
        for out in (faces.parent, linked, faces.parent.parent):
            assert run(command, faces, "--out", out, "--overwrite", *options) == 1
            assert (
                capsys.readouterr().err == f"recordio-tools: {out}: holds the source {faces}; choose another folder\n"
            )
    assert faces.read_bytes() == before


COMMANDS = {
    "sample": ("faces", "--images", "3", "--pack"),
    "unpack": ("faces",),
    "pack": ("images",),
    "lists": ("images", "--profile", "step", "--max", "1"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_is_new_or_replaced_whole(faces, tmp_path, capsys, monkeypatch, command):
    run("unpack", faces, "--out", tmp_path / "images")
    words = [command, tmp_path / COMMANDS[command][0], *COMMANDS[command][1:], "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    assert run(*words) == 0  # an empty folder
    expected = contents(tmp_path / "out")
    (tmp_path / "out/identities.csv").write_text("of another selection")
    (tmp_path / "out/old").mkdir()
    old = contents(tmp_path / "out")
    capsys.readouterr()
    # Refused before anything is read.
    monkeypatch.setattr(cli, "FaceRecord", None)
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"recordio-tools: {tmp_path / 'out'}: exists already and is not empty; ")
    assert (error.count("\n"), "--overwrite" in error) == (1, True)
    assert contents(tmp_path / "out") == old
    monkeypatch.undo()
    assert run(*words, "--overwrite") == 0
    assert contents(tmp_path / "out") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "images", "out"]


def contents(folder) -> dict[str, bytes]:
    """The bytes of all files below a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "text", ["name\nAnn\n", "label,name\n0,a\n0,b\n1,c\n2,d\n", "label,name\n0\n", "label,name\n7,g\n"]
)
def test_a_wrong_identities_csv_is_refused_before_any_work(faces, tmp_path, capsys, text):
    faces.with_name("identities.csv").write_text(text)
    assert run("sample", faces, "--out", tmp_path / "out", "--images", 8, "--pack") == 1
    assert "identities.csv" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_verify_names_the_damage_and_fails(faces, capsys):
    assert run("verify", faces.parent) == 0
    assert "12 records, 8 images, 0 issues" in capsys.readouterr().out
    data = bytearray(faces.read_bytes())
    data[0] ^= 1
    faces.write_bytes(data)
    assert run("verify", faces) == 1
    assert "record key 1 at offset 0: no magic word at offset 0" in capsys.readouterr().out
    assert run("verify", faces, "--json", "--no-decode") == 1
    issue = {"key": 1, "offset": 0, "reason": "no magic word at offset 0"}
    assert json.loads(capsys.readouterr().out)["issues"] == [issue]


def test_info_summarizes_a_file(golden, tmp_path, capsys):
    assert run("info", golden / "recordio/train.rec", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["records"], summary["images"], summary["identities"], summary["identity_records"]) == (39, 33, 5, 5)
    assert summary["first_image"] == "jpeg, 112 x 112, 6619 bytes"
    shutil.copyfile(golden / "recordio/train.rec", tmp_path / "train.rec")
    assert run("info", tmp_path) == 0
    assert "from a scan" in capsys.readouterr().out


def test_pack_and_unpack(faces, tmp_path, capsys):
    assert run("unpack", faces, "--out", tmp_path / "images") == 0
    assert run("pack", tmp_path / "images", "--out", tmp_path / "again", "--json") == 0
    assert (tmp_path / "again/train.rec").read_bytes() == faces.read_bytes()
    assert run("pack", tmp_path / "images", "--out", tmp_path / "again", "--size", "12") == 1
    assert "--size 12: expected HEIGHTxWIDTH" in capsys.readouterr().err
    assert run("pack", tmp_path / "absent", "--out", tmp_path / "again") == 1


@pytest.mark.parametrize("command", ["info", "verify", "unpack", "sample"])
def test_a_missing_file_is_one_line(tmp_path, capsys, command):
    options = [] if command in ("info", "verify") else ["--out", tmp_path / "out"]
    assert run(command, tmp_path / "absent.rec", *options) == 1
    error = capsys.readouterr().err
    assert "absent.rec: no such file" in error
    assert error.count("\n") == 1


def test_help_is_light_and_the_package_imports_nothing_heavy(root):
    code = (
        "import sys\n"
        "from recordio_tools.__main__ import main\n"
        "try: main(['sample', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'faiss', 'matplotlib', 'cv2', 'facelt', 'scipy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert result.returncode == 0, result.stderr
    assert "--images" in result.stdout


def test_the_package_depends_on_numpy_and_opencv_alone(root):
    allowed = sys.stdlib_module_names | {"numpy", "cv2", "recordio_tools"}
    for path in (root / "recordio_tools").glob("*.py"):
        optional = {"cli.py": {"typer"}, "progress.py": {"rich"}, "selection.py": {"matplotlib"}}.get(path.name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed | optional, path.name
    assert all(hasattr(recordio_tools, name) for name in recordio_tools.__all__)
