"""The Scores tab: is the difference real? Both models' scores on the same unseen questions."""

import csv
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from rlhf import figures
from rlhf.runs import Run, read_json
from rlhf.ui import empty_state, example_id, is_active, shown_run
from rlhf.ui.live import HEAD, figure_view


MEASURES = {"score": "Reward model's score", "gold": "Rubric (gold score)"}
SPLITS = {"test": "Test questions", "unseen": "Unseen topics"}
GLOSS = {
    "score": "The reward model's score is what PPO was trained to raise.",
    "gold": "The rubric is the hand-written scorer of the embedded world, from 0 to 1; training never sees it.",
    "test": "Test questions: same topics as in training, other questions.",
    "unseen": "Unseen topics: neither reward training nor PPO has met them.",
}
FIGURE_HEIGHT = 380

TABLE_TEMPLATE = """
<section class="pairs">
  <header><h3>Question by question</h3>
    <input type="search" placeholder="Find a word in questions or answers" aria-label="Find a word">
    <select aria-label="Order">
      <option value="gain">Largest gain first</option><option value="loss">Largest loss first</option>
      <option value="prompt">By question</option>
    </select>
  </header>
  <p class="count" role="status"></p>
  <div class="rows"></div>
  <button class="more" type="button">Show more</button>
</section>
"""

TABLE_SCRIPT = """
const {el, markChanges, scoreBar, number} = window.lab;
const $ = selector => element.querySelector(selector);
const PAGE = 10;
let shown = PAGE;

function side(name, text, score, before) {
  const box = el('div', 'answer ' + name), said = el('p', 'text'), mark = el('div', 'mark');
  box.append(el('span', 'who', name === 'base' ? 'base' : 'PPO'), said, mark);
  if (before === undefined) said.textContent = text; else markChanges(said, before, text);
  mark.append(scoreBar(score, props.value.low, props.value.high, props.value.name));
  return box;
}

function show() {
  const value = props.value;
  $('.pairs').hidden = !value;
  if (!value) return;
  const words = $('input').value.trim().toLowerCase(), order = $('select').value;
  const holds = row => (row.prompt + ' ' + row.base + ' ' + row.ppo).toLowerCase().includes(words);
  const found = value.rows.filter(row => !words || holds(row));
  const gain = row => row.ppo_score - row.base_score;
  found.sort(order === 'prompt' ? (a, b) => a.prompt.localeCompare(b.prompt)
    : (a, b) => order === 'gain' ? gain(b) - gain(a) : gain(a) - gain(b));
  $('.count').textContent = words ? found.length + ' of ' + value.rows.length + ' questions hold it' :
    value.rows.length + ' questions';
  $('.rows').replaceChildren(...found.slice(0, shown).map(row => {
    const card = el('article', 'turn'), head = el('h4', '', row.prompt), pair = el('div', 'pair');
    const by = gain(row);
    head.append(el('span', by < 0 ? 'gain down' : 'gain', (by < 0 ? '' : '+') + number(by)));
    pair.append(side('base', row.base, row.base_score), side('ppo', row.ppo, row.ppo_score, row.base));
    card.append(head, pair);
    return card;
  }));
  $('.more').hidden = found.length <= shown;
}
$('input').addEventListener('input', () => { shown = PAGE; show(); });
$('select').addEventListener('change', () => { shown = PAGE; show(); });
$('.more').addEventListener('click', () => { shown += 2 * PAGE; show(); });
watch('value', () => { shown = PAGE; show(); });
show();
"""


def pair_table(**kwargs: object) -> gr.HTML:
    """Questions with both answers and their scores, searched and sorted in the browser."""
    return gr.HTML(html_template=TABLE_TEMPLATE, js_on_load=TABLE_SCRIPT, head=HEAD, apply_default_css=False, **kwargs)


@dataclass(frozen=True)
class Pair:
    """Both models' answers to one question, sampled with the same seed."""

    base: dict[str, str]
    ppo: dict[str, str]

    def values(self, measure: str) -> tuple[float, float]:
        """Both models' scores."""
        return float(self.base[measure]), float(self.ppo[measure])


def read_summary(run: Run) -> dict:
    """The comparison's numbers; empty when there is none."""
    return read_json(run.path / "summary.json")


