"""Drawing an HTML page: the jinja2 environment and the few filters that every report's template shares."""

from functools import cache
from pathlib import Path

from facelt.utils.text import sanitize

TEMPLATES = Path(__file__).parent / "templates"
EN_DASH = "\N{EN DASH}"


def render(template: str, context: dict) -> str:
    """The page `template` filled with `context`. Whatever a name holds is escaped; only `markup` passes as it is."""
    return _environment().get_template(template).render(context)


def markup(svg: str) -> str:
    """SVG drawn by `facelt.report.plots`, marked as safe: its texts were escaped when it was written."""
    from markupsafe import Markup

    return Markup(svg)


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as percent without the sign, a dash for None: 0.83024 -> '83.02'."""
    return EN_DASH if fraction is None else f"{100 * fraction:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends in percent with one decimal, empty where either is missing: 79.1 to 86.8 with an en dash."""
    return "" if low is None or high is None else f"{percent(low, 1)}{EN_DASH}{percent(high, 1)}"


def count(number: int | None) -> str:
    """A count with commas, a dash for None: 26202 -> '26,202'."""
    return EN_DASH if number is None else f"{number:,}"


def _shown(value: object) -> object:
    """What jinja2 prints for `value`: markup is a subclass of str and passes untouched."""
    return sanitize(value) if type(value) is str else value


@cache
def _environment():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "count": count}
    environment.globals |= {"interval": interval}
    return environment
