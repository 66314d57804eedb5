"""The Scores tab: is the difference real? Two models' scores on the same unseen questions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from rlhf.compare.ceiling import Ceiling
from rlhf.compare.stats import Interval, Overoptimization, ReliabilityBin
from rlhf.compare.table import read_rows
from rlhf.figures import scores as figures
from rlhf.kinds import METHODS
from rlhf.runs.directory import Run
from rlhf.ui import empty_state, example_id, is_active, is_comparison, shown_run
from rlhf.ui.changes import changed_words
from rlhf.ui.comparison_form import ComparisonForm
from rlhf.ui.downloads import csv_of
from rlhf.ui.live import live_run
from rlhf.ui.scripts import HEAD, figure_view, script
from rlhf.words import minus, percent, share, signed


MEASURES = {"score": "Reward model’s score", "gold": "Rubric (gold score)"}
SPLITS = {"test": "Test questions", "unseen": "Unseen topics", "own": "Your own questions"}
GLOSS = {
    "score": "The reward model’s score is what PPO was trained to raise.",
    "gold": "The rubric is the embedded world’s hand-written scorer, from 0 to 1; training never sees it.",
    "test": "Test questions: the topics of training, but other questions.",
    "unseen": "Unseen topics: they occur neither in reward training nor in PPO.",
    "own": "Your own questions: the embedded world’s rubric cannot score them.",
}
ASKED = {"test": "unseen questions", "unseen": "questions about unseen topics", "own": "questions of your own"}
"""Splits, as a sentence calls them."""
OPENING_WORDS, OPENINGS = 3, 6
"""Words of an answer's opening, and how many openings are listed."""
MAPPED = 12
"""The most models whose names fit in one figure."""
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
        """A column of both models' answers, one number per answer."""
        return [row[measure] for row in self.base], [row[measure] for row in self.other]


def model_name(model: str) -> str:
    """A model as a sentence calls it."""
    name, _, seed = model.partition("-seed-")
    name = METHODS.get(name) or name.replace("kl_coef-", "kl_coef ")
    return name + (f", seed {seed.replace('-', ', update ')}" if seed else "")


def read_questions(path: Path, split: str, measure: str, other: str) -> list[Question]:
    """The questions of one split to which both the base and one other model have answers with this score."""
    sides: dict[str, dict[str, list]] = {}
    for row in read_rows(path):
        if row["split"] == split and row["model"] in ("base", other) and row[measure] is not None:
            sides.setdefault(row["prompt"], {}).setdefault(row["model"], []).append(row)
    return [Question(both["base"], both[other]) for both in sides.values() if len(both) == 2]


def sentence(against: dict, measure: str, split: str, name: str) -> str:
    """Is the difference real? In words that a pupil of sixteen understands.

    Args:
        against: one measure of one model in `against_base` of `summary.json`.
        name: the model, as a sentence calls it.
    """
    scorer = "the rubric" if measure == "gold" else "the reward model"
    gain = against["gain"]["value"]
    return (
        f"On {against['n']} {ASKED[split]}, {name} scored higher than the base model in "
        f"{percent(against['win_rate']['value'])} of comparisons. On average, {scorer} scores its answers "
        f"{abs(gain):.2f} {'higher' if gain >= 0 else 'lower'}."
    )


def certainty(of_split: dict, measure: str, other: str) -> str:
    """How sure these two numbers are: their intervals, and what the same training gained with other seeds."""
    against = of_split["against_base"][other][measure]
    wins, gain = against["win_rate"], against["gain"]
    text = (
        f"95 % intervals: {100 * wins['ci_low']:.0f} to {100 * wins['ci_high']:.0f} % of comparisons (equal models "
        f"would get 50 %; a tie counts half), {signed(gain['ci_low'])} to {signed(gain['ci_high'])} on average."
    )
    for name, seeds in of_split.get("seeds", {}).items():
        if other in seeds["models"] and seeds[measure]:
            gains = [of_split["against_base"][model][measure]["gain"]["value"] for model in seeds["models"]]
            mean = seeds[measure]
            text += (
                f" Trained {len(gains)} times with different seeds, {model_name(name)} gained "
                f"{', '.join(map(signed, gains))}: {signed(mean['value'])} on average (95 % interval over seeds "
                f"{signed(mean['ci_low'])} to {signed(mean['ci_high'])})."
            )
    return text


