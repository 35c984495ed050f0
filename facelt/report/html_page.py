"""HTML rendering: the jinja2 environment and the filters that the templates of all reports share."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelt.report import formatting
from facelt.utils.text import sanitize

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, context: dict[str, Any]) -> str:
    """Returns the page `template` filled with `context`. All text is escaped; only `markup` passes unchanged."""
    return _environment().get_template(template).render(context)


def markup(svg: str) -> str:
    """Marks SVG from `facelt.report.plots` as safe: its texts were escaped when it was written."""
    from markupsafe import Markup

    return Markup(svg)


def _printable(value: object) -> object:
    # Markup is a subclass of str and passes unchanged.
    return sanitize(value) if type(value) is str else value


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": formatting.percent, "count": formatting.count}
    environment.globals["format"] = formatting
    return environment
