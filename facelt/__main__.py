"""Entry `python -m facelt NAME`, for torchrun as well."""

from facelt.cli.main import main

if __name__ == "__main__":
    main()
