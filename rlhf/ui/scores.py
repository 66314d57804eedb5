"""The Scores tab: is the difference real? Two models' scores on the same unseen questions."""

from collections import Counter
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
from rlhf.ui import QUICK, empty_state, example_id, is_active, is_comparison, shown_run
from rlhf.ui.changes import changed_words
from rlhf.ui.comparison_form import ComparisonForm
from rlhf.ui.downloads import csv_of, download_button
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
ASKED = {"test": "new questions", "unseen": "questions about unseen topics", "own": "questions of your own"}
"""Splits, as a sentence calls them."""
OPENING_WORDS, OPENINGS = 3, 6
"""Words of an answer's opening, and how many openings are listed."""
MAPPED = 12
"""The most models whose names fit in one figure."""
FIGURE_HEIGHT = 360
SMALL_HEIGHT = 320

TABLE_TEMPLATE = """
<section class="pairs">
  <header><h3>Question by question</h3>
    <input type="search" placeholder="Find a word in questions or answers" aria-label="Find a word">
    <select aria-label="Order">
      <option value="gain">Largest gain first</option><option value="loss">Largest loss first</option>
      <option value="fooled">High score, low rubric first</option><option value="prompt">By question</option>
    </select>
  </header>
  <p class="count" role="status"></p>
  <div class="rows"></div>
  <button class="more" type="button">Show more</button>
</section>
"""


def pair_table(**kwargs: object) -> gr.HTML:
    """Questions with all answers of both models and their scores, searched and sorted in the browser."""
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


def sentence(against: dict, measure: str, name: str) -> str:
    """Is the difference real? In words that a pupil of sixteen understands.

    Args:
        against: one measure of one model in `against_base` of `summary.json`.
        name: the model, as a sentence calls it.
    """
    gain, scorer = against["gain"], "By the rubric, " if measure == "gold" else ""
    if gain["ci_low"] == gain["ci_high"] == 0:
        return f"{scorer}{name} and the base model score the same on every question."
    close = "too close to call: " if gain["ci_low"] <= 0 <= gain["ci_high"] else ""
    text = (
        f"{scorer}{close}{name} scores higher than the base model in {percent(against['win_rate']['value'])} of "
        f"comparisons, {abs(gain['value']):.2f} {'higher' if gain['value'] >= 0 else 'lower'} on average."
    )
    return text[0].upper() + text[1:]


def interval_words(against: dict, split: str) -> str:
    """How sure the average difference is, in a line."""
    gain = against["gain"]
    return (
        f"95 % interval of the average: {signed(gain['ci_low'])} to {signed(gain['ci_high'])}, from {against['n']} "
        f"{ASKED[split]}."
    )


