"""The Scores tab: is the difference real? Two models' scores on the same unseen questions."""

import shutil
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from rlhf.compare.stats import Interval, Overoptimization, Paired, ReliabilityBin, paired
from rlhf.compare.table import read_rows
from rlhf.figures import scores as figures
from rlhf.figures.style import minus, signed
from rlhf.runs.directory import Run, read_json
from rlhf.ui import empty_state, example_id, is_active, shown_run
from rlhf.ui.changes import changed_words
from rlhf.ui.comparison_form import ComparisonForm
from rlhf.ui.live import live_run
from rlhf.ui.scripts import HEAD, figure_view, script


MEASURES = {"score": "Reward model's score", "gold": "Rubric (gold score)"}
SPLITS = {"test": "Test questions", "unseen": "Unseen topics", "own": "Your own questions"}
GLOSS = {
    "score": "The reward model's score is what PPO was trained to raise.",
    "gold": "The rubric is the hand-written scorer of the embedded world, from 0 to 1; training never sees it.",
    "test": "Test questions: same topics as in training, other questions.",
    "unseen": "Unseen topics: neither reward training nor PPO has met them.",
    "own": "Your own questions: the rubric of the embedded world does not know them.",
}
ASKED = {"test": "unseen questions", "unseen": "questions about unseen topics", "own": "questions of your own"}
"""Splits, as a sentence calls them."""
COMPARING = ("compare", "sweep")
"""Kinds of runs that are there for a comparison: their progress is shown where the scores will be."""
MAPPED = 12
"""Models at most whose names can stand in one figure."""
FIGURE_HEIGHT = 380
SMALL_HEIGHT = 320

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


def pair_table(**kwargs: object) -> gr.HTML:
    """Questions with both answers and their scores, searched and sorted in the browser."""
    return gr.HTML(
        html_template=TABLE_TEMPLATE, js_on_load=script("scores"), head=HEAD, apply_default_css=False, **kwargs
    )


@dataclass(frozen=True)
class Question:
    """Two models' answers to one question, as rows of `scores.csv`."""

    base: list[dict]
    other: list[dict]

    def values(self, measure: str) -> tuple[list[float], list[float]]:
        """Both models' scores, one an answer."""
        return [row[measure] for row in self.base], [row[measure] for row in self.other]


def comparison_of(run: Run | None) -> Path | None:
    """The folder of a run's finished comparison, a sweep's or its own; None if there is none."""
    for folder in (run.path, run.path / "compare") if run else ():
        if (folder / "scores.csv").exists() and (folder / "summary.json").exists():
            return folder
    return None


def said_name(model: str) -> str:
    """A model as a sentence calls it."""
    name, _, seed = model.partition("-seed-")
    name = "PPO" if name == "ppo" else name.replace("kl_coef-", "kl_coef ")
    return name + (f", seed {seed.replace('-', ', update ')}" if seed else "")


def read_questions(folder: Path, split: str, measure: str, other: str) -> list[Question]:
    """The questions of one split whose answers, of the base and of one other model, carry this score."""
    sides: dict[str, dict[str, list]] = {}
    for row in read_rows(folder / "scores.csv"):
        if row["split"] == split and row["model"] in ("base", other) and row[measure] is not None:
            sides.setdefault(row["prompt"], {}).setdefault(row["model"], []).append(row)
    return [Question(both["base"], both[other]) for both in sides.values() if len(both) == 2]


def compare(questions: list[Question], measure: str) -> Paired:
    """The statistics of some questions, paired."""
    base, other = zip(*(question.values(measure) for question in questions), strict=True)
    return paired(np.array(base), np.array(other))


def sentence(found: Paired, measure: str, split: str, name: str) -> str:
    """Is the difference real? Answered in words that a pupil understands."""
    by = "the rubric" if measure == "gold" else "the reward model"
    wins, gain = found.win_rate, found.gain
    low, high = 100 * wins.low, 100 * wins.high
    return (
        f"On {found.n} {ASKED[split]} {name} scored higher {100 * wins.value:.0f} times in 100 (a tie is half a "
        f"time); chance would be 50, and we are 95 % sure that it is between {low:.0f} and {high:.0f}. "
        f"By {by}, its answers are {abs(gain.value):.2f} {'better' if gain.value >= 0 else 'worse'} on average "
        f"(95 % interval {signed(gain.low)} to {signed(gain.high)})."
    )