def read_pairs(run: Run, split: str, measure: str) -> list[Pair]:
    """The answers of one split that carry this score."""
    path = run.path / "scores.csv"
    if not path.exists():
        return []
    sides: dict[tuple[str, str], dict[str, dict]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == split and row[measure]:
                sides.setdefault((row["prompt"], row["sample"]), {})[row["model"]] = row
    return [Pair(both["base"], both["ppo"]) for both in sides.values() if len(both) == 2]


def sentence(pairs: list[Pair], measure: str, split: str, summary: dict) -> str:
    """Is the difference real? Answered in one sentence."""
    gains = [ppo - base for base, ppo in (pair.values(measure) for pair in pairs)]
    wins, mean = sum(gain > 0 for gain in gains), statistics.fmean(gains)
    which = "unseen questions" if split == "test" else "questions about unseen topics"
    by = "the rubric" if measure == "gold" else "the reward model"
    interval = _interval(summary, measure, split)
    sure = f" (95 % interval {_signed(interval['ci_low'])} to {_signed(interval['ci_high'])})" if interval else ""
    return (
        f"PPO scored higher on {wins} of {len(pairs)} {which}; by {by}, its answers are {abs(mean):.2f} "
        f"{'better' if mean >= 0 else 'worse'} on average{sure}."
    )


def _interval(summary: dict, measure: str, split: str) -> dict | None:
    numbers = summary if split == "test" else summary.get("unseen_topics") or {}
    found = numbers.get("gold_gain" if measure == "gold" else "gain") or {}
    return found if found.get("ci_low") is not None else None


def _signed(value: float) -> str:
    return figures.minus(f"{value:+.2f}")


def averages(pairs: list[Pair], measure: str, split: str, summary: dict) -> str:
    """Both models' averages as an HTML table."""
    columns = []
    for name in ("base", "ppo"):
        answers = [getattr(pair, name) for pair in pairs]
        values = [float(answer[measure]) for answer in answers]
        q1, median, q3 = np.percentile(values, (25, 50, 75))
        ended = sum(answer["ended"].lower() in ("true", "1") for answer in answers) / len(answers)
        distances = [float(answer["kl"]) for answer in answers if answer["kl"]]
        distinct = summary.get(name, {}).get("distinct_2") if split == "test" else None
        columns.append(
            {
                "Average": f"{statistics.fmean(values):.2f}",
                "Median": f"{median:.2f}",
                "Middle half": f"{q1:.2f} to {q3:.2f}",
                "Spread (standard deviation)": f"{np.std(values, ddof=min(1, len(values) - 1)):.2f}",
                "Tokens an answer": f"{statistics.fmean(float(answer['tokens']) for answer in answers):.0f}",
                "Ended by itself": f"{100 * ended:.0f} %",
                "Word pairs that differ": f"{100 * distinct:.0f} %" if distinct is not None else "",
                "KL from the base, nats": f"{statistics.fmean(distances):.1f}" if name == "ppo" and distances else "",
            }
        )
    rows = [(label, columns[0][label], columns[1][label]) for label in columns[0] if columns[1][label]]
    return _table(("", "Base", "PPO"), [*rows, *_sizes(summary)], f"{len(pairs)} answers each")


def _sizes(summary: dict) -> list[tuple[str, ...]]:
    """Sizes of the models, and the reward model's own marks, as rows of the table."""
    base, ppo, judge = (summary.get(name) or {} for name in ("base", "ppo", "reward_model"))
    rows = []
    if base.get("size_mb"):
        rows.append(("Model size, MB", f"{base['size_mb']:.1f}", f"{ppo['size_mb']:.1f}"))
    if judge.get("size_mb"):
        rows.append(("Reward model, MB", f"{judge['size_mb']:.1f}"))
    return rows


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        first, *others = (escape(figures.minus(cell)) if cell[:1] == "-" else escape(cell) for cell in cells)
        span = 1 + (len(head) - len(cells))  # a lone value belongs to no column
        tds = "".join(f'<{tag} colspan="{span}">{cell}</{tag}>' for cell in others)
        return f'<tr><th scope="row">{first}</th>{tds}</tr>'

    body = "".join(line(row, "td") for row in rows)
    return f'<table class="averages"><caption>{escape(caption)}</caption>{line(head, "th")}{body}</table>'


def csv_copy(run: Run) -> str | None:
    """A copy of a run's scores.csv to download: the page serves no file of a run itself."""
    source = run.path / "scores.csv"
    if not source.exists():
        return None
    target = Path(tempfile.mkdtemp(prefix="rlhf-scores-")) / f"{run.id}-scores.csv"
    return str(shutil.copyfile(source, target))


def _as_said(cell: str) -> str:
    """Text as the model said it: the file guards cells that a spreadsheet would run with an apostrophe."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in ("=", "+", "-", "@", "\t") else cell


def missing(run: Run | None) -> str:
    """What will be here, and what makes it so."""
    if run is None:
        return "Here both models will be compared on the same unseen questions: start a run in the Train tab."
    if is_active(run):
        return "Both models are compared when the training is done; the scores will appear here by themselves."
    return "This run compared no models: “Reward model, then PPO” in the Train tab ends with a comparison."


class ScoresTab:
    """The tab's components and what they do; `show` fills it for a run."""

    def __init__(self) -> None:
        self.empty = gr.HTML(apply_default_css=False)
        self.example = gr.Button("Show the example run", visible=False, scale=0, elem_classes="offer")
        with gr.Column(visible=False, elem_classes="scores") as self.body:
            self.sentence = gr.HTML(apply_default_css=False)
            with gr.Row(elem_classes="switches"):
                self.measure = gr.Radio(
                    [(label, name) for name, label in MEASURES.items()], value="score", label="Judge", container=False
                )
                self.split = gr.Radio(
                    [(label, name) for name, label in SPLITS.items()], value="test", label="Questions", container=False
                )
                self.download = gr.DownloadButton("Download CSV", size="sm", scale=0, min_width=150)
            with gr.Row(elem_classes="numbers"):
                self.figure = figure_view(FIGURE_HEIGHT, value=None, scale=3, min_width=320, elem_id="distributions")
                self.table = gr.HTML(scale=2, min_width=300, apply_default_css=False)
            self.pairs = pair_table(value=None, elem_id="pairs")
        self._view = [self.empty, self.body, self.sentence, self.figure, self.table, self.pairs]
        self.outputs = [*self._view, self.example, self.download, self.measure, self.split]

    def wire(self, picker: gr.Dropdown) -> None:
        """Connect the switches and the download."""
        gr.on(
            [self.measure.input, self.split.input],
            view,
            [picker, self.measure, self.split],
            self._view,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",
        )

    def show(self, run_id: str | None) -> tuple:
        """The values of `outputs` for this run."""
        run = shown_run(run_id)
        there = run is not None and (run.path / "scores.csv").exists()
        # Data from outside the embedded world has no rubric, so the switch goes back to the score every run has.
        return (
            *view(run_id, "score", "test"),
            gr.Button(visible=not there and bool(example_id()) and run_id != example_id()),
            gr.DownloadButton(value=csv_copy(run) if there else None),
            gr.Radio(value="score"),
            gr.Radio(value="test"),
        )


def view(run_id: str | None, measure: str, split: str) -> tuple:
    """Empty note, body, sentence, figure, table and pairs for a run, a judge and a set of questions."""
    run = shown_run(run_id)
    if run is None or not (run.path / "scores.csv").exists():
        return empty_state(missing(run)), gr.Column(visible=False), "", None, "", None
    pairs = read_pairs(run, split, measure)
    if not pairs:
        lack = (
            "There is no rubric for this data; it belongs to the embedded world."
            if measure == "gold"
            else ("No question of this kind was compared in this run.")
        )
        return "", gr.Column(visible=True), _headline(lack, measure, split), None, "", None
    summary = read_summary(run)
    base, ppo = zip(*(pair.values(measure) for pair in pairs), strict=True)
    name = "rubric (gold score)" if measure == "gold" else "score by the reward model"
    return (
        "",
        gr.Column(visible=True),
        _headline(sentence(pairs, measure, split, summary), measure, split),
        figures.distributions(base, ppo, name, FIGURE_HEIGHT).to_plotly_json(),
        averages(pairs, measure, split, summary),
        _table_value(pairs, measure),
    )


def _headline(text: str, measure: str, split: str) -> str:
    return f'<p class="verdict">{escape(text)}</p><p class="gloss">{escape(GLOSS[measure])} {escape(GLOSS[split])}</p>'


def _table_value(pairs: list[Pair], measure: str) -> dict:
    rows = []
    for pair in pairs:
        base, ppo = pair.values(measure)
        rows.append(
            {
                "prompt": _as_said(pair.base["prompt"]),
                "base": _as_said(pair.base["response"]),
                "ppo": _as_said(pair.ppo["response"]),
                "base_score": base,
                "ppo_score": ppo,
            }
        )
    scores = [row[key] for row in rows for key in ("base_score", "ppo_score")]
    name = "rubric" if measure == "gold" else "score"
    return {"rows": rows, "low": min(scores), "high": max(scores), "name": name}