def averages(questions: list[Question], measure: str, split: str, other: str, summary: dict) -> str:
    """Both models' averages as an HTML table."""
    models = summary["splits"][split]["models"]
    columns = []
    for name, values in zip(("base", other), _flat(questions, measure), strict=True):
        model = models[name]
        bound = "at most " if name.startswith("best-of-") else ""
        possible = summary["splits"][split]["against_base"].get(name, {}).get("share", {}).get(measure)
        # The summary describes the score; of the gold score it holds the mean only.
        spread = model if measure == "score" else _described(values)
        columns.append(
            {
                "Mean": f"{spread['mean']:.2f}",
                "Median": f"{spread['median']:.2f}",
                "Quartiles (25–75 %)": f"{spread['q1']:.2f} to {spread['q3']:.2f}",
                "Standard deviation": f"{spread['std']:.2f}",
                "Tokens per answer": f"{model['mean_length']:.0f}",
                "Finished (EOS)": percent(model["eos_rate"]),
                "Distinct bigrams": percent(model["distinct_2"]),
                "Perplexity under the base model": f"{model['base_perplexity']:.1f}",
                "KL from the base model, nats per answer": f"{bound}{model['kl']['value']:.1f}",
                "Share of the largest possible gain at that KL": share(possible) if possible else "",
                "Model size, MB": f"{summary['size_mb'][name]:.1f}" if name in summary.get("size_mb", {}) else "",
            }
        )
    rows = [(label, columns[0][label], columns[1][label]) for label in columns[0] if columns[1][label]]
    reward_model = summary.get("reward_model") or {}
    if reward_model.get("size_mb"):
        rows.append(("Reward model size, MB", f"{reward_model['size_mb']:.1f}"))
    count = models[other]["samples"]
    caption = f"{len(questions)} questions, {count} {'answer' if count == 1 else 'answers'} to each"
    return _table(("", "Base", model_name(other)), rows, caption)


def _described(values: list[float]) -> dict[str, float]:
    """Mean, median, quartiles and standard deviation, named as in `summary.json`."""
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    return {"mean": np.mean(values), "median": median, "q1": q1, "q3": q3, "std": np.std(values, ddof=1)}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        first, *others = (escape(minus(cell)) if cell[:1] == "-" else escape(cell) for cell in cells)
        span = 1 + (len(head) - len(cells))  # a lone value belongs to no column
        tds = "".join(f'<{tag} colspan="{span}">{cell}</{tag}>' for cell in others)
        return f'<tr><th scope="row">{first}</th>{tds}</tr>'

    body = "".join(line(row, "td") for row in rows)
    return f'<table class="averages"><caption>{escape(caption)}</caption>{line(head, "th")}{body}</table>'


def missing(run: Run | None) -> str:
    """Why there are no scores and how to get some; empty where the progress of a comparison is shown instead."""
    if run is None:
        return "Start a run in the Train tab: both models are then compared here, on the same unseen questions."
    if is_active(run):
        later = "Both models are compared when training is done; the scores appear here by themselves."
        return "" if is_comparison(run) else later
    if is_comparison(run) or "compare" in run.stages():
        return f"The run ended before its models were compared. {run.saved()}"
    return "This run compared no models. “Reward model, then PPO” in the Train tab ends with a comparison."


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
            f"<p><b>The reward model preferred</b> {escape(pair['rejected'])}</p></article>"
        )
    return (
        '<details class="mistakes"><summary>Where the reward model is most wrong</summary>'
        '<p class="gloss">The unseen pairs with the most negative margins: the score of the answer that people '
        "preferred minus the score of the other. Some are mistakes of the reward model, some are wrong labels.</p>"
        f"{''.join(shown)}</details>"
    )


def _flat(questions: list[Question], column: str) -> tuple[list[float], list[float]]:
    """This column of all answers of the base, and of the other model."""
    sides = zip(*(question.values(column) for question in questions), strict=True)
    base, other = ([value for values in side for value in values] for side in sides)
    return base, other


def _interval(entry: dict) -> Interval:
    """An interval as `summary.json` writes it."""
    return Interval(entry["value"], entry["ci_low"], entry["ci_high"])


def openings(questions: list[Question], other: str) -> str:
    """The commonest first words of the other model's answers, and how often the base begins so, as an HTML table."""
    counts = [
        Counter(" ".join(text.split()[:OPENING_WORDS]) for text in texts) for texts in _flat(questions, "response")
    ]
    rows = [
        (f"{opening} …", *(percent(count[opening] / count.total()) for count in counts))
        for opening, _ in counts[1].most_common(OPENINGS)
    ]
    return _table(("", "Base", model_name(other)), rows, f"How answers begin: the commonest {OPENING_WORDS} words")


def _ceiling(run: Run, of_split: dict) -> Ceiling | None:
    """The most that is possible, for the questions on which it was measured."""
    measured = any("share" in against for against in of_split["against_base"].values())
    content = run.ceiling() if measured else {}
    return Ceiling.read(content) if content else None