def averages(questions: list[Question], measure: str, split: str, other: str, summary: dict) -> str:
    """Both models' averages as an HTML table."""
    models = summary["splits"][split]["models"]
    columns = []
    for number, name in enumerate(("base", other)):
        values = np.array([question.values(measure)[number] for question in questions])
        q1, median, q3 = np.percentile(values, (25, 50, 75))
        model = models[name]
        columns.append(
            {
                "Average": f"{values.mean():.2f}",
                "Median": f"{median:.2f}",
                "Middle half": f"{q1:.2f} to {q3:.2f}",
                "Spread (standard deviation)": f"{values.std(ddof=1):.2f}",
                "Tokens an answer": f"{model['mean_length']:.0f}",
                "Ended by itself": f"{100 * model['eos_rate']:.0f} %",
                "Word pairs that differ": f"{100 * model['distinct_2']:.0f} %",
                "Surprise of the base model (perplexity)": f"{model['base_perplexity']:.1f}",
                "KL from the base, nats": f"{model['kl']['value']:.1f}",
                "Model size, MB": f"{summary['size_mb'][name]:.1f}" if name in summary.get("size_mb", {}) else "",
            }
        )
    rows = [(label, columns[0][label], columns[1][label]) for label in columns[0] if columns[1][label]]
    judge = summary.get("reward_model") or {}
    if judge.get("size_mb"):
        rows.append(("Reward model, MB", f"{judge['size_mb']:.1f}"))
    count = models[other]["samples"]
    caption = f"{len(questions)} questions, {count} {'answer' if count == 1 else 'answers'} each"
    return _table(("", "Base", said_name(other)), rows, caption)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        first, *others = (escape(minus(cell)) if cell[:1] == "-" else escape(cell) for cell in cells)
        span = 1 + (len(head) - len(cells))  # a lone value belongs to no column
        tds = "".join(f'<{tag} colspan="{span}">{cell}</{tag}>' for cell in others)
        return f'<tr><th scope="row">{first}</th>{tds}</tr>'

    body = "".join(line(row, "td") for row in rows)
    return f'<table class="averages"><caption>{escape(caption)}</caption>{line(head, "th")}{body}</table>'


def csv_copy(run: Run, cache: Path) -> str:
    """A copy of a run's scores.csv to download, one for all who ask: the page serves no file of a run itself."""
    source, target = comparison_of(run) / "scores.csv", cache / "runs" / f"{run.id}-scores.csv"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return str(target)


def missing(run: Run | None) -> str:
    """What will be here, and what makes it so; nothing where the progress of a comparison says it."""
    if run is None:
        return "Here both models will be compared on the same unseen questions: start a run in the Train tab."
    if is_active(run):
        both = "Both models are compared when the training is done; the scores will appear here by themselves."
        return "" if run.status().get("kind") in COMPARING else both
    return "This run compared no models: “Reward model, then PPO” in the Train tab ends with a comparison."


class ScoresTab:
    """The tab's components and what they do; `show` fills it for a run."""

    def __init__(self) -> None:
        self.empty = gr.HTML(apply_default_css=False)
        self.progress = live_run(value=None, visible=False, elem_id="comparing")
        self.example = gr.Button("Show the example run", visible=False, scale=0, elem_classes="offer")
        with gr.Column(visible=False, elem_classes="scores") as self.head:
            self.sentence = gr.HTML(apply_default_css=False)
            with gr.Row(elem_classes="switches"):
                self.other = gr.Dropdown([], label="Model", container=False, visible=False, elem_id="other-model")
                self.measure = gr.Radio(
                    [(label, name) for name, label in MEASURES.items()], value="score", label="Judge", container=False
                )
                self.split = gr.Radio([], label="Questions", container=False)
                self.download = gr.DownloadButton("Download CSV", size="sm", scale=0, min_width=150)
        self.form = ComparisonForm()
        with gr.Column(visible=False, elem_classes="scores") as self.body:
            with gr.Row(elem_classes="numbers"):
                self.figure = figure_view(FIGURE_HEIGHT, value=None, scale=3, min_width=320, elem_id="distributions")
                self.table = gr.HTML(scale=2, min_width=300, apply_default_css=False)
            with gr.Row(elem_classes="numbers"):
                self.differences = figure_view(SMALL_HEIGHT, value=None, min_width=320, elem_id="differences")
                self.lengths = figure_view(SMALL_HEIGHT, value=None, min_width=320, elem_id="lengths")
            self.frontier = figure_view(SMALL_HEIGHT + 60, value=None, elem_id="frontier", visible=False)
            with gr.Row(elem_classes="numbers"):
                self.honesty = figure_view(
                    SMALL_HEIGHT, value=None, min_width=320, elem_id="reliability", visible=False
                )
                self.too_far = figure_view(
                    SMALL_HEIGHT + 60, value=None, min_width=320, elem_id="sweep", visible=False
                )
            self.mistakes = gr.HTML(apply_default_css=False, elem_id="mistakes")
            self.pairs = pair_table(value=None, elem_id="pairs")
        pictures = [self.figure, self.table, self.differences, self.lengths]
        pictures += [self.frontier, self.honesty, self.too_far, self.mistakes]
        self._view = [self.empty, self.head, self.body, self.sentence, *pictures, self.pairs]
        self._switches = [self.measure, self.split, self.other]
        self.outputs = [*self._view, self.example, self.download, *self._switches, self.progress, self.form.models]

    def wire(self, picker: gr.Dropdown, visitor: gr.BrowserState) -> None:
        """Connect the switches and the form."""
        gr.on(
            [switch.input for switch in self._switches],
            view,
            [picker, *self._switches],
            self._view,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",
        )
        self.form.wire(picker, visitor)

    def show(self, run_id: str | None) -> tuple:
        """The values of `outputs` for this run."""
        run = shown_run(run_id)
        folder = comparison_of(run)
        splits = read_json(folder / "summary.json")["splits"] if folder else {}
        split = next(iter(splits), "test")
        models = list(splits[split]["against_base"]) if splits else []
        first = models[0] if models else None
        waits = is_active(run) and run.status().get("kind") in COMPARING
        # Data from outside the embedded world has no rubric, so the switch goes back to the score every run has.
        return (
            *view(run_id, "score", split, first),
            gr.Button(visible=not folder and not waits and bool(example_id()) and run_id != example_id()),
            gr.DownloadButton(value=csv_copy(run, Path(self.download.GRADIO_CACHE)) if folder else None),
            gr.Radio(value="score", visible=any(found["against_base"][first]["gold"] for found in splits.values())),
            gr.Radio([(SPLITS[name], name) for name in splits], value=split, visible=len(splits) > 1),
            gr.Dropdown([(said_name(name), name) for name in models], value=first, visible=len(models) > 1),
            gr.HTML(value=run_id if waits else None, visible=waits),
            self.form.choices(run_id),
        )


