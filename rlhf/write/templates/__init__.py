"""The documents that the program writes, as Jinja2 templates; their filters are the functions of `words`."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf.write import words


# Markdown, not HTML: what comes from data goes through the filter `cell`.
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701
)
for _function in (words.number, words.signed, words.percent, words.count, words.interval, words.setting, words.cell):
    _templates.filters[_function.__name__] = _templates.globals[_function.__name__] = _function


def render(name: str, **values: object) -> str:
    """The template of this name, filled in. A value that is missing is an error, not a gap."""
    return _templates.get_template(name).render(values)
