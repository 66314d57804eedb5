"""The documents that the program writes, as Jinja2 templates; their filters are the functions of `words`."""

import math
from inspect import isfunction
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf import words
from rlhf.config import EVERYDAY


# Markdown, not HTML: what comes from data goes through the filter `cell`.
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701
)
_words = {name: function for name, function in vars(words).items() if isfunction(function)}
_templates.filters |= _words
_templates.globals |= _words | {"chance_loss": math.log(2), "EVERYDAY": EVERYDAY}


def render(name: str, **values: object) -> str:
    """The template of this name, filled in. A value that is missing is an error, not a gap."""
    return _templates.get_template(name).render(values)