def _frontier(of_split: dict, ceiling: Ceiling | None) -> gr.HTML:
    """Every model's score over its KL from the base; for two models only below a ceiling."""
    if not (2 if ceiling else 3) <= len(of_split["models"]) <= MAPPED:
        return gr.HTML(value=None, visible=False)
    points = []
    for name, model in of_split["models"].items():
        against = of_split["against_base"].get(name)
        score, gold = (
            _shifted(model[key], against[kind]["gain"] if against else None) if model[key] is not None else None
            for key, kind in (("mean", "score"), ("gold_mean", "gold"))
        )
        kind = "base" if against is None else "best-of-n" if name.startswith("best-of-") else "model"
        points.append(figures.FrontierPoint(model_name(name), model["kl"]["value"], score, gold, kind))
    figure = figures.frontier(points, "score by the reward model", ceiling, SMALL_HEIGHT + 60)
    return gr.HTML(value=figure.to_plotly_json(), visible=True)


def _reliability(reward_model: dict) -> gr.HTML:
    """Whether the reward model is right as often as it is sure, if its run has measured that."""
    if not reward_model.get("reliability"):
        return gr.HTML(value=None, visible=False)
    bins = [ReliabilityBin(**entry) for entry in reward_model["reliability"]]
    figure = figures.reliability(bins, reward_model["ece"], SMALL_HEIGHT)
    return gr.HTML(value=figure.to_plotly_json(), visible=True)


def _overoptimization(sweep: dict) -> gr.HTML:
    """Score and gold score over the KL from the base, if the run holds a sweep."""
    points = [point for point in sweep.get("points", []) if "kl_coef" in point and point["gold"]]
    if not points:
        return gr.HTML(value=None, visible=False)
    kl, proxy, gold = ([point[name]["value"] for point in points] for name in ("kl", "score", "gold"))
    labels = [f"kl_coef {point['kl_coef']:g}, after {point['episodes']:,} episodes" for point in points]
    fit = Overoptimization(**sweep["fit"]) if sweep["fit"] else None
    ceiling = Ceiling.read(sweep["ceiling"]) if sweep.get("ceiling") else None
    figure = figures.overoptimization(kl, proxy, gold, fit, labels, ceiling, SMALL_HEIGHT + 60)
    return gr.HTML(value=figure.to_plotly_json(), visible=True)


def _shifted(mean: float, gain: dict | None) -> Interval:
    """A model's mean with the interval of its gain over the base; that of the base is a point."""
    if gain is None:
        return Interval(mean, mean, mean)
    return Interval(mean, mean + gain["ci_low"] - gain["value"], mean + gain["ci_high"] - gain["value"])


