"""python -m recordio_tools info | verify | sample | lists | pack | unpack."""

import sys
from collections.abc import Sequence

from recordio_tools.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is one line on stderr and exit code 1."""
    from recordio_tools.cli import app

    try:
        app(args=None if argv is None else list(argv), prog_name="recordio-tools")
    except (UserError, OSError) as error:
        print(f"recordio-tools: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
