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
import plotly
import plotly.graph_objects as go

from rlhf import export, figures
from rlhf.config import BadInput
from rlhf.runs import ACTIVE, Run, find_run


PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
CHART_HEIGHT = 420
PHASES = {"reward": "Reward model", "ppo": "PPO", "compare": "Comparison", "sweep": "Sweep"}
FIRST_ROWS, LAST_ROWS = 3, 8
"""How many logged lines the verdict averages over at the beginning and at the end."""

# Colours of `figures.py` and their twins for the dark page, where the originals would be too dim to read.
DARK = {
    figures.BASE: "#58ABE0",
    figures.PPO: "#F28C44",
    figures.PPO_INK: "#F29C5E",
    figures.GOLD: "#35C196",
    figures.GREY: "#A3ACB9",
    figures.INK: "#E8EAED",
    figures.GRID: "#323842",
    figures.PAPER: "#1B1F26",
    figures.PPO_BAND: "rgba(242,140,68,0.18)",
}

HELPERS = """
window.lab = (() => {
  const twins = __TWINS__;
  const isDark = () => document.body.classList.contains('dark');
  const el = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const repaint = (figure, dark) => {
    let text = JSON.stringify(figure);
    for (const [light, twin] of twins) text = text.replaceAll(dark ? light : twin, dark ? twin : light);
    return JSON.parse(text);
  };
  const save = format => ({
    name: 'Save as ' + format.toUpperCase(), icon: Plotly.Icons.disk,
    click: node => Plotly.downloadImage(node, {format, filename: 'rlhf-lab', scale: format === 'png' ? 2 : 1}),
  });
  // One object for all figures and times: Plotly builds a figure anew when its config is another.
  let config;
  const draw = node => Plotly.react(node, node.figure.data, node.figure.layout, config ??= {
    displaylogo: false, responsive: true, scrollZoom: false,
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'zoomIn2d', 'zoomOut2d', 'toImage'],
    modeBarButtonsToAdd: [save('png'), save('svg')],
  });
  // Plotly follows the window only; a figure also changes size with its neighbours, or when its tab is opened.
  const fit = new ResizeObserver(changes => {
    for (const {target} of changes) if (target.offsetParent && target.layout) Plotly.Plots.resize(target);
  });
  const plot = async (node, figure) => {
    node.figure = repaint(figure, isDark());
    node.classList.add('drawn');
    await draw(node);
    fit.observe(node);
  };
  new MutationObserver(() => {
    for (const node of document.querySelectorAll('.drawn')) {
      node.figure = repaint(node.figure, isDark());
      draw(node);
    }
  }).observe(document.body, {attributeFilter: ['class']});

  const plain = word => word.toLowerCase().replace(/[^a-z0-9']/g, '');
  // Fills a node with `after`, the words that `before` does not have at that place marked.
  const markChanges = (node, before, after) => {
    const a = before.split(/\\s+/), b = after.split(/\\s+/);
    const best = Array.from({length: a.length + 1}, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i][j] = plain(a[i]) === plain(b[j]) ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    node.replaceChildren();
    let i = 0, run = [], changed = false;
    const flush = () => {
      if (run.length) node.append(changed ? el('mark', '', run.join(' ')) : run.join(' '), ' ');
      run = [];
    };
    for (let j = 0; j < b.length; j++) {
      while (i < a.length && plain(a[i]) !== plain(b[j]) && best[i + 1][j] >= best[i][j + 1]) i++;
      const same = i < a.length && plain(a[i]) === plain(b[j]);
      if (same) i++;
      if (changed === same) { flush(); changed = !same; }
      run.push(b[j]);
    }
    flush();
  };
  const number = (value, digits = 2) => value.toFixed(digits).replace('-', '\\u2212');
  const scoreBar = (value, low, high, label = 'score') => {
    const box = el('span', 'score');
    if (value === null || value === undefined) return box;
    const bar = el('span', 'bar'), fill = el('span', 'fill');
    fill.style.width = Math.max(2, Math.min(100, 100 * (value - low) / (high - low || 1))) + '%';
    bar.append(fill);
    box.append(el('span', 'what', label), el('b', '', number(value)), bar);
    return box;
  };
  const clock = seconds => {
    const s = Math.max(0, Math.round(seconds)), h = Math.floor(s / 3600), m = Math.floor(s % 3600 / 60);
    return (h ? h + ':' + String(m).padStart(2, '0') : m) + ':' + String(s % 60).padStart(2, '0');
  };
  return {el, plot, draw, markChanges, scoreBar, number, clock};
})();
""".replace("__TWINS__", str([list(pair) for pair in DARK.items()]))

