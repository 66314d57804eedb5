"""The live view of a run: headline, progress, curves and sample answers, updated in place about once a second.

A page asks `poll` for what is new since its last answer. The call reads only new bytes of the run's logs, runs outside
Gradio's queue and keeps no state per page, so closing or reloading one loses nothing. The curves grow inside the same
Plotly figure, which keeps a person's zoom and hover.

Text of models and people reaches the document through `textContent` only.
"""

import dataclasses
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import gradio as gr
import plotly.graph_objects as go

from rlhf import metrics
from rlhf.compare.ceiling import Ceiling
from rlhf.config import EVERYDAY, BadInput, default_of, name_of_data
from rlhf.everyday import gold_score
from rlhf.figures import curves, scores
from rlhf.kinds import KINDS
from rlhf.launch import classroom, jobs
from rlhf.runs.directory import ACTIVE, Run, Snapshot, find_run
from rlhf.runs.history import rows_of
from rlhf.ui import run_choices, run_label, served
from rlhf.ui.changes import with_changes
from rlhf.ui.downloads import offer, zip_of
from rlhf.ui.expect import in_words, seconds_to_go
from rlhf.ui.headline import headline, warning
from rlhf.ui.scripts import PLOTLY_HEAD, script
from rlhf.words import setting
from rlhf.write import export


LOOKS_A_SECOND = 6
"""Looks at runs that all open pages take together, as long as each looks at least every `SELDOM` seconds."""
SELDOM = 5.0
_looked: dict[str, float] = {}
"""Page -> when it last looked."""
_counting = threading.Lock()
CHART_HEIGHT = 420
PATH_HEIGHT = 300
IN_LINE = "You may close this page meanwhile. Stop takes the run out of the queue."
X = {"reward": metrics.STEP, "dpo": metrics.STEP, "ppo": metrics.EPISODE}
"""What the curves of a stage are drawn over."""

TEMPLATE = """
<section class="live">
  <div><p class="verdict" role="status"></p><p class="gloss details"></p>
    <p class="note warning" role="status" hidden></p></div>
  <div class="progress">
    <span class="pill"></span><ol class="phases"></ol><span class="clock"></span>
  </div>
  <div class="charts">
    <figure class="chart" data-part="reward">
      <figcaption><b>1</b> The reward model learns what people prefer</figcaption>
      <div class="plot"></div><p class="waiting"></p></figure>
    <figure class="chart" data-part="ppo">
      <figcaption><b>2</b> PPO learns to write answers with higher scores</figcaption>
      <div class="plot"></div><p class="waiting"></p></figure>
    <figure class="chart" data-part="dpo" hidden>
      <figcaption>DPO learns from people’s choices, without a reward model</figcaption>
      <div class="plot"></div><p class="waiting"></p>
      <p class="gloss">An answer’s implicit reward is beta times the logarithm of how much likelier it has become than
      under the base model. DPO raises that of the chosen answers above that of the rejected ones: the loss falls,
      accuracy and margin rise.</p></figure>
    <figure class="chart" data-part="rewards" hidden>
      <figcaption>What each of its rewards gives: the score is their weighted sum</figcaption>
      <div class="plot"></div><p class="waiting"></p></figure>
    <figure class="chart" data-part="ceiling" hidden>
      <figcaption><b>3</b> PPO and the best that is possible</figcaption>
      <div class="plot"></div><p class="waiting"></p>
      <p class="gloss">Each dot is one update of PPO. To score higher, a model must move away from the base model; the
      dark line is the largest average gain that any model can have at each distance, so the best training climbs along
      it.</p></figure>
  </div>
  <details class="more given-settings" hidden>
    <summary>Settings of this run, and comparison with others</summary>
    <label>Lay another run over the curves <select></select></label><span class="others"></span>
    <table class="given"><thead></thead><tbody></tbody></table>
  </details>
  <details class="more detail-curves" hidden>
    <summary>More curves</summary>
    <p class="gloss">What PPO and the optimizer do inside: clipping, the critic, gradients, learning rate; then all
    else that is logged, by its name in metrics.jsonl.</p>
    <div class="charts"></div>
  </details>
  <div class="leave" hidden>
    <span class="said" role="status"></span>
    <button type="button" class="copy" data-what="command">Copy as command</button>
    <button type="button" class="copy" data-what="python">Copy as Python</button>
    <button type="button" class="download" title="Everything except checkpoints, as a zip, with a model card"></button>
  </div>
  <div class="pinned">
    <header><h3>Sample answers during training</h3>
      <label class="when"><span></span><input type="range" min="0" value="0" aria-label="PPO update to show"></label>
    </header>
    <p class="gloss simulated" hidden>Typing errors are part of the questions. People are simulated here: they choose
      by a rubric, which grades each answer from 0 to 1. PPO never sees it, only the score, which is the reward model’s
      guess. An answer with a high score and a low grade has found a weakness of the reward model: that is called
      reward hacking.</p>
    <div class="cards"></div>
  </div>
</section>
"""


