"""The frame of report.html: templates whose text is escaped, the charts' library, the data."""

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from actcache.analysis.report.html.library import chart_library
from actcache.analysis.report.html.marks import CONFIG, Spec

TEMPLATES = Path(__file__).parent / "templates"


def render(
    template: str,
    *,
    charts: dict[str, Spec],
    tables: dict[str, Any],
    more: dict[str, Any] | None = None,
    **values: Any,
) -> str:
    """Render a page in which everything is: charts, numbers, script, style.

    Args:
        template: file name in `templates/`.
        charts: specifications by name.
        tables: columns of numbers by name.
        more: what else the page's script reads.
        values: what the template shows; all text is escaped.
    """
    data = {"config": CONFIG, "charts": charts, "tables": tables, **(more or {})}
    page = _environment().get_template(template)
    return page.render(data=data, library=_library(), version=version("actcache"), **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment


@cache
def _library() -> Markup:
    """The charts' library, so that no text in it ends the element that it stands in."""
    return Markup(chart_library().replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _printable(value: Any) -> Any:
    """Show control characters of texts as escapes; templates' own markup is left alone."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "replace").decode()
        for c in value
    )
