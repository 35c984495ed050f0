"""`facelt` on the small checkout of the tests, for processes: the folder is in TINY_CHECKOUT."""

import os
from pathlib import Path

import facelt.cli.bench
from facelt.cli.main import main
from tests.training.thin import make_thin

if __name__ == "__main__":
    checkout = Path(os.environ["TINY_CHECKOUT"])
    facelt.cli.bench.CHECKOUT, facelt.cli.bench.RECIPES_FOLDER = checkout, checkout / "configs"
    make_thin()
    main()