# Functions, not subclasses: Gradio writes a stub file beside every module that subclasses a component.
def live_run(**kwargs: object) -> gr.HTML:
    """The live view of the run whose id is its value; the event `ended` is fired when the run has just ended."""

    @served
    def download(request: dict) -> dict:
        return offer(view, request, zip_of)

    view = gr.HTML(
        html_template=TEMPLATE,
        js_on_load=script("live"),
        head=PLOTLY_HEAD,
        server_functions=[poll, download, beside, details],
        apply_default_css=False,
        **kwargs,
    )
    return view


def poll(request: dict) -> dict:
    """What is new about a run since the page's last answer, and in the class, and in how many seconds to look again.

    Args:
        request: {"run": a run's id, "seen": what the last answer held under "seen", "page": the page's name}.
    """
    page = request.get("page") if isinstance(request, dict) else None
    return {**_of_run(request), **classroom.bulletin(), "again": _pause(str(page)[:40])}


def _pause(page: str) -> float:
    """Seconds after which a page should look again, so that all pages together leave the processor to training."""
    now = time.monotonic()
    with _counting:
        _looked[page] = now
        for other in [other for other, last in _looked.items() if now - last > 4 * SELDOM]:
            del _looked[other]
        return min(max(1.0, len(_looked) / LOOKS_A_SECOND), SELDOM)


@served
def _of_run(request: dict) -> dict:
    seen = {name: int(count) for name, count in dict(request.get("seen") or {}).items()}
    return news(Snapshot(find_run(str(request["run"])).path), seen) if request.get("run") else _nothing()


def _nothing() -> dict:
    text = "No run yet. Press Start training: the first curves appear within seconds."
    waiting = {"waiting": "The curves appear here.", "rows": 0}
    return {
        "state": "none",
        "phases": [],
        "elapsed": None,
        "left": None,
        "speed": None,
        "headline": {"tone": "none", "text": text, "details": ""},
        "warning": "",
        "parts": {"reward": waiting, "ppo": waiting},
        "samples": [],
        "seen": {},
    }


def news(run: Snapshot, seen: dict[str, int]) -> dict:
    """The run's state, and the points and samples after the ones that were seen."""
    status, parts = run.status(), run.trainings()
    rows = {kind: rows_of(part) for kind, part in parts.items()}
    samples = rows_of(parts["ppo"], "samples.jsonl") if "ppo" in parts else []
    answer = {
        **_clock(run),
        "speed": curves.latest(rows.get("ppo", []), metrics.EPISODES_PER_SECOND),
        "state": status.get("state", "none"),
        "phases": _phases(run),
        "headline": headline(status, rows),
        "warning": warning(status, rows.get("ppo", [])),
        "parts": {},
        "samples": _graded(with_changes(samples, seen.get("samples", 0)), run),
        "seen": {"samples": len(samples)},
    }
    if answer["state"] == "waiting":
        answer["headline"] = {"tone": "none", "text": in_line(run), "details": IN_LINE}
    # Sent once, and again when the run has ended and its zip has grown.
    active = int(status.get("state") in ACTIVE)
    if seen.get("active") != active and run.config().get("kind") in KINDS:
        answer["leave"] = ways_out(run)
    answer["seen"]["active"] = active
    for kind, part in parts.items():
        frame = _frame(part, rows[kind])
        known = seen.get(kind, 0) if seen.get(f"{kind} frame") == frame else None
        answer["parts"][kind] = _part(kind, run, rows[kind], known) | {"empty": not rows[kind]}
        answer["seen"] |= {kind: len(rows[kind]), f"{kind} frame": frame}
    rewards = curves.reward_panels(rows["ppo"], run.rewards()) if "ppo" in parts else []
    if rewards:
        answer["parts"]["rewards"] = _rewards(rewards, run, rows["ppo"], seen.get("rewards"))
        answer["seen"]["rewards"] = len(rows["ppo"])
    ceiling = run.ceiling() if "ppo" in parts else {}
    if ceiling:
        answer["parts"]["ceiling"] = _path(Ceiling.read(ceiling), rows["ppo"], seen.get("ceiling"))
        answer["seen"]["ceiling"] = len(rows["ppo"])
    return answer


