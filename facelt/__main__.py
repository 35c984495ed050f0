"""`python -m facelt` and `torchrun -m facelt`: the command line."""

from facelt.cli.main import main

if __name__ == "__main__":
    main()
