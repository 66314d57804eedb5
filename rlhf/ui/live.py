"""The live view of a run: verdict, progress, curves and pinned questions, updated in place about once a second.

A page asks `poll` for what is new since its last answer. The call reads only new bytes of the run directory, runs
outside Gradio's queue and keeps no state for a page, so closing or reloading one loses nothing. The curves grow inside
the same Plotly figure, which keeps a person's zoom and hover.

Text of models and people reaches the document through `textContent` only.
"""

import os
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import gradio as gr
import plotly.graph_objects as go

from rlhf.config import BadInput
from rlhf.figures import curves
from rlhf.figures.style import minus
from rlhf.runs.directory import ACTIVE, Run, find_run
from rlhf.ui.changes import with_changes
from rlhf.ui.scripts import PLOTLY_HEAD, script
from rlhf.write import export


CHART_HEIGHT = 420
PHASES = {"reward": "Reward model", "ppo": "PPO", "compare": "Comparison", "sweep": "Sweep"}
FIRST_ROWS, LAST_ROWS = 3, 8
"""How many logged lines the verdict averages over at the beginning and at the end."""

TEMPLATE = """
<section class="live">
  <p class="verdict" role="status"></p>
  <div class="progress">
    <span class="pill"></span><ol class="phases"></ol><span class="clock"></span>
  </div>
  <div class="charts">
    <figure class="chart" data-part="reward"><figcaption><b>1</b> Reward model learns what people prefer</figcaption>
      <div class="plot"></div><p class="waiting"></p></figure>
    <figure class="chart" data-part="ppo"><figcaption><b>2</b> PPO learns to please the reward model</figcaption>
      <div class="plot"></div><p class="waiting"></p></figure>
  </div>
  <div class="leave" hidden>
    <span class="said" role="status"></span>
    <button type="button" class="copy" data-what="command">Copy as command</button>
    <button type="button" class="copy" data-what="python">Copy as Python</button>
    <button type="button" class="download" title="A zip of all but checkpoints, a card beside each model"></button>
  </div>
  <div class="pinned">
    <header><h3>The same questions, again and again</h3>
      <label class="when"><span></span><input type="range" min="0" value="0" aria-label="Update to look at"></label>
    </header>
    <div class="cards"></div>
  </div>
</section>
"""


# Functions, not subclasses: Gradio writes a stub file beside every module that subclasses a component.
def live_run(**kwargs: object) -> gr.HTML:
    """The live view of the run whose id is its value; the event `ended` tells that the run has just ended."""

    def download(request: dict) -> dict:
        """A zip of the run {"run": id}, in the cache that Gradio serves files from and clears by the hour."""
        try:
            run = find_run(str(request.get("run")))
        except BadInput as error:
            return {"error": str(error)}
        path = zip_of(run, Path(view.GRADIO_CACHE))
        view.temp_files.add(str(path))
        return {"path": path.as_posix(), "name": path.name, "size": path.stat().st_size / 1e6}

    view = gr.HTML(
        html_template=TEMPLATE,
        js_on_load=script("live"),
        head=PLOTLY_HEAD,
        server_functions=[poll, download],
        apply_default_css=False,
        **kwargs,
    )
    return view


_packing = threading.Lock()


def zip_of(run: Run, cache: Path) -> Path:
    """A zip of a run's directory as it is now, one for each run: it serves all who ask until the run changes."""
    target = cache / "runs" / f"{run.id}.zip"
    with _packing:
        changed = max(path.stat().st_mtime for path in export.run_files(run))
        if not target.exists() or target.stat().st_mtime < changed:
            began = time.time()
            export.write_zip(run, target)
            os.utime(target, (began, began))  # what has been written meanwhile makes it old
    return target


class History:
    """The lines of one file of a run, read once for all pages; each call takes in only what was appended."""

    def __init__(self, path: str, name: str) -> None:
        self.run, self.name = Run(path), name
        self.rows: list[dict] = []
        self._offset = 0
        self._lock = threading.Lock()

    def refresh(self) -> list[dict]:
        """All lines so far."""
        file = self.run.path / self.name
        with self._lock:
            if not file.exists() or file.stat().st_size < self._offset:
                self.rows, self._offset = [], 0
            fresh, self._offset = self.run.tail(self.name, self._offset)
            # A new list, so that one which is being read does not grow.
            self.rows = self.rows + fresh if fresh else self.rows
            return self.rows


@lru_cache(maxsize=64)
def _history(path: str, name: str) -> History:
    return History(path, name)


def rows_of(run: Run, name: str = "metrics.jsonl") -> list[dict]:
    """All lines of a run's file, read incrementally."""
    return _history(str(run.path), name).refresh()