def in_line(run: Run) -> str:
    """When the turn of a run comes that waits for it."""
    current, queue = jobs.active_run(), [waiting.id for waiting in jobs.waiting()]
    if current is None or run.id not in queue:
        return "It starts in a moment."
    place = queue.index(run.id)
    before = [current, *(find_run(name) for name in queue[:place])]
    each = [seconds_to_go(one) for one in before]
    ended = "that has ended" if place == 0 else f"these {len(before)} have ended"
    when = f"when {ended}" if None in each else f"in {in_words(sum(each))}"
    if place == 0:
        return f"Next in line, behind {current.title()}: it starts {when}."
    return f"Number {place + 1} in line, behind {current.title()} and {place} more: it starts {when}."


_gold_score = lru_cache(maxsize=4096)(gold_score)  # thirty pages may open the same run


def _graded(samples: list[dict], run: Run) -> list[dict]:
    """The samples; where a reward model guesses at the embedded world's rubric, each with its grade by that."""
    own_taste = run.config().get("feedback_only") or run.reward_funcs()
    if own_taste or run.policy_settings().get("dataset_name", EVERYDAY) != EVERYDAY:
        return samples
    graded = []
    for sample in samples:
        grade = {}
        with suppress(KeyError):  # a question that is not of that world
            grade["gold"] = _gold_score(sample["prompt"].strip(), sample["response"])
        graded.append(sample | grade)
    return graded


def _path(ceiling: Ceiling, rows: list[dict], seen: int | None) -> dict:
    """PPO's way below the ceiling, as `_part` gives the curves of a stage."""
    if seen is None:
        figure = scores.path(rows, ceiling, PATH_HEIGHT).to_plotly_json()
        return {"figure": figure, "rows": len(rows), "waiting": ""}
    fresh = rows[seen:]
    points = {key: [row.get(key) for row in fresh] for key in (metrics.KL, metrics.SCORE)}
    ends = {metrics.SCORE: scores.path_end(rows, ceiling)}
    return {"points": points, "ends": ends, "rows": len(fresh), "waiting": ""}


def _rewards(panels: list[curves.Panel], run: Run, rows: list[dict], seen: int | None) -> dict:
    """The curves of PPO's rewards, as `_part` gives those of a stage."""
    if seen is None:
        total = run.policy_settings().get("total_episodes")
        figure = curves.curves(panels, rows, X["ppo"], curves.EPISODES, total, [], CHART_HEIGHT)
        return {"figure": figure.to_plotly_json(), "rows": len(rows), "waiting": ""}
    return _growth(panels, X["ppo"], rows, seen)


def _growth(panels: Sequence[curves.Panel], x: str, rows: list[dict], seen: int) -> dict:
    """The points after the ones that a page has seen, and where the curves now end."""
    keys = {metrics.STEP, metrics.EPISODE}
    keys |= {key for panel in panels for key in (panel.key, panel.held_out, panel.std) if key}
    fresh = rows[seen:]
    points = {key: [row.get(key) for row in fresh] for key in keys}
    ends = {panel.key: curves.end(panel, rows, x) for panel in panels} if fresh else {}
    return {"points": points, "ends": ends, "rows": len(fresh), "waiting": ""}


def ways_out(run: Run) -> dict:
    """How to make this run again, as a command and as Python, and the size of its zip in MB."""
    return {"command": export.as_command(run), "python": export.as_python(run), "size": export.size_mb(run)}


@served
def beside(request: dict) -> dict:
    """A run's settings, beside those of other runs {"run": id, "others": ids}, and the others' curves.

    Without others, what differs from the defaults comes first; with them, what differs between the runs.
    """
    run, *others = _runs(request)
    kind = run.config().get("kind")
    if kind not in KINDS:
        raise BadInput("This run has no settings that can be read.")
    rows = []
    for field in dataclasses.fields(KINDS[kind].settings):
        if field.name == "output_dir":
            continue
        usual = default_of(field)
        values = [one.config().get(field.name, usual) for one in (run, *others)]
        if field.name == "dataset_name":
            values = list(map(name_of_data, values))
        differs = len(set(map(repr, values))) > 1 if others else values[0] != usual
        label = {**KINDS[kind].front, "seed": "Seed"}.get(field.name, field.name.replace("_", " "))
        shown = [*values, usual]
        rows.append({"name": label, "values": [setting(value) for value in shown], "differs": differs})
    rows.sort(key=lambda row: not row["differs"])
    names = ["A, this run", *"BCD"[: len(others)]] if others else ["this run"]
    over: dict[str, list] = {}
    for other, name, dash in zip(others, "BCD", curves.DASHES, strict=False):
        for stage, part in other.trainings().items():
            traces = curves.overlay(curves.PANELS[stage], rows_of(part), X[stage], name, dash)
            over.setdefault(stage, []).extend(trace.to_plotly_json() for trace in traces)
    labels = {one.id: f"{name}: {run_label(one)}" for one, name in zip(others, "BCD", strict=False)}
    choices = [{"id": name, "label": label} for label, name in run_choices() if name != run.id]
    return {"names": [*names, "default"], "rows": rows, "over": over, "labels": labels, "choices": choices}