def _headline(text: str, measure: str, split: str, details: str = "", cautions: Sequence[str] = ()) -> str:
    warned = "".join(f'<p class="note" role="alert">{escape(caution)}</p>' for caution in cautions)
    gloss = escape(f"{details} {GLOSS[measure]} {GLOSS[split]}".strip())
    return f'<p class="verdict">{escape(text)}</p>{warned}<p class="gloss">{gloss}</p>'


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
    return {"rows": rows, "low": min(scores), "high": max(scores), "name": name, "other": model_name(other)}


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
                    [(label, name) for name, label in MEASURES.items()],
                    value="score",
                    label="Measure",
                    container=False,
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
                self.reliability = figure_view(
                    SMALL_HEIGHT, value=None, min_width=320, elem_id="reliability", visible=False
                )
                self.overoptimization = figure_view(
                    SMALL_HEIGHT + 60, value=None, min_width=320, elem_id="sweep", visible=False
                )
            with gr.Accordion("Where the nats go", open=False, visible=False, elem_classes="advanced") as self.nats:
                with gr.Row(elem_classes="numbers"):
                    self.positions = figure_view(SMALL_HEIGHT, value=None, scale=3, min_width=320, elem_id="positions")
                    self.openings = gr.HTML(scale=2, min_width=300, apply_default_css=False)
            self.mistakes = gr.HTML(apply_default_css=False, elem_id="mistakes")
            self.pairs = pair_table(value=None, elem_id="pairs")
        self._results = [self.figure, self.table, self.differences, self.lengths, self.frontier]
        self._results += [self.reliability, self.overoptimization, self.nats, self.positions, self.openings]
        self._results += [self.mistakes, self.pairs]
        self._view = [self.empty, self.head, self.body, self.sentence, *self._results]
        self._switches = [self.measure, self.split, self.other]
        self.outputs = [*self._view, self.example, self.download, *self._switches, self.progress, self.form.models]

    def wire(self, picker: gr.Dropdown, visitor: gr.BrowserState) -> None:
        """Connect the switches and the form."""
        gr.on(
            [switch.input for switch in self._switches],
            self.view,
            [picker, *self._switches],
            self._view,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",
        )
        self.form.wire(picker, visitor)

    def show(self, run_id: str | None) -> dict:
        """The values of `outputs` for this run."""
        run = shown_run(run_id)
        compared = run is not None and run.comparison() is not None
        splits = run.summary()["splits"] if compared else {}
        split = next(iter(splits), "test")
        models = list(splits[split]["against_base"]) if splits else []
        first = models[0] if models else None
        waits = is_active(run) and is_comparison(run)
        offer_example = not compared and not waits and bool(example_id()) and run_id != example_id()
        has_gold = any(of_split["against_base"][first]["gold"] for of_split in splits.values())
        split_choices = [(SPLITS[name], name) for name in splits]
        model_choices = [(model_name(name), name) for name in models]
        cache = Path(self.download.GRADIO_CACHE)
        return {
            # Data from outside the embedded world has no rubric, so the switch goes back to the score every run has.
            **self.view(run_id, "score", split, first),
            self.measure: gr.Radio(value="score", visible=has_gold),
            self.split: gr.Radio(split_choices, value=split, visible=len(splits) > 1),
            self.other: gr.Dropdown(model_choices, value=first, visible=len(models) > 1),
            self.example: gr.Button(visible=offer_example),
            self.download: gr.DownloadButton(value=str(csv_of(run, cache)) if compared else None),
            self.progress: gr.HTML(value=run_id if waits else None, visible=waits),
            self.form.models: self.form.choices(run_id),
        }

    def view(self, run_id: str | None, measure: str, split: str, other: str | None) -> dict:
        """The values of all that the switches change."""
        run = shown_run(run_id)
        nothing = dict.fromkeys(self._results) | {
            figure: gr.HTML(value=None, visible=False)
            for figure in (self.frontier, self.reliability, self.overoptimization)
        }
        nothing[self.nats] = gr.Accordion(visible=False)
        if run is None or run.comparison() is None or other is None:
            hidden = gr.Column(visible=False)
            return {
                self.empty: empty_state(missing(run)),
                self.head: hidden,
                self.body: hidden,
                self.sentence: "",
                **nothing,
            }
        questions = read_questions(run.comparison() / "scores.csv", split, measure, other)
        if len(questions) < 2:
            lack = (
                "There is no rubric for these questions; it belongs to the embedded world."
                if measure == "gold"
                else "This run compared no such questions."
            )
            return {
                self.empty: "",
                self.head: gr.Column(visible=True),
                self.body: gr.Column(visible=False),
                self.sentence: _headline(lack, measure, split),
                **nothing,
            }
        summary, name = run.summary(), model_name(other)
        of_split, reward_model = summary["splits"][split], summary.get("reward_model") or {}
        against = of_split["against_base"][other]
        text, details = sentence(against[measure], measure, split, name), certainty(of_split, measure, other)
        base, scores = _flat(questions, measure)
        base_tokens, tokens = _flat(questions, "tokens")
        gains = [float(np.mean(after) - np.mean(before)) for before, after in (q.values(measure) for q in questions)]
        gain = _interval(against[measure]["gain"])
        what = "rubric (gold score)" if measure == "gold" else "score by the reward model"
        figure = figures.distributions(base, scores, what, name, FIGURE_HEIGHT)
        differences = figures.differences(gains, gain, what, name, SMALL_HEIGHT)
        by_position = of_split["models"][other].get("kl_by_position")
        nats = figures.nats_by_position(by_position, name, SMALL_HEIGHT) if by_position else None
        lengths = figures.length_scatter(base_tokens, base, tokens, scores, what, name, SMALL_HEIGHT)
        return {
            self.empty: "",
            self.head: gr.Column(visible=True),
            self.body: gr.Column(visible=True),
            self.sentence: _headline(text, measure, split, details, against["cautions"]),
            self.figure: figure.to_plotly_json(),
            self.table: averages(questions, measure, split, other, summary),
            self.differences: differences.to_plotly_json(),
            self.lengths: lengths.to_plotly_json(),
            self.frontier: _frontier(of_split, _ceiling(run, of_split)),
            self.nats: gr.Accordion(visible=nats is not None),
            self.positions: nats.to_plotly_json() if nats else None,
            self.openings: openings(questions, other),
            self.reliability: _reliability(reward_model),
            self.overoptimization: _overoptimization(run.sweep()),
            self.mistakes: worst_pairs(reward_model.get("worst", [])),
            self.pairs: _table_value(questions, measure, other),
        }