def view(run_id: str | None, measure: str, split: str, other: str | None) -> tuple:
    """Empty note, head, body, sentence, figures, tables and pairs, for what the switches say."""
    run = shown_run(run_id)
    folder = comparison_of(run)
    nothing = (None, "", None, None, *[gr.HTML(value=None, visible=False)] * 3, "", None)
    if folder is None or other is None:
        hidden = gr.Column(visible=False)
        return empty_state(missing(run)), hidden, hidden, "", *nothing
    questions = read_questions(folder, split, measure, other)
    if len(questions) < 2:
        lack = (
            "There is no rubric for these questions; it belongs to the embedded world."
            if measure == "gold"
            else ("No question of this kind was compared in this run.")
        )
        return "", gr.Column(visible=True), gr.Column(visible=False), _headline(lack, measure, split), *nothing
    summary, name = read_json(folder / "summary.json"), said_name(other)
    found, of_split = compare(questions, measure), summary["splits"][split]
    said = [sentence(found, measure, split, name), *seeds_sentence(of_split, measure, other)]
    base, scores = ([value for values in side for value in values] for side in _sides(questions, measure))
    base_tokens, tokens = ([value for values in side for value in values] for side in _sides(questions, "tokens"))
    gains = [float(np.mean(after) - np.mean(before)) for before, after in (q.values(measure) for q in questions)]
    what = "rubric (gold score)" if measure == "gold" else "score by the reward model"
    shown = (
        figures.distributions(base, scores, what, name, FIGURE_HEIGHT),
        figures.differences(gains, found.gain, what, name, SMALL_HEIGHT),
        figures.length_scatter(base_tokens, base, tokens, scores, what, name, SMALL_HEIGHT),
    )
    distributions, differences, lengths = (figure.to_plotly_json() for figure in shown)
    judge = summary.get("reward_model") or {}
    sweep = read_json(run.path / "sweep.json") or read_json(run.path / "sweep" / "sweep.json")
    return (
        "",
        gr.Column(visible=True),
        gr.Column(visible=True),
        _headline(" ".join(said), measure, split, of_split["against_base"][other]["cautions"]),
        distributions,
        averages(questions, measure, split, other, summary),
        differences,
        lengths,
        _frontier(of_split),
        _honesty(judge),
        _too_far(sweep),
        worst_pairs(judge.get("worst", [])),
        _table_value(questions, measure, other),
    )


def seeds_sentence(found: dict, measure: str, other: str) -> list[str]:
    """What the same training gained with other seeds, if it was repeated."""
    for name, seeds in found.get("seeds", {}).items():
        if other in seeds["models"] and seeds[measure]:
            gains = [found["against_base"][model][measure]["gain"]["value"] for model in seeds["models"]]
            mean = seeds[measure]
            return [
                f"Trained {len(gains)} times, each with a seed of its own, {said_name(name)} gained "
                f"{', '.join(map(signed, gains))}: {signed(mean['value'])} on average (95 % interval over seeds "
                f"{signed(mean['ci_low'])} to {signed(mean['ci_high'])})."
            ]
    return []


