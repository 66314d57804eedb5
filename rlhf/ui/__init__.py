"""The page: one file per tab, the live view, and what the tabs share. It reads run directories and trains nothing."""

import functools
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from urllib.parse import quote

from rlhf.config import EVERYDAY, BadInput
from rlhf.kinds import KINDS
from rlhf.launch.jobs import TWICE_SECONDS, UnderWay
from rlhf.runs import directory as runs
from rlhf.runs.directory import ACTIVE, Run, find_run, list_runs
from rlhf.runs.history import unreadable


QUICK = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
"""Options of an event that is answered at once, by the request itself.

Gradio's queue answers over a stream that it closes when nothing waits: over a slow line, an event that begins just as
another ends was never answered."""


NOTE_IN_LIST = 40
"""Characters of a run's note beside its name in a list."""
FOREIGN = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)
"""What is raised by requests that no page of this program sends, and by files that no run of it has written."""


def served(answer: Callable[[dict], dict]) -> Callable[[dict], dict]:
    """A function that a script of the page calls; what cannot be answered comes back as {"error": a sentence}."""

    @functools.wraps(answer)
    def call(request: dict) -> dict:
        try:
            return answer(request)
        except BadInput as error:
            return {"error": str(error)}
        except FOREIGN:
            traceback.print_exc()
            return {"error": "There is no such thing, or a file of this run is damaged; please reload the page."}

    return call


def is_example(run: Run) -> bool:
    """Whether this is a run that is shipped with the program."""
    return run.path in (runs.EXAMPLE, runs.RECORD)


def example_id() -> str | None:
    """The shipped run's id, if it is there."""
    return runs.EXAMPLE.name if (runs.EXAMPLE / "status.json").exists() else None


def run_choices() -> list[tuple[str, str]]:
    """(label, id) of every run that can be shown: the shipped ones, then the newest first."""
    shipped = {"Example run": runs.EXAMPLE, "Example with real English (SmolLM2)": runs.RECORD}
    examples = [(label, path.name) for label, path in shipped.items() if (path / "status.json").exists()]
    return examples + [(run_label(run), run.id) for run in list_runs() if (run.path / "status.json").exists()]


def run_label(run: Run) -> str:
    """Name, kind, time and state of a run in a few words, and how its note begins."""
    # The list is not redrawn at each change of state, so it says what stays true until the end.
    state = "under way" if is_active(run) else run.status().get("state", "unreadable")
    about = run.about()
    name = "" if runs.has_own_id(run.id) or is_example(run) or about.get("name") else f"{run.id} · "
    words = textwrap.shorten(about.get("note", ""), NOTE_IN_LIST, placeholder=" …")
    return " · ".join(filter(None, [f"{name}{run.title()}", state, words]))


def describe(run_id: str | None) -> str:
    """One line of HTML on how the shown run was made."""
    run = shown_run(run_id)
    if run is None:
        return "No run yet"
    config, kind = run.config(), run.status().get("kind", "")
    seed = escape(str(config.get("seed", 0)))
    if run.path == runs.RECORD:
        return f"Recipe <code>smollm2-135m-instruct</code>, seed {seed}, without its models"
    simulated = kind in KINDS and KINDS[kind].reads_pairs and config.get("dataset_name") == EVERYDAY
    people = ["your own choices"] if config.get("feedback") else []
    if simulated and not config.get("feedback_only"):
        people.append("preferences of simulated people" if is_example(run) else "simulated people")
    name = "Example run" if is_example(run) else escape(run.id)
    lost = unreadable(run)
    damaged = f"could not be read: {escape(', '.join(lost))}" if lost else ""
    return ", ".join(filter(None, [name, f"seed {seed}", *people, damaged]))


def shown_run(run_id: str | None) -> Run | None:
    """The run with this id; None when the page shows none or it has been removed."""
    try:
        return find_run(run_id) if run_id else None
    except BadInput:
        return None


def is_active(run: Run | None) -> bool:
    """Whether the run is under way."""
    return run is not None and run.status().get("state") in ACTIVE


def is_comparison(run: Run) -> bool:
    """Whether the run's result is a comparison: its progress is shown where the scores will be."""
    kind = KINDS.get(run.status().get("kind"))
    return kind is not None and kind.compares


def already_started(run: Run, asked: float) -> str:
    """What is said of a run that was there when it was asked for, at that time; empty for a new one."""
    if run.status().get("created", asked) >= asked:
        return ""
    within = f"{TWICE_SECONDS:.0f} seconds"
    return f"This run was started a moment ago. The same again within {within} counts as a double click."


def empty_state(text: str) -> str:
    """What will appear here, as HTML in its place."""
    return f'<div class="empty-state"><p class="verdict">{escape(text)}</p></div>' if text else ""


def refusal(error: BadInput, labels: dict[str, str] | None = None) -> str:
    """Why nothing was started, as HTML: settings under their labels, and a link to the run that is in the way."""
    said = escape(error.with_labels(labels or {}))
    if isinstance(error, UnderWay):
        title = escape(error.run.title())
        said = said.replace(title, f'<a href="?run={quote(error.run.id)}">{title}</a>', 1)
    return f'<p class="note" role="alert">{said}</p>'


@contextmanager
def remarks() -> Iterator[list[str]]:
    """What this program warns about while a person's file is read, for the page; the list is filled at the end."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    package = Path(__file__).parents[1]
    told += [str(each.message) for each in caught if Path(each.filename).is_relative_to(package)]


def note(text: str) -> str:
    """A sentence for a person, as HTML beside the thing it is about."""
    return f'<p class="note" role="alert">{escape(text)}</p>' if text else ""
