"""The page without a browser: named endpoints that a notebook calls with `gradio_client`.

They read and start the same run directories as the page, through the same checks; a mistake comes back as the same
sentence, in the client's AppError: the page tells it for every event alike.
"""

import inspect
import json

import gradio as gr

from rlhf.config import BadInput
from rlhf.launch import classroom, jobs
from rlhf.launch.start import FILLED_IN, start_comparison, start_run
from rlhf.runs.directory import Run, find_run
from rlhf.runs.history import rows_of
from rlhf.ui import run_choices, run_label, voices
from rlhf.ui.scores import missing


def start(kind: str, settings_json: str = "{}", secret: str = "") -> str:
    """Start a run of kind "demo", "reward", "ppo", "dpo" or "sweep"; returns its id. It waits while others run.

    Args:
        kind: what to train.
        settings_json: settings that differ from the defaults, named as the command line's flags, as a JSON object. The
            reward_model_path of "ppo" and "sweep" is a run's id.
        secret: on a page that others use too, whoever knows it may stop the run.
    """
    try:
        settings = json.loads(settings_json)
    except (TypeError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise BadInput('settings_json must be a JSON object such as {"seed": 1}.')
    reward_run = settings.pop("reward_model_path", None)
    for name in FILLED_IN & set(settings):
        raise BadInput(f"{name} cannot be set from here; the command line takes it.")
    return start_run(str(kind), settings, reward_run, str(secret)).id


def compare(
    run_ids: list[str], questions: list[str] | None = None, samples: int = 4, seeds: int = 1, secret: str = ""
) -> str:
    """Start a comparison of runs, or of best-of-N, with their base, on test questions or your own; returns its id."""
    for name, given in {"run_ids": run_ids, "questions": questions or []}.items():
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise BadInput(f"{name} must be a list of texts, not {given!r:.80}.")
    return start_comparison(run_ids, questions or [], samples, seeds, str(secret)).id


def status(run_id: str) -> dict:
    """A run's state, step, total_steps, message and times in seconds; for a demo also those of its `stages`."""
    run = _run(run_id)
    stages = {name: _status(part) for name, part in run.trainings().items() if part.path != run.path}
    return {"id": run.id, **_status(run), "stages": stages}


def metrics(run_id: str, after: int = 0) -> list[dict]:
    """A run's logged lines in order, without the first `after`; each names its `stage`, "reward", "ppo" or "dpo"."""
    _check_whole("after", after)
    rows = [{"stage": name, **row} for name, part in _run(run_id).trainings().items() for row in rows_of(part)]
    return rows[after:]


def stop(run_id: str, secret: str = "") -> str:
    """Ask a run to save and end after the step it is in; returns the state it is in now."""
    run = _run(run_id)
    jobs.stop(run, str(secret))
    return run.status().get("state", "")


def resume(run_id: str, secret: str = "") -> str:
    """Go on with a run that was stopped, failed or was interrupted; returns the state it is in now."""
    run = _run(run_id)
    jobs.resume(run, str(secret))
    return run.status().get("state", "")


def annotate(run_id: str, name: str = "", note: str = "", secret: str = "") -> str:
    """Give a run a name, of 60 characters at most, and a note, of 500; returns what lists call it now."""
    run = _run(run_id)
    jobs.annotate(run, name, note, str(secret))
    return run_label(run)


def delete(run_id: str, sure: bool = False, secret: str = "") -> str:
    """Delete a run that has ended, if `sure` is true; returns what is lost by that, or would be."""
    run = _run(run_id)
    lost = jobs.what_is_lost(run, str(secret))
    if sure is True:
        jobs.delete(run, str(secret))
    return lost


def runs() -> list[dict]:
    """All runs that can be shown, the example first, then the newest: id, label, name, note, kind and state."""
    shown = [(label, find_run(run_id)) for label, run_id in run_choices()]
    return [
        {"id": run.id, "label": label, "name": "", "note": "", **run.about(), **_status(run, ("kind", "state"))}
        for label, run in shown
    ]


def scores(run_id: str) -> dict:
    """What a run measured in the end, its summary.json: the reward model on held-out pairs, PPO against the base."""
    run = _run(run_id)
    summary = run.summary()
    if not summary:
        raise BadInput(missing(run) or "The comparison is still under way; ask again when the run has ended.")
    return summary


def chat(run_id: str, question: str, seed: int = 0) -> dict:
    """Ask base and PPO the same; returns {"base": {"text", "score"}, "ppo": {...}}, the same for the same seed."""
    _check_whole("seed", seed)
    if seed:
        classroom.check("chat")
    *_, (_, answers) = voices.conversation(_run(run_id), voices.tidy(question), [], voices.Sampling(seed))
    return {name: {"text": answer["text"], "score": answer["score"]} for name, answer in answers.items()}


def _run(run_id: object) -> Run:
    return find_run(str(run_id))


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise BadInput(f"{name} must be a whole number, at least 0, not {value!r}.")


def _status(run: Run, names: tuple[str, ...] | None = None) -> dict:
    """A run's status, or some entries of it; its process and its owner's mark are nobody's business."""
    hidden = ("pid", "began", "owner", "asked")
    return {name: value for name, value in run.status().items() if (name in names if names else name not in hidden)}


def add_endpoints() -> None:
    """Add the endpoints to the page that is being built; the ones that start or load take turns with the page's."""
    turns = {one: {"concurrency_id": "start", "concurrency_limit": 1} for one in (start, compare, resume)}
    turns[chat] = {"concurrency_id": "model", "concurrency_limit": 1}
    for endpoint in (start, compare, status, metrics, stop, resume, annotate, delete, runs, scores, chat):
        about = " ".join(inspect.getdoc(endpoint).split("\n\n")[0].split())
        gr.api(endpoint, api_name=endpoint.__name__, api_description=about, **turns.get(endpoint, {}))
