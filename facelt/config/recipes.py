"""Recipes that come with facelt: the YAML files of configs/, found by name, in a checkout and in an installed wheel.

A recipe's name is its path in that folder without the suffix: `ms1m_lt`, `cifar100_lt/ldam_drw`.
"""

import difflib
import re
from pathlib import Path

from facelt.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the recipes in the package; a folder configs next to an installed package would be of another one.
_PACKAGED = _PACKAGE / "configs"

CHECKOUT: Path | None = None if _PACKAGED.is_dir() else _PACKAGE.parent
"""Root of the source checkout that the package is imported from; None if it is installed from a wheel."""
RECIPES_FOLDER = _PACKAGED if CHECKOUT is None else CHECKOUT / "configs"
_SUFFIXES = (".yaml", ".yml")
_BASE = re.compile(r"^base: *(\S+)$", re.MULTILINE)
_FIRST_SENTENCE = re.compile(r".*?\.(?=\s|$)")


def recipe_names() -> list[str]:
    """Returns the names of all recipes, sorted, those of a suite behind the others."""
    names = [
        path.relative_to(RECIPES_FOLDER).with_suffix("").as_posix() for path in RECIPES_FOLDER.rglob(f"*{_SUFFIXES[0]}")
    ]
    return sorted(names, key=lambda name: ("/" in name, name))


def recipe_file(name: str) -> Path:
    """Returns the file of a recipe. Raises UserError with the nearest names."""
    names = recipe_names()
    if name not in names:
        raise UserError(f"{name}: no such recipe; {_nearest(name, names)}")
    return RECIPES_FOLDER / f"{name}{_SUFFIXES[0]}"


def recipe_text(name: str) -> str:
    """Returns the YAML text of a recipe, with the recipe's name for the file of `base`, so that it works anywhere."""
    folder = Path(name).parent
    return _BASE.sub(
        lambda match: f"base: {(folder / match[1]).with_suffix('').as_posix()}",
        recipe_file(name).read_text(encoding="utf-8"),
    )


def recipe_summary(name: str) -> str:
    """Returns the first sentence of the comment at the head of a recipe."""
    comment = []
    for line in recipe_file(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    sentence = _FIRST_SENTENCE.match(" ".join(comment))
    return sentence[0] if sentence else ""


def find_config(name: str | Path, folder: Path = Path()) -> Path:
    """Returns the file that a path, relative to `folder`, or else a recipe's name stands for.

    A path with the suffix of YAML is returned even if there is no such file. Raises UserError for any other word.
    """
    path = folder / name
    if path.is_file() or path.suffix in _SUFFIXES:
        return path
    names = recipe_names()
    if str(name) in names:
        return recipe_file(str(name))
    raise UserError(f"{name}: neither a file nor a recipe; {_nearest(str(name), names)}")


def missing_file_hint(path: Path) -> str:
    """Returns a hint at the recipe that a missing file could be, to append to a message; empty if there is none."""
    name = path.with_suffix("").as_posix().removeprefix(f"{RECIPES_FOLDER.name}/")
    return f"; the recipe that comes with facelt is named {name}" if name in recipe_names() else ""


def _nearest(name: str, names: list[str]) -> str:
    # The suite may be missing, or the name misspelt.
    near = [other for other in names if other.endswith(f"/{name}")] or difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return f"{hint}`facelt recipes` lists the recipes"