def parts_of(run: Run) -> dict[str, Run]:
    """The training runs in a run: two in a demo, or PPO alone if it was given a reward model; others are one."""
    kind = run.status().get("kind")
    if kind == "demo":
        stages = ("ppo",) if run.config().get("reward_model_path") else ("reward", "ppo")
        return {name: Run(run.path / name) for name in stages}
    return {kind: run} if kind in ("reward", "ppo") else {}


def poll(request: dict) -> dict:
    """What is new about a run since the page's last answer.

    Args:
        request: {"run": a run's id, "seen": what the last answer held under "seen"}.
    """
    try:
        run = find_run(str(request["run"] or "")) if request.get("run") else None
        seen = {name: int(count) for name, count in dict(request.get("seen") or {}).items()}
    except BadInput as error:
        return {"error": str(error)}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {"error": "The page asked for something that does not exist; please reload it."}
    return news(run, seen) if run else _nothing()


def _nothing() -> dict:
    text = "Nothing has been trained here yet. Press Start training: the curves begin in seconds."
    verdict = {"tone": "none", "text": text}
    waiting = {"waiting": "The curves will be drawn here.", "rows": 0}
    return {
        "state": "none",
        "phases": [],
        "elapsed": None,
        "left": None,
        "speed": None,
        "verdict": verdict,
        "parts": {"reward": waiting, "ppo": waiting},
        "samples": [],
        "seen": {},
    }


def news(run: Run, seen: dict[str, int]) -> dict:
    """The run's state, and the points and samples after the ones that were seen."""
    status, parts = run.status(), parts_of(run)
    now = {name: rows_of(part) for name, part in parts.items()}
    samples = rows_of(parts["ppo"], "samples.jsonl") if "ppo" in parts else []
    answer = {
        **_clock(run, now.get("ppo", [])),
        "state": status.get("state", "none"),
        "phases": _phases(run),
        "verdict": verdict(status, now),
        "parts": {},
        "samples": with_changes(samples, seen.get("samples", 0)),
        "seen": {"samples": len(samples)},
    }
    # Sent once, and again when the run has ended, for it is larger then.
    active = int(status.get("state") in ACTIVE)
    if seen.get("active") != active and run.config().get("kind") in export.CONFIGS:
        answer["leave"] = ways_out(run)
    answer["seen"]["active"] = active
    for name, part in parts.items():
        frame = _frame(part, now[name])
        fresh = seen.get(f"{name} frame") != frame
        answer["parts"][name] = _part(name, run, now[name], None if fresh else seen.get(name, 0))
        answer["seen"] |= {name: len(now[name]), f"{name} frame": frame}
    return answer


def ways_out(run: Run) -> dict:
    """How to make this run again, as a command and as Python, and the size of its zip in MB."""
    return {"command": export.as_command(run), "python": export.as_python(run), "size": export.size_mb(run)}


def _stages(run: Run) -> dict[str, Run]:
    """All that a run does, in order; the comparison draws no curves."""
    kind, stages = run.status().get("kind"), parts_of(run)
    if kind == "demo":
        stages["compare"] = Run(run.path / "compare")
    return {kind: run} if kind in ("compare", "sweep") else stages


def _clock(run: Run, ppo_rows: list[dict]) -> dict:
    """Seconds since the start, seconds left in the stage under way, and episodes a second."""
    status = run.status()
    started, active = status.get("started"), status.get("state") in ACTIVE
    end = time.time() if active else status.get("ended") or status.get("updated")
    now = [stage.status() for stage in _stages(run).values()] if active else []
    left = next((stage["seconds_left"] for stage in now if stage.get("seconds_left")), None)
    return {
        "elapsed": end - started if started and end else None,
        "left": left,
        "speed": curves.latest(ppo_rows[-1:], "episodes_per_second"),
    }


def _phases(run: Run) -> list[dict]:
    """Name, state and progress of each stage of the run, in order."""
    over, phases = run.status().get("state") not in ACTIVE, []
    for name, stage in _stages(run).items():
        own = stage.status()
        state = own.get("state", "waiting")
        if state in ACTIVE and over:
            state = run.status().get("state")  # the process went before it could say so in the stage
        step, total = own.get("step", 0), own.get("total_steps", 0)
        phases.append({"label": PHASES[name], "state": state, "step": step, "total": total})
    return phases


def _frame(part: Run, rows: list[dict]) -> int:
    """Stands for what a figure shows beside its curves, lines and axis; when it changes, the figure is sent again."""
    known = sum(curves.latest(rows, key) is not None for key in curves.FRAME_METRICS)
    return (len(curves.FRAME_METRICS) + 1) * (part.status().get("total_steps") or 0) + known