# The helpers come as an inline script, which runs at once; Plotly is fetched once for all components that name it.
HEAD = f"<script>{HELPERS}</script>"
PLOTLY_HEAD = f'{HEAD}<script src="/gradio_api/file={PLOTLY_JS.as_posix()}"></script>'

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

SCRIPT = """
const {el, plot, draw, markChanges, scoreBar, number, clock} = window.lab;
const $ = selector => element.querySelector(selector);
const ACTIVE = ['queued', 'running', 'stopping'];
const WORDS = {queued: 'Starting', running: 'Running', stopping: 'Stopping', stopped: 'Stopped', finished: 'Finished',
               failed: 'Failed', diverged: 'Diverged', interrupted: 'Interrupted', none: 'No run yet'};
let run = null, seen = {}, samples = [], steps = [], follow = true, active = false, busy = false, timer = null;
let texts = null;

function reset(id) {
  run = id; seen = {}; samples = []; steps = []; follow = true; active = false;
  for (const chart of element.querySelectorAll('.chart')) {
    const node = chart.querySelector('.plot');
    if (node.figure) { Plotly.purge(node); node.classList.remove('drawn'); node.figure = null; }
  }
  $('.cards').replaceChildren();
  $('.leave').hidden = true;
  setText($('.said'), '');
}

function setText(node, text) { if (node.textContent !== text) node.textContent = text; }

function showState(news) {
  const pill = $('.pill');
  pill.dataset.state = news.state;
  setText(pill, WORDS[news.state] || news.state);
  const list = $('.phases');
  if (list.childElementCount !== news.phases.length) {
    list.replaceChildren(...news.phases.map(() => {
      const item = el('li'), bar = el('span', 'bar');
      bar.append(el('span', 'fill'));
      item.append(el('span', 'name'), bar);
      return item;
    }));
  }
  news.phases.forEach((phase, i) => {
    const item = list.children[i], share = phase.total ? phase.step / phase.total : phase.state === 'finished' ? 1 : 0;
    item.dataset.state = phase.state;
    const counted = phase.total && ACTIVE.includes(phase.state) && phase.label !== 'Comparison';
    setText(item.querySelector('.name'), counted
      ? phase.label + ' \\u00b7 ' + phase.step + ' of ' + phase.total : phase.label);
    item.querySelector('.fill').style.width = 100 * Math.min(1, share) + '%';
  });
  const parts = [];
  if (news.elapsed !== null) parts.push(clock(news.elapsed) + (ACTIVE.includes(news.state) ? ' elapsed' : ''));
  const last = news.phases.length && ACTIVE.includes(news.phases.at(-1).state);
  if (news.left) parts.push('about ' + clock(news.left) + (last ? ' left' : ' left in this step'));
  if (news.speed) parts.push(number(news.speed, news.speed < 10 ? 1 : 0) + ' episodes/s');
  setText($('.clock'), parts.join(' \\u00b7 '));
  const verdict = $('.verdict');
  verdict.dataset.tone = news.verdict.tone;
  setText(verdict, news.verdict.text);
}

function extend(figure, columns) {
  for (const trace of figure.data) {
    const {x, key, spread, sign, end, digits, percent} = trace.meta;
    const values = columns[key || end] || [];
    values.forEach((value, i) => {
      if (value === null) return;
      if (end) {
        trace.x = [columns[x][i]]; trace.y = [value];
        trace.text = ['\\u2002' + (percent ? Math.round(100 * value) + ' %' : number(value, digits))];
      } else {
        trace.x.push(columns[x][i]);
        trace.y.push(spread ? value + sign * (columns[spread][i] || 0) : value);
      }
    });
  }
  figure.layout.datarevision = (figure.layout.datarevision || 0) + 1;
}

function showCharts(news) {
  const charts = [...element.querySelectorAll('.chart')];
  for (const chart of charts) chart.hidden = !news.parts[chart.dataset.part];  // before drawing: it decides the width
  for (const chart of charts.filter(chart => !chart.hidden)) {
    const part = news.parts[chart.dataset.part], node = chart.querySelector('.plot');
    setText(chart.querySelector('.waiting'), part.waiting);
    if (part.figure) plot(node, part.figure);
    else if (node.figure && part.rows) { extend(node.figure, part.points); draw(node); }
  }
}

function side(name) {
  const box = el('div', 'answer ' + name);
  box.append(el('span', 'who', name === 'base' ? 'base' : 'PPO'), el('p', 'text'), el('div', 'mark'));
  return box;
}

function showCards() {
  const cards = $('.cards'), scores = samples.map(s => s.score).filter(s => s !== null);
  $('.pinned').hidden = !samples.length;
  if (!samples.length) return;
  const low = Math.min(...scores), high = Math.max(...scores);
  const at = steps[follow ? steps.length - 1 : +$('input').value];
  const first = samples.filter(s => s.step === steps[0]), now = samples.filter(s => s.step === at);
  first.forEach((before, i) => {
    let card = cards.children[i];
    if (!card) {
      card = el('article', 'card');
      card.append(el('h4'), side('base'), side('ppo'));
      cards.append(card);
    }
    setText(card.querySelector('h4'), before.prompt);
    const after = now.find(s => s.index === before.index) || before;
    for (const [name, sample] of [['base', before], ['ppo', after]]) {
      const box = card.querySelector('.' + name), print = JSON.stringify([before, sample, low, high]);
      if (box.print === print) continue;
      box.print = print;
      if (name === 'base') setText(box.querySelector('.text'), sample.response);
      else markChanges(box.querySelector('.text'), before.response, sample.response);
      box.querySelector('.mark').replaceChildren(scoreBar(sample.score, low, high));
    }
  });
  const last = at === steps[0] ? 'before PPO' : 'update ' + at;
  setText($('.when span'), last + (follow && active ? ', live' : ''));
}

function showSamples(fresh) {
  if (fresh.length) {
    samples.push(...fresh);
    steps = [...new Set(samples.map(s => s.step))].sort((a, b) => a - b);
    $('input').max = steps.length - 1;
    if (follow) $('input').value = steps.length - 1;
  }
  showCards();
}

function apply(news) {
  if (news.error) {
    clearInterval(timer);
    $('.verdict').dataset.tone = 'bad';
    return setText($('.verdict'), news.error);
  }
  const was = active;
  active = ACTIVE.includes(news.state);
  seen = news.seen;
  showState(news); showCharts(news); showSamples(news.samples);
  if (news.leave) showWaysOut(news.leave);
  if (!active) clearInterval(timer);
  if (was && !active) trigger('ended', {run});
}

function showWaysOut(found) {
  texts = found;
  $('.leave').hidden = false;
  setText($('.download'), 'Download run' + (found.size < 0.1 ? '' : ', ' + megabytes(found.size)));
}

const megabytes = size => number(size, size < 10 ? 1 : 0) + ' MB';

async function copy(text) {
  // A page that came over plain http from another machine has no clipboard; what is selected can still be copied.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = element.appendChild(el('textarea', '', text));
  box.select();
  const done = document.execCommand('copy');
  box.remove();
  if (!done) throw new Error();
}

for (const button of element.querySelectorAll('.copy'))
  button.addEventListener('click', async () => {
    const text = texts[button.dataset.what], said = $('.said');
    try {
      await copy(text);
      said.replaceChildren('Copied ', el('code', '', button.dataset.what === 'command' ? text : 'a script'));
    } catch (error) {
      said.replaceChildren('Please copy it yourself: ', el('code', 'whole', text));
    }
  });

$('.download').addEventListener('click', async event => {
  const button = event.target, said = $('.said'), asked = run;
  button.disabled = true;
  setText(said, 'Packing\u2026');
  try {
    const file = await server.download({run: asked});
    if (asked !== run) return;
    setText(said, file.error || file.name + ', ' + megabytes(file.size) + ', without checkpoints');
    if (file.error) return;
    const link = el('a');
    link.href = '/gradio_api/file=' + file.path;
    link.download = file.name;
    link.click();
  } catch (error) {
    setText(said, 'The zip could not be made; is there room on the disk?');
  } finally { button.disabled = false; }
});

async function tick() {
  if (!element.isConnected) return clearInterval(timer);
  if (busy || document.hidden) return;
  busy = true;
  const asked = run;
  try {
    const news = await server.poll({run, seen});
    if (asked === run) apply(news);
  } catch (error) {
    setText($('.clock'), 'No answer from the program; trying again');
  } finally { busy = false; }
  if (asked !== run) tick();
}

function attach() {
  if (props.value === run) return;
  reset(props.value);
  clearInterval(timer);
  timer = setInterval(tick, 1000);
  tick();
}

$('input').addEventListener('input', event => {
  follow = +event.target.value === steps.length - 1;
  showCards();
});
watch('value', attach);
attach();
"""