def worst_pairs(worst: list[dict]) -> str:
    """The pairs on which the reward model contradicts people most, as HTML; empty if there are none."""
    if not worst:
        return ""
    shown = []
    for pair in worst:
        margin = minus(f"{pair['margin']:.1f}")
        shown.append(
            f"<article><h4>{escape(pair['prompt'])}<span>{margin}</span></h4>"
            f"<p><b>People preferred</b> {escape(pair['chosen'])}</p>"
            f"<p><b>It preferred</b> {escape(pair['rejected'])}</p></article>"
        )
    return (
        '<details class="mistakes"><summary>Where the reward model is most wrong</summary>'
        '<p class="gloss">Unseen pairs with the most negative margin, the score of the answer that people preferred '
        f"less that of the other. Some are its mistakes, some are the labels’.</p>{''.join(shown)}</details>"
    )


def _sides(questions: list[Question], column: str) -> tuple:
    """One list of lists for the base, one for the other model."""
    return tuple(zip(*(question.values(column) for question in questions), strict=True))


def _frontier(found: dict) -> gr.HTML:
    """Every model's score over its distance from the base; two need no map, and a sweep's many have their own."""
    if not 3 <= len(found["models"]) <= MAPPED:
        return gr.HTML(value=None, visible=False)
    points = []
    for name, model in found["models"].items():
        against = found["against_base"].get(name)
        score, gold = (
            _shifted(model[key], against[kind]["gain"] if against else None) if model[key] is not None else None
            for key, kind in (("mean", "score"), ("gold_mean", "gold"))
        )
        kind = "base" if against is None else "best-of-n" if name.startswith("best-of-") else "model"
        points.append(figures.FrontierPoint(said_name(name), model["kl"]["value"], score, gold, kind))
    figure = figures.frontier(points, "score by the reward model", SMALL_HEIGHT + 60)
    return gr.HTML(value=figure.to_plotly_json(), visible=True)


def _honesty(reward: dict) -> gr.HTML:
    """How far the reward model that scored can be believed, if its run has said so."""
    if not reward.get("reliability"):
        return gr.HTML(value=None, visible=False)
    bins = [ReliabilityBin(**found) for found in reward["reliability"]]
    figure = figures.reliability(bins, reward["ece"], SMALL_HEIGHT)
    return gr.HTML(value=figure.to_plotly_json(), visible=True)


def _too_far(sweep: dict) -> gr.HTML:
    """Score and gold score over the distance from the base, if a sweep lies in the run's directory."""
    points = [point for point in sweep.get("points", []) if "kl_coef" in point and point["gold"]]
    if not points:
        return gr.HTML(value=None, visible=False)
    kl, proxy, gold = ([point[name]["value"] for point in points] for name in ("kl", "score", "gold"))
    labels = [f"kl_coef {point['kl_coef']:g}, after {point['episodes']:,} episodes" for point in points]
    fit = Overoptimization(**sweep["fit"]) if sweep["fit"] else None
    figure = figures.overoptimization(kl, proxy, gold, fit, labels, SMALL_HEIGHT + 60)
    return gr.HTML(value=figure.to_plotly_json(), visible=True)


def _shifted(mean: float, gain: dict | None) -> Interval:
    """A model's average with the interval of its gain over the base; the base itself is what it is."""
    if gain is None:
        return Interval(mean, mean, mean)
    return Interval(mean, mean + gain["ci_low"] - gain["value"], mean + gain["ci_high"] - gain["value"])


def _headline(text: str, measure: str, split: str, cautions: list[str] = ()) -> str:
    warned = "".join(f'<p class="note" role="alert">{escape(caution)}</p>' for caution in cautions)
    glosses = f"{escape(GLOSS[measure])} {escape(GLOSS[split])}"
    return f'<p class="verdict">{escape(text)}</p>{warned}<p class="gloss">{glosses}</p>'


def _table_value(questions: list[Question], measure: str, other: str) -> dict:
    """The first answer of each model to each question."""
    rows = []
    for index, question in enumerate(questions):
        base, after = question.base[0], question.other[0]
        rows.append(
            {
                "index": index,
                "prompt": base["prompt"],
                "base": base["response"],
                "ppo": after["response"],
                "changes": changed_words(base["response"], after["response"]),
                "base_score": base[measure],
                "ppo_score": after[measure],
            }
        )
    scores = [row[key] for row in rows for key in ("base_score", "ppo_score")]
    name = "rubric" if measure == "gold" else "score"
    return {"rows": rows, "low": min(scores), "high": max(scores), "name": name, "other": said_name(other)}
