"""What has become of a live session: its states, which of them is the present one, and what people think of each.

A state is what both models had learned by then, in `ppo/checkpoints/checkpoint-N`. To go back is to go on from an
earlier one: no state is deleted for it, and the next has the next number. Choices made since it are left aside.
"""

import time
from collections.abc import Set
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rlhf.compare.stats import Interval
from rlhf.config import BadInput
from rlhf.feedback.store import BY_BASE, Choice, Store
from rlhf.feedback.votes import points_against, win_rate
from rlhf.runs.directory import ACTIVE, Run
from rlhf.runs.files import read_json, write_json
from rlhf.words import count, percent


SESSION = "live.json"
"""File of a store that names the run which learns from it."""
STATE = "live.json"
"""File of a state."""
BACK = "back.json"
"""File of a run."""

LOOKS_SECONDS = 0.5
"""Between looks at what others have written."""


@dataclass(frozen=True)
class State:
    """What a live session has learned; number 0 is the base model."""

    number: int = 0
    origin: int | None = None
    """Number of the state that it went on from."""
    made: float = 0.0
    """When, in seconds since 1970."""
    until: float = 0.0
    """When the last choice was made that it learned from."""
    aside: tuple[tuple[float, float], ...] = ()
    """Spans of time, each without its first moment: the choices made in them are left aside."""
    choices: int = 0
    """That it learned from, ties included."""
    reward_steps: int = 0
    updates: int = 0
    """Optimizer steps of the reward model and updates of PPO so far, those of states that were left included."""
    sizes: dict | None = None
    """Bytes of both stages' logs."""

    def counts(self, choice: Choice) -> bool:
        """Whether a choice is learned from, in this state or the next."""
        return not any(after < choice.time <= until for after, until in self.aside)


@dataclass(frozen=True)
class _Back:
    """What a session was last told to go back to."""

    state: int
    time: float
    """When it was told, in seconds since 1970."""


_STATE, _BACK = TypeAdapter(State), TypeAdapter(_Back)
"""To check what is read: files of other content are passed over."""


def folder_of(run: Run, number: int) -> Path:
    """Where a state lies, which has a number from 1 on."""
    return run.path / "ppo" / "checkpoints" / f"checkpoint-{number}"


def states(run: Run) -> list[State]:
    """The states to which a session can go back, in order; the base model is the first."""
    start = State(aside=((0.0, run.config().get("choices_after", 0)),))
    known = [start]
    for found in filter(None, map(read_json, run.path.glob(f"ppo/checkpoints/checkpoint-*/{STATE}"))):
        with suppress(ValidationError):
            known.append(_STATE.validate_python(found))
    return sorted(known, key=lambda state: state.number)


def present(run: Run) -> State:
    """The state that a session is in: the newest, or the one that it was told to go back to since."""
    known = states(run)
    newest = known[-1]
    try:
        back = _BACK.validate_python(read_json(run.path / BACK))
    except ValidationError:  # it never was told to, or by another program
        return newest
    earlier = next((state for state in known if state.number == back.state), None)
    if earlier is None or back.time < newest.made:
        return newest
    return replace(earlier, until=back.time, aside=(*earlier.aside, (earlier.until, back.time)))


def go_back(run: Run, number: int) -> None:
    """Have a session go on from one of its states, 0 being the base model, at its next look.

    Raises:
        BadInput: there is no such state.
    """
    known = [state.number for state in states(run)]
    if number not in known:
        raise BadInput(f"There is no state {number} to go back to; there are {', '.join(map(str, known))}.")
    write_json(run.path / BACK, asdict(_Back(number, time.time())))


def session(store: Store) -> Run | None:
    """The run that learns, or last learned, from these choices while they are made."""
    named = read_json(store.path / SESSION).get("run")
    run = Run(named) if isinstance(named, str) else None
    return run if run and run.config().get("kind") == "live" else None


def begin(store: Store, run: Run) -> None:
    """Make a run the store's session."""
    write_json(store.path / SESSION, {"run": str(run.path.resolve())})


def writer(run: Run, state: State) -> str:
    """What pairs call the policy of a state."""
    return f"{run.id}, state {state.number}"


def answering(store: Store) -> Set[str]:
    """Who answers what people are asked now: while a session's process runs its policy and the base, else the base."""
    run = session(store)
    if run is None or run.status().get("state") not in ACTIVE or run.process() is None:
        return BY_BASE
    state = present(run)
    return {"base", writer(run, state)} if state.number else BY_BASE


def preferred(store: Store, run: Run) -> tuple[Interval, int] | None:
    """How often people prefer the answers of a session's states to the base's, and in how many pairs."""
    points = points_against(store, "base").items()
    states = [each for name, each in points if name.startswith(f"{run.id}, state ")]
    return win_rate(sum(earned for earned, _ in states), sum(judged for _, judged in states))


def in_words(store: Store, run: Run) -> str:
    """`preferred` in a sentence; empty before anybody has judged the new answers."""
    if (found := preferred(store, run)) is None:
        return ""
    share, n = found
    of = f"{count(n)} {'pair' if n == 1 else 'pairs'}"
    low, high = percent(share.low), percent(share.high)
    return f"The class prefers the new answers in {percent(share.value)} of {of} [{low}, {high}]."