FIGURE_SCRIPT = """
const node = element.querySelector('.plot');
const pick = event => {
  const {data, customdata} = event.points[0];
  if (data.meta?.pick) document.dispatchEvent(new CustomEvent('pick', {detail: customdata[0]}));
};
async function show() {
  if (!props.value) return;
  await window.lab.plot(node, props.value);
  node.removeAllListeners('plotly_click');
  node.on('plotly_click', pick);
}
watch('value', show);
show();
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
        js_on_load=SCRIPT,
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


def figure_view(height: int, **kwargs: object) -> gr.HTML:
    """A Plotly figure that follows the page between light and dark; its value is the figure as a dict, or None.

    A click on a point of a trace with `meta["pick"]` is an event `pick` of the document, with the point's number.
    """
    return gr.HTML(
        html_template=f'<div class="plot" style="height:{height}px"></div>',
        js_on_load=FIGURE_SCRIPT,
        head=PLOTLY_HEAD,
        apply_default_css=False,
        **kwargs,
    )


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
        "samples": samples[seen.get("samples", 0) :],
        "seen": {"samples": len(samples)},
    }
    # Sent once, and again when the run has ended, for it is larger then.
    active = int(status.get("state") in ACTIVE)
    if seen.get("active") != active and run.config().get("kind") in export.CONFIGS:
        answer["leave"] = ways_out(run)
    answer["seen"]["active"] = active
    for name, part in parts.items():
        frame = _frame(name, part, now[name])
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
        "speed": figures.latest(ppo_rows[-1:], "episodes_per_second"),
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


def _frame(name: str, part: Run, rows: list[dict]) -> int:
    """Stands for what a figure shows beside its curves, lines and axis; when it changes, the figure is sent again."""
    known = figures.latest(rows, "label_ceiling") is not None if name == "reward" else bool(rows)
    return 2 * (part.status().get("total_steps") or 0) + known


def _part(name: str, run: Run, rows: list[dict], seen: int | None) -> dict:
    """A part's figure if the page has none yet (seen is None), else the points after the ones it has."""
    waiting = "" if rows else _waiting(run, parts_of(run)[name])
    if seen is None:
        return {"figure": figure_of(name, run, rows).to_plotly_json(), "rows": len(rows), "waiting": waiting}
    panels = figures.REWARD_PANELS if name == "reward" else figures.PPO_PANELS
    keys = {"step", "episode"} | {key for panel in panels for key in (panel.key, panel.marks, panel.band) if key}
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
        return figures.reward_curves(rows, part.status().get("total_steps") or None, height)
    total = part.config().get("total_episodes") or run.config().get("total_episodes")
    return figures.ppo_curves(rows, total, height)


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
    held_out, ceiling = figures.latest(rows, "eval_accuracy"), figures.latest(rows, "label_ceiling")
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
    kl, episodes = figures.latest(logged, "objective/kl"), logged[-1]["episode"]
    far = f", {kl:.1f} nats from the base model" if kl is not None else ""
    facts = figures.minus(f"the average score went from {first:.2f} to {last:.2f} in {episodes:,} episodes{far}.")
    if last - first > 0.2 * spread:
        return {"tone": "good", "text": f"{'Yes, it is learning' if active else 'It learned'}: {facts}"}
    if last - first < -0.2 * spread:
        return {"tone": "bad", "text": f"{'No' if active else 'It did not learn'}: {facts}"}
    return {"tone": "wait", "text": f"{'Not clearly yet' if active else 'It hardly learned'}: {facts}"}
