"""The files of a run: what may stand in them, and how they are written and read.

JSON is strict, without NaN, and replaced in one step; what no run has written is not read.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict


LONGEST_NAME, LONGEST_NOTE = 60, 500
"""Characters of what people call a run, and of what they note about it."""

_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Time = Annotated[float, Field(ge=0, lt=1e11)]
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


@with_config(_STRICT)
class _Status(TypedDict, total=False):
    """What `status.json` holds, beside what only the page shows; times in seconds."""

    state: str
    kind: str
    message: str
    owner: str
    pid: _Count | None
    """None while it waits."""
    began: float
    """When the process with this id began, counted from the computer's start: another one may get the same id."""
    step: _Count
    total_steps: _Count
    created: _Time
    queued: _Time
    started: _Time
    updated: _Time
    ended: _Time
    seconds_left: float | None


@with_config(_STRICT)
class _Sample(TypedDict, total=False):
    """A line of `samples.jsonl`."""

    step: _Count
    index: _Count
    prompt: str
    response: str
    score: float | None


@with_config(_STRICT)
class _About(TypedDict, total=False):
    """What `about.json` holds."""

    name: Annotated[str, Field(max_length=LONGEST_NAME)]
    note: Annotated[str, Field(max_length=LONGEST_NOTE)]


STATUS, ABOUT = TypeAdapter(_Status), TypeAdapter(_About)
LINES = {
    "metrics.jsonl": TypeAdapter(dict[str, int | float | None], config=_STRICT),
    "samples.jsonl": TypeAdapter(_Sample),
}


def _finite(value: object) -> object:
    """Strict JSON has no NaN: a number that is not finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step, so that a reader never sees half of it."""
    # Threads may write at once: who stops a run, and who waits for its process.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_text(as_text(value), encoding="utf-8")
        while_it_is_held(lambda: temporary.replace(path))
    finally:
        temporary.unlink(missing_ok=True)  # part of a file, where the disk is full


def as_text(value: object) -> str:
    """A JSON file's content."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n"


def as_line(value: dict) -> str:
    """A line of JSON, as a log has them."""
    return json.dumps(_finite(value), ensure_ascii=False) + "\n"


def while_it_is_held(action: Callable[[], object]) -> object:
    """Do something with a file. Windows refuses while another process has it open, which here takes milliseconds."""
    for _ in range(50):
        try:
            return action()
        except PermissionError:
            time.sleep(0.01)
    return action()


def read_json(path: Path) -> dict:
    """A JSON file's content; empty when there is none yet or it is damaged, so that one bad run hides no others."""
    try:
        value = from_json(while_it_is_held(path.read_bytes)) if path.is_file() else {}  # a pipe would never end
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