def certainty(of_split: dict, measure: str, other: str) -> str:
    """What more there is to say: the interval of the wins, and what the same training gained with other seeds."""
    wins = of_split["against_base"][other][measure]["win_rate"]
    text = (
        "A 95 % interval holds the true value in 95 of 100 such experiments. For the share of comparisons it is "
        f"{100 * wins['ci_low']:.0f} to {100 * wins['ci_high']:.0f} %; equal models would get 50 %: a tie counts half."
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
    return _table(("Base", model_name(other)), rows, caption)


def _described(values: list[float]) -> dict[str, float]:
    """Mean, median, quartiles and standard deviation, named as in `summary.json`."""
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    return {"mean": np.mean(values), "median": median, "q1": q1, "q3": q3, "std": np.std(values, ddof=1)}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> str:
    def line(cells: tuple[str, ...]) -> str:
        first, *others = (escape(minus(cell)) if cell[:1] == "-" else escape(cell) for cell in cells)
        span = 1 + len(head) - len(others)  # a lone value belongs to no column
        tds = "".join(f'<td colspan="{span}">{cell}</td>' for cell in others)
        return f'<tr><th scope="row">{first}</th>{tds}</tr>'

    body = "".join(line(row) for row in rows)
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<table class="averages"><caption>{escape(caption)}</caption><tr><td></td>{names}</tr>{body}</table>'


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
            f"<article><h3><bdi>{escape(pair['prompt'])}</bdi><span>{margin}</span></h3>"
            f"<p><b>People preferred</b> <bdi>{escape(pair['chosen'])}</bdi></p>"
            f"<p><b>The reward model preferred</b> <bdi>{escape(pair['rejected'])}</bdi></p></article>"
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


def _places(questions: list[Question]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Question and number of each answer, in the order of `_flat`."""
    sides = ([question.base for question in questions], [question.other for question in questions])
    base, other = ([(q, n) for q, answers in enumerate(side) for n in range(len(answers))] for side in sides)
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
    return _table(("Base", model_name(other)), rows, f"How answers begin: the commonest {OPENING_WORDS} words")


def _ceiling(run: Run, of_split: dict) -> Ceiling | None:
    """The most that is possible, for the questions on which it was measured."""
    measured = any("share" in against for against in of_split["against_base"].values())
    content = run.ceiling() if measured else {}
    return Ceiling.read(content) if content else None


def _scored_by(run: Run) -> str:
    """What the scores of a comparison are."""
    if not run.config().get("reward_funcs"):
        return "score by the reward model"
    return f"score by {'reward model and' if run.reward_model_path() else 'the reward'} functions"


def _frontier(of_split: dict, ceiling: Ceiling | None, scored_by: str) -> gr.HTML:
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
    figure = figures.frontier(points, scored_by, ceiling, SMALL_HEIGHT + 60)
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


def _headline(against: dict, of_split: dict, measure: str, split: str, other: str) -> str:
    """One sentence, its interval, what could mislead, and folded away all else that is known about it, as HTML."""
    text, sure = sentence(against[measure], measure, model_name(other)), interval_words(against[measure], split)
    warned = "".join(f'<p class="note" role="alert">{escape(caution)}</p>' for caution in against["cautions"])
    more = escape(f"{certainty(of_split, measure, other)} {GLOSS[measure]} {GLOSS[split]}")
    return (
        f'<p class="verdict">{escape(text)}</p><div class="sure gloss"><p>{escape(sure)}</p>'
        f'<details><summary>How sure is that?</summary><p>{more}</p></details><a href="#pairs">Read the answers</a>'
        f"</div>{warned}"
    )


def _table_value(questions: list[Question], measure: str, other: str) -> dict:
    """All answers of both models to each question, and the difference of their averages."""
    rows = []
    for index, question in enumerate(questions):
        before, after = question.values(measure)
        # Each answer of the other model is marked where it differs from the base's answer that stands beside it.
        beside = [question.base[min(number, len(question.base) - 1)] for number in range(len(question.other))]
        rows.append(
            {
                "index": index,
                "prompt": question.base[0]["prompt"],
                "gain": float(np.mean(after) - np.mean(before)),
                "base": [_answer(row, [[row["response"], False]]) for row in question.base],
                "ppo": [
                    _answer(row, changed_words(base["response"], row["response"]))
                    for row, base in zip(question.other, beside, strict=True)
                ],
            }
        )
    scores = [score for side in _flat(questions, "score") for score in side]
    return {
        "rows": rows,
        "low": min(scores),
        "high": max(scores),
        "measure": "rubric score" if measure == "gold" else "score",
        "rubric": all(row["gold"] is not None for question in questions for row in (*question.base, *question.other)),
        "other": model_name(other),
    }


def _answer(row: dict, text: list) -> dict:
    """An answer as the table shows it: runs of [text, whether its words are new], and both scores."""
    return {"text": text, "score": row["score"], "gold": row["gold"]}


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
                self.download = download_button("Download CSV", csv_of, value=None, elem_classes="leave")
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
            trigger_mode="always_last",
            **QUICK,
        )
        self.form.wire(visitor)

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
        return {
            # Data from outside the embedded world has no rubric, so the switch goes back to the score every run has.
            **self.view(run_id, "score", split, first),
            self.measure: gr.Radio(value="score", visible=has_gold),
            self.split: gr.Radio(split_choices, value=split, visible=len(splits) > 1),
            self.other: gr.Dropdown(model_choices, value=first, visible=len(models) > 1),
            self.example: gr.Button(visible=offer_example),
            self.download: run_id if compared else None,
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
                self.sentence: f'<p class="verdict">{escape(lack)}</p>',
                **nothing,
            }
        summary, name = run.summary(), model_name(other)
        of_split, reward_model = summary["splits"][split], summary.get("reward_model") or {}
        against = of_split["against_base"][other]
        pairs = _table_value(questions, measure, other)
        base, scores = _flat(questions, measure)
        gain = _interval(against[measure]["gain"])
        what = "rubric (gold score)" if measure == "gold" else _scored_by(run)
        figure = figures.distributions(base, scores, what, name, FIGURE_HEIGHT)
        differences = figures.differences([row["gain"] for row in pairs["rows"]], gain, what, name, SMALL_HEIGHT)
        by_position = of_split["models"][other].get("kl_by_position")
        nats = figures.nats_by_position(by_position, name, SMALL_HEIGHT) if by_position else None
        tokens = _flat(questions, "tokens")
        sides = (figures.Answers(*side) for side in zip(tokens, (base, scores), _places(questions), strict=True))
        lengths = figures.length_scatter(*sides, what, name, SMALL_HEIGHT)
        return {
            self.empty: "",
            self.head: gr.Column(visible=True),
            self.body: gr.Column(visible=True),
            self.sentence: _headline(against, of_split, measure, split, other),
            self.figure: figure.to_plotly_json(),
            self.table: averages(questions, measure, split, other, summary),
            self.differences: differences.to_plotly_json(),
            self.lengths: lengths.to_plotly_json(),
            self.frontier: _frontier(of_split, _ceiling(run, of_split), _scored_by(run)),
            self.nats: gr.Accordion(visible=nats is not None),
            self.positions: nats.to_plotly_json() if nats else None,
            self.openings: openings(questions, other),
            self.reliability: _reliability(reward_model),
            self.overoptimization: _overoptimization(run.sweep()),
            self.mistakes: worst_pairs(reward_model.get("worst", [])),
            self.pairs: pairs,
        }
