"""Settings of every command: dataclasses with a docstring after each field, checked when built, strict about names.

The docstring after a field is its help on the command line, its explanation on the page and its line in the README.
"""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path


ASSETS = Path(__file__).resolve().parent.parent / "assets"
EVERYDAY = "everyday"
"""Name of the embedded default, accepted wherever a model or a data set is asked for."""


class BadInput(ValueError):
    """Something a person gave that cannot work; the message is one sentence that says what to do."""


@cache
def field_docs(config: type) -> dict[str, str]:
    """The docstring after each field of a dataclass and of its bases, by field name."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, after in zip(body, body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[node.target.id] = " ".join(str(after.value.value).split())
    return docs


def convert(config: type, name: str, value: object) -> object:
    """Turn a value from the command line, a YAML file or the page into the type that field `name` declares.

    Raises:
        BadInput: the value is not of that type.
    """
    hint = typing.get_type_hints(config)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "") and type(None) in options):
        if type(None) in options:
            return None
        raise BadInput(f"{name} needs a value.")
    kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise BadInput(f"{name} must be one of {', '.join(typing.get_args(kind))}, not {value!r}.")
        return value
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise BadInput(f"{name} must be true or false, not {value!r}.")
        return str(value).lower() == "true"
    try:
        number = float(value) if kind in (int, float) else None
    except (TypeError, ValueError):
        number = float("nan")
    if kind is int:
        if number != number or int(number) != number:
            raise BadInput(f"{name} must be a whole number, not {value!r}.")
        return int(number)
    if kind is float:
        if number != number:
            raise BadInput(f"{name} must be a number such as 0.0003 or 3e-4, not {value!r}.")
        return number
    return str(value)


def build(config: type, values: dict[str, object]) -> object:
    """Build a config from untyped values.

    Raises:
        BadInput: an unknown name, a value of the wrong type, or one out of range.
    """
    known = {field.name for field in dataclasses.fields(config)}
    for name in values:
        if name not in known:
            raise BadInput(f"{name} is not a setting here; the settings are {', '.join(sorted(known))}.")
    return config(**{name: convert(config, name, value) for name, value in values.items()})


def check_range(
    config: object, name: str, *, low: float = float("-inf"), high: float = float("inf"), above: float = float("-inf")
) -> None:
    """Check `low <= value <= high` and `value > above`; None passes.

    Raises:
        BadInput: the value lies outside.
    """
    value = getattr(config, name)
    if value is None or (low <= value <= high and value > above):
        return
    bounds = [f"above {above:g}"] if above != float("-inf") else []
    bounds += [f"at least {low:g}"] if low != float("-inf") else []
    bounds += [f"at most {high:g}"] if high != float("inf") else []
    raise BadInput(f"{name} must be {' and '.join(bounds)}, not {value:g}.")


@dataclass
class PretrainConfig:
    """Settings of `python -m rlhf pretrain`, which makes the embedded base model again."""

    output_dir: str = str(ASSETS / "base")
    """Folder for the tokenizer and the model."""
    num_dialogs: int = 220_000
    """Dialogs to write and read once, each another."""
    vocab_size: int = 3072
    """Byte-level BPE tokens, special tokens included."""
    n_embd: int = 192
    """Width of the model."""
    n_layer: int = 4
    """Transformer blocks."""
    n_head: int = 6
    """Attention heads a block."""
    n_positions: int = 128
    """Longest text in tokens, prompt and response together."""
    learning_rate: float = 2e-3
    """Peak learning rate; warmed up over 2 % of the steps, then a cosine to zero."""
    per_device_train_batch_size: int = 96
    """Dialogs a step."""
    seed: int = 0
    """Seed of the corpus and of the weights."""

    def __post_init__(self) -> None:
        check_range(self, "num_dialogs", low=100)
        check_range(self, "vocab_size", low=300)
        check_range(self, "learning_rate", above=0, high=1)