def _part(name: str, run: Run, rows: list[dict], seen: int | None) -> dict:
    """A part's figure if the page has none yet (seen is None), else the points after the ones it has."""
    waiting = "" if rows else _waiting(run, parts_of(run)[name])
    if seen is None:
        return {"figure": figure_of(name, run, rows).to_plotly_json(), "rows": len(rows), "waiting": waiting}
    panels = curves.REWARD_PANELS if name == "reward" else curves.PPO_PANELS
    keys = {"step", "episode"} | {key for panel in panels for key in (panel.key, panel.held_out, panel.std) if key}
    fresh = rows[seen:]
    points = {key: [row.get(key) for row in fresh] for key in keys}
    return {"points": points, "rows": len(fresh), "waiting": waiting}


def _waiting(run: Run, part: Run) -> str:
    """What an empty chart says."""
    if run.status().get("state") not in ACTIVE:
        return "Nothing was logged here."
    if part.status().get("state") in ACTIVE:
        return "The first point is on its way."
    return "The curves begin here once the reward model is trained."


def figure_of(name: str, run: Run, rows: list[dict], height: int = CHART_HEIGHT) -> go.Figure:
    """The curves of a run's part so far, on an axis that ends where the part will end."""
    part = parts_of(run)[name]
    if name == "reward":
        return curves.reward_curves(rows, part.status().get("total_steps") or None, height)
    total = part.config().get("total_episodes") or run.config().get("total_episodes")
    return curves.ppo_curves(rows, total, height)


def verdict(status: dict, rows: dict[str, list[dict]]) -> dict[str, str]:
    """Is it learning? Answered in one sentence from the numbers, with a tone for its colour."""
    state, message = status.get("state"), status.get("message") or ""
    if state in ("failed", "diverged", "interrupted"):
        what = {"failed": "The run failed", "diverged": "The numbers ran away", "interrupted": "The run was cut off"}
        return {"tone": "bad", "text": f"{what[state]}. {message} What it had logged is kept and shown below.".strip()}
    if rows.get("ppo"):
        return _ppo_verdict(rows["ppo"], state in ACTIVE)
    if rows.get("reward"):
        return _reward_verdict(rows["reward"], state in ACTIVE)
    if status.get("kind") in ("compare", "sweep") and status.get("step", 0) + (state == "finished"):
        return {
            "tone": "none",
            "text": f"{message}." if state in ACTIVE else "Done: the Scores tab shows what it found.",
        }
    if state in ACTIVE:
        return {"tone": "none", "text": "Getting ready: the models are being loaded."}
    return {"tone": "none", "text": "This run has logged no training."}


def _mean(rows: Sequence[dict], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _reward_verdict(rows: list[dict], active: bool) -> dict[str, str]:
    held_out, ceiling = curves.latest(rows, "eval_accuracy"), curves.latest(rows, "label_ceiling")
    logged = [row for row in rows if row.get("accuracy") is not None]
    accuracy = held_out if held_out is not None else _mean(logged[-LAST_ROWS:], "accuracy")
    if accuracy is None:
        return {"tone": "none", "text": "The first steps are under way."}
    where = "pairs it has not read" if held_out is not None else "the pairs it reads"
    limit = f"; these labels allow about {100 * ceiling:.0f} %" if ceiling else ""
    facts = f"it prefers the answer people chose in {100 * accuracy:.0f} % of {where} (guessing is 50 %{limit})."
    if accuracy < 0.55:
        return {"tone": "wait", "text": f"{'Not yet' if active else 'It did not learn'}: {facts}"}
    return {"tone": "good", "text": f"{'Yes, it is learning' if active else 'It learned'}: {facts}"}


def _ppo_verdict(rows: list[dict], active: bool) -> dict[str, str]:
    key = "objective/scores_raw"
    logged = [row for row in rows if row.get(key) is not None]
    if len(logged) < 2:
        return {"tone": "none", "text": "The first answers are being written and scored."}
    few = max(1, len(logged) // 2)
    first, last = _mean(logged[: min(FIRST_ROWS, few)], key), _mean(logged[-min(LAST_ROWS, few) :], key)
    spread = _mean(logged, "objective/scores_std") or abs(last - first) or 1.0
    kl, episodes = curves.latest(logged, "objective/kl"), logged[-1]["episode"]
    far = f", {kl:.1f} nats from the base model" if kl is not None else ""
    facts = minus(f"the average score went from {first:.2f} to {last:.2f} in {episodes:,} episodes{far}.")
    if last - first > 0.2 * spread:
        return {"tone": "good", "text": f"{'Yes, it is learning' if active else 'It learned'}: {facts}"}
    if last - first < -0.2 * spread:
        return {"tone": "bad", "text": f"{'No' if active else 'It did not learn'}: {facts}"}
    return {"tone": "wait", "text": f"{'Not clearly yet' if active else 'It hardly learned'}: {facts}"}
