"""Entry point of `python -m recordio_tools` and the script recordio-tools."""

import sys
from collections.abc import Sequence

from recordio_tools.errors import UserError, sanitize


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; wrong input is reported in one line on stderr with exit code 1."""
    from recordio_tools.cli import recordio_app

    try:
        recordio_app(args=None if argv is None else list(argv), prog_name="recordio-tools")
    except (UserError, OSError) as error:
        print(f"recordio-tools: {sanitize(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
