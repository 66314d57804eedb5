"""Numbers as words: the one way in which estimates, shares and settings are written in texts, tables and figures."""

import re
from collections.abc import Callable


def minus(text: str) -> str:
    """Printed numbers with a minus sign in place of the hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def number(value: float | None, digits: int = 3) -> str:
    """A number with a fixed count of decimals; what rounds to zero has no sign.

    A file of JSON has None for what is infinite or no number: it is called none.
    """
    return "none" if value is None else minus(f"{value:z.{digits}f}")


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign: +0.35."""
    return minus(f"{value:+z.{digits}f}")


def percent(share: float, digits: int = 0) -> str:
    """A share of one in per cent: 43 %."""
    return f"{number(100 * share, digits)} %"


def count(n: int) -> str:
    """A whole number, its thousands set apart: 10,240."""
    return f"{n:,}"


def interval(estimate: dict[str, float], digits: int = 3, write: Callable[[float, int], str] = number) -> str:
    """An estimate with its 95 % interval: 0.313 [0.278, 0.350].

    Args:
        estimate: value, ci_low and ci_high, as `Interval.as_dict` gives them.
        digits: decimals of each.
        write: how each is written: `number`, `signed` or `percent`.
    """
    value, low, high = (write(estimate[name], digits) for name in ("value", "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]"


def share(estimate: dict | None, digits: int = 0) -> str:
    """A share of the possible with its interval: at least 92 % [88 %, 97 %]; none at a tiny KL."""
    if estimate is None:
        return "none"
    return f"{estimate['bound']} {interval(estimate, digits, percent)}".strip()


def weighted(name: str, weight: float) -> str:
    """What a sum is made of, with its weight unless that is 1: length:20 × 0.5."""
    return name if weight == 1 else f"{name} × {minus(f'{weight:g}')}"


def setting(value: object) -> str:
    """A setting's value as a flag takes it: none, true, 0.05."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(text: str) -> str:
    """A text in a cell of a Markdown table, shown letter by letter: on one line, no character of it is markup."""
    return re.sub(r"([\\`*_\[\]<&|~$])", r"\\\1", " ".join(text.split()))


def shortened(text: str, longest: int = 400) -> str:
    """A text as it fits a terminal: indented below its label, its middle left out if it is long."""
    text = text.strip()
    if len(text) > longest:
        text = f"{text[: longest // 2]} [...] {text[-longest // 2 :]}"
    return text.replace("\n", "\n" + " " * 12)


def left(text: object, width: int) -> str:
    """A column of a table of plain text, flush left."""
    return f"{text:<{width}}"


def right(text: object, width: int) -> str:
    """A column of a table of plain text, flush right."""
    return f"{text:>{width}}"