@served
def details(request: dict) -> dict:
    """The curves of a run that are logged and not among the main ones, as a figure by stage.

    Args:
        request: {"run": id, "others": ids of runs whose curves are laid over them}.
    """
    run, *others = _runs(request)
    figures = {}
    for kind, part in run.trainings().items():
        panels = curves.detail_panels(kind, rows_of(part))
        if not panels:
            continue
        figure = curves.detail_curves(panels, rows_of(part), X[kind])
        for other, name, dash in zip(others, "BCD", curves.DASHES, strict=False):
            if kind in other.trainings():
                figure.add_traces(curves.overlay(panels, rows_of(other.trainings()[kind]), X[kind], name, dash))
        figures[KINDS[kind].label] = figure.to_plotly_json()
    return figures


def _runs(request: dict) -> list[Run]:
    """The run that a page asks about, and up to three others.

    Raises:
        BadInput: one of them is gone.
    """
    return [find_run(str(name)) for name in (request.get("run"), *list(request.get("others") or ())[:3])]


def _clock(run: Snapshot) -> dict:
    """Seconds since the start, and seconds left in the stage under way."""
    status = run.status()
    started, active = status.get("started"), status.get("state") in ACTIVE
    end = time.time() if active else status.get("ended") or status.get("updated")
    left = [stage.status().get("seconds_left") for stage in run.stages().values()] if active else []
    return {"elapsed": end - started if started and end else None, "left": next(filter(None, left), None)}


def _phases(run: Snapshot) -> list[dict]:
    """Name, state and progress of each stage of the run, in order."""
    over, phases = run.status().get("state") not in ACTIVE, []
    for name, stage in run.stages().items():
        own = stage.status()
        state = own.get("state", "waiting")
        if state in ACTIVE and over:
            state = run.status().get("state")  # the process was gone before it could write it into the stage
        step, total = own.get("step", 0), own.get("total_steps", 0)
        if name == "reward" and not own and (preparing := run.status().get("preparing")):
            state, (step, total) = run.status()["state"], preparing
        phases.append({"label": KINDS[name].label, "state": state, "step": step, "total": total})
    return phases


def _frame(part: Snapshot, rows: list[dict]) -> int:
    """Stands for what a figure shows apart from its curves: levels and axis. When it changes, a new figure is sent."""
    known = sum(curves.latest(rows, key) is not None for key in curves.FRAME_METRICS)
    return (len(curves.FRAME_METRICS) + 1) * (part.status().get("total_steps") or 0) + known


def _part(kind: str, run: Snapshot, rows: list[dict], seen: int | None) -> dict:
    """A stage's figure if the page has none yet (seen is None), else the points after the ones it has."""
    waiting = "" if rows else _waiting(run, run.stages()[kind])
    if seen is None:
        drawn = _drawn(run.path, kind, _frame(run.stages()[kind], rows), len(rows), str(rows[-1:]))
        return {"figure": drawn, "rows": len(rows), "waiting": waiting}
    return {**_growth(curves.PANELS[kind], X[kind], rows, seen), "waiting": waiting}


@lru_cache(maxsize=32)
def _drawn(path: Path, kind: str, frame: int, count: int, last: str) -> dict:
    """The figure of a stage, drawn once for all pages that open meanwhile.

    Args:
        frame, count, last: see `_frame`; how many lines were logged, and the last of them, by which the log is known.
    """
    run = Run(path)
    return figure_of(kind, run, rows_of(run.trainings()[kind])[:count]).to_plotly_json()


def _waiting(run: Snapshot, part: Snapshot) -> str:
    """What an empty chart says."""
    if run.status().get("state") == "waiting":
        return "The curves appear here."
    if part.status().get("state") in ACTIVE:
        status = part.status()  # while the ceiling is measured, the message says so and no step is counted
        measuring = status.get("message") and not status.get("total_steps")
        return f"{status['message']}." if measuring else "The first point appears in a moment."
    return "The curves start when the reward model is trained."


def figure_of(kind: str, run: Run, rows: list[dict], height: int = CHART_HEIGHT) -> go.Figure:
    """The curves of a run's stage so far, on an axis that ends where the stage will end."""
    if kind == "ppo":
        return curves.ppo_curves(rows, run.policy_settings().get("total_episodes"), height)
    draw = curves.reward_curves if kind == "reward" else curves.dpo_curves
    return draw(rows, run.stages()[kind].status().get("total_steps") or None, height)
