"""Learn live, in the Feedback tab: what the model has learned while people choose, and the buttons that steer it.

All that a page shows is read from the run's directory and the store, so whoever comes late sees what all others see.
On a page that others use too, only who started a session may steer it.
"""

import time
from dataclasses import fields

from rlhf.config import BadInput, LiveArguments, build
from rlhf.feedback import Store
from rlhf.feedback.live import State, begin, go_back, in_words, present, session, states, writer
from rlhf.feedback.votes import points_against, win_rate
from rlhf.launch import classroom, jobs, limits
from rlhf.runs.directory import ACTIVE, Run
from rlhf.words import count, percent


def standing(store: Store | None, visitor: str) -> dict | None:
    """How a store's session stands, in words; None if there never was one."""
    run = session(store) if store else None
    if run is None:
        return None
    status, now, points = run.status(), present(run), points_against(store, "base")
    active = status.get("state") in ACTIVE
    ended = "Stopped; all that it has learned is saved." if status.get("state") == "stopped" else status.get("message")
    doing, done, total = _progress(run) if active else (ended, None, None)
    return {
        "active": active,
        "yours": limits.may_stop(status, visitor),
        "resumable": jobs.resumable(run),
        "state": _state_words(now),
        "share": in_words(store, run),
        "doing": doing,
        "done": done,
        "total": total,
        "number": now.number,
        "states": [(state.number, _words(state, points.get(writer(run, state), (0.0, 0)))) for state in states(run)],
    }


def _state_words(state: State) -> str:
    if not state.number:
        return "It has learned nothing yet: the base model answers."
    return f"State {state.number}: it has learned from {count(state.choices)} choices."


def _words(state: State, points: tuple[float, int]) -> str:
    """A state in the list of those to go back to."""
    if not state.number:
        return "the base model"
    found = win_rate(*points)
    liked = f", preferred {percent(found[0].value)}" if found else ""
    return f"state {state.number}: {count(state.choices)} choices{liked}"


def _progress(run: Run) -> tuple[str, int | None, int | None]:
    """What a session does, in words, and while it learns how many of how many steps are done."""
    status = run.status()
    stage = max((stage.status() for stage in run.stages().values()), key=lambda stage: stage.get("updated", 0))
    message = status.get("message") or "Writing the next answers"
    if not message.startswith("Learning") or stage.get("updated", 0) < status["updated"]:
        return message, None, None
    first = stage.get("first_step", 0)
    done, total = stage["step"] - first, stage["total_steps"] - first
    return f"{message}: {stage['message'].partition(':')[0]}, {done} of {total}", done, total


def start(settings: dict[str, object], store: Store, visitor: str, afresh: bool) -> Run:
    """Start a session that learns from the choices in a store, or afresh: only from those that are still to come.

    Args:
        settings: those of the shown run that say which model and data.

    Raises:
        BadInput: one is under way already, which this visitor may not stop, or the page does not allow it.
    """
    if limits.on_zero_gpu():
        raise BadInput("This Space has a GPU for minutes only, so nothing can learn live here; train on all choices.")
    classroom.check("runs")
    before = session(store)
    if before and before.status().get("state") in ACTIVE:
        if not afresh:
            raise BadInput("It is learning live already.")
        jobs.stop(before, visitor)
    known = {field.name for field in fields(LiveArguments)}
    given = {name: value for name, value in settings.items() if name in known} | {"store": str(store.path)}
    run = jobs.launch(
        "live", build(LiveArguments, given | ({"choices_after": time.time()} if afresh else {})), visitor=visitor
    )
    begin(store, run)
    return run


def steer(store: Store, visitor: str, what: str, state: int = 0) -> None:
    """Have a session "stop", "resume", or go "back" to one of its states, from which it then goes on.

    Raises:
        BadInput: there is no session or no such state, or somebody else started it.
    """
    run = session(store)
    if run is None:
        raise BadInput("Nothing has learned live here yet.")
    if what == "stop":
        jobs.stop(run, visitor)
        return
    limits.check_owner(run.status(), visitor)
    if what == "back":
        go_back(run, state)
    if run.status().get("state") not in ACTIVE:
        jobs.resume(run, visitor)
