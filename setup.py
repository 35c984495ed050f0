"""Build step of the wheel: it carries the recipes of configs/ as facelt/configs. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes into the built package; an editable installation reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "facelt" / "configs"
            # An earlier build may have left a recipe that no longer exists.
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree("configs", folder)


setup(cmdclass={"build_py": BuildWithRecipes})
