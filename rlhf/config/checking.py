"""How settings are read and checked: plain dataclasses, each field checked by pydantic against its own annotation.

The docstring after a field is its help on the command line and its explanation on the page.
"""

import ast
import dataclasses
import inspect
import json
import os
import re
import shlex
import textwrap
import typing
from functools import cache
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError


class BadInput(ValueError):
    """Something a person gave that cannot work; the message is one sentence that says what to do.

    Args:
        field: name of the setting that the message is about, if it is about one.
    """

    def __init__(self, message: object = "", field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def with_labels(self, labels: dict[str, str]) -> str:
        """The message with each setting under its label, for a form that shows settings under names of its own."""
        names = [name for name in labels if "_" in name or name == self.field]  # "seed" is a word as well
        pattern = rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?!\w)"
        return re.sub(pattern, lambda name: f"“{labels[name[1]]}”", str(self)) if names else str(self)


class Diverged(RuntimeError):
    """A training has gone wrong for good; the message names what first did, and the step."""


class FailedElsewhere(BadInput):
    """Another of several processes has failed, and has printed this sentence."""


# Types of fields, beside Python's and pydantic's own -----------------------------------------------------------------


def _whole(value: object) -> int:
    try:
        number = float(value)  # "2e3" is a whole number too
        if number == int(number) and abs(number) <= 1e9:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError("a whole number, at most 1e9")


def _split(value: object) -> object:
    return value.split() if isinstance(value, str) else value


def _coefficient_as_text(text: str) -> str:
    try:
        if 0 <= float(text) <= 1000:
            return text
    except ValueError:
        pass
    raise ValueError("numbers from 0 to 1000, with spaces between them")


def _path(text: str) -> str:
    text = os.path.expanduser(text.strip())
    if not text or re.search("[\0\ud800-\udfff]", text):  # half a character names no file
        raise ValueError("a path or a name")
    return text


def _true_or_path(value: object) -> object:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _steps(count: int) -> int:
    if count != -1 and count < 1:
        raise ValueError("at least 1, or -1")
    return count


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.lower() in ("none", "") else value


def _keywords(value: object) -> object:
    """Names with values, given as JSON or as name=value with spaces between, as a dictionary."""
    if not isinstance(value, str):
        return value
    try:
        if value.lstrip().startswith("{"):
            return json.loads(value)
        pairs = [word.partition("=") for word in shlex.split(value)]
        if all(name.isidentifier() and equals for name, equals, _ in pairs):
            return {name: _json_or_text(text) for name, _, text in pairs}
    except ValueError:
        pass
    raise ValueError('names with values such as enable_thinking=false, or JSON such as {"enable_thinking": false}')


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


_NUMBER = "a number such as 0.0003 or 3e-4"

Int = Annotated[int, BeforeValidator(_whole)]
PositiveInt = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
Steps = Annotated[Int, AfterValidator(_steps)]
"""A number of steps; -1 leaves it to another setting."""
BatchSize = Annotated[Int, Field(ge=1, le=65_536)]
Passes = Annotated[Int, Field(ge=1, le=1000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Coefficient = Annotated[float, Field(ge=0, le=1000)]
"""Weight of a term of the loss or of the reward."""
Temperature = Annotated[float, Field(gt=0, le=100)]
PathOrName = Annotated[str, AfterValidator(_path)]
"""Of a file, a folder, a model or a data set; `~` is the home directory."""
Resume = Annotated[bool | PathOrName, BeforeValidator(_true_or_path)]
"""Whether to go on with a run, or from which checkpoint."""
Text = Annotated[str, Field(min_length=1)]
"""One that is not empty."""
Words = Annotated[list[str], BeforeValidator(_split)]
"""Several texts: a list, or one text with spaces."""
Counts = Annotated[list[PositiveInt], Field(min_length=1), BeforeValidator(_split)]
"""One whole number or more, each at least 1."""
Keywords = Annotated[dict[str, object], BeforeValidator(_keywords)]
"""Names with values: a dictionary, its JSON, or one text such as enable_thinking=false."""
Coefficients = Annotated[
    list[Annotated[str, AfterValidator(_coefficient_as_text)]],
    Field(min_length=1, max_length=100),
    BeforeValidator(_split),
]
"""One coefficient or more, kept as they were typed."""


# Settings ------------------------------------------------------------------------------------------------------------


class Settings:
    """Base of all settings, which are dataclasses: what is given is converted to the declared types and checked.

    Texts are read as they come from the command line, a YAML file or the page. A class that mixes in other dataclasses
    has only those fields checked that it, or another subclass of this one, declares.

    Raises:
        BadInput: a value of the wrong type or out of range, in one sentence that names the field.
    """

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Convert and check all fields; a subclass adds what concerns several of them together."""
        for name, validator in _validators(type(self)).items():
            value = getattr(self, name)
            try:
                setattr(self, name, validator.validate_python(value))
            except ValidationError as error:
                raise BadInput(_sentence(name, error), field=name) from None


@cache
def _validators(config: type) -> dict[str, TypeAdapter]:
    """A validator per field, by name; "none" or nothing is read as None where None is allowed."""
    declared = {}
    for base in reversed(config.__mro__):
        if issubclass(base, Settings):
            declared |= inspect.get_annotations(base)
    read_as = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)
    return {
        name: TypeAdapter(
            Annotated[hint, BeforeValidator(_none)] if type(None) in typing.get_args(hint) else hint, config=read_as
        )
        for name, hint in declared.items()
    }


_MUST_BE = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "one of {expected}",
    "value_error": "{error}",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": _NUMBER,
    "too_long": "at most {max_length} entries",
    "list_type": "a list",
    "dict_type": "a dictionary",
    "string_type": "text",
}
"""What a field must be, by pydantic's name for what is wrong with it."""


def _sentence(name: str, error: ValidationError) -> str:
    """What is wrong with a field's value, for a person."""
    fault = error.errors()[0]
    context, value = fault.get("ctx", {}), fault["input"]
    if value is None or value in ("", [""]) or fault["type"] == "too_short":
        return f"{name} needs a value."
    if "expected" in context:  # "'a', 'b' or 'c'"
        context["expected"] = context["expected"].replace("'", "").replace(" or ", ", ")
    shown = f"{float(value):g}" if {"gt", "ge", "le"} & context.keys() else repr(value)
    shown = f"{len(value)}" if fault["type"] == "too_long" else shown
    must_be = _MUST_BE.get(fault["type"], fault["msg"]).format(**context)
    return f"{name} must be {must_be}, not {shown if len(shown) < 100 else f'{shown[:100]}...'}."


def build(config: type, values: dict[str, object]) -> object:
    """Build settings from values by name, texts or typed.

    Raises:
        BadInput: an unknown name, a value of the wrong type, or one out of range.
    """
    known = {field.name for field in dataclasses.fields(config)}
    for name in values:
        if name not in known:
            raise BadInput(f"{name} is not a setting here; the settings are {', '.join(sorted(known))}.")
    return config(**values)


# About fields --------------------------------------------------------------------------------------------------------


@cache
def field_docs(config: type) -> dict[str, str]:
    """The docstring after each field of a dataclass and of its bases, by field name."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, after in zip(body, body[1:], strict=False):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[node.target.id] = " ".join(str(after.value.value).split())
    return docs


def default_of(field: dataclasses.Field) -> object:
    """A field's default; a list is made anew."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def typed(value: object) -> str:
    """A value as it is typed on the command line: a list with spaces between its entries, a dictionary as JSON."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
