"""Training curves of a reward model, of DPO and of PPO: logged rows in, Plotly figure out.

A live figure is built once and then grows in the browser: each trace names the metrics it draws in `meta`, and
`ui/live.js` appends their new points.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import plotly.graph_objects as go

from rlhf import metrics
from rlhf.figures.style import (
    BASE,
    GREY,
    INK,
    PAPER,
    PPO,
    PPO_BAND,
    PPO_INK,
    blank,
    heading,
    horizontal,
    percent_ticks,
    plain,
)
from rlhf.words import minus, percent


EPISODES = "episodes (answers sampled and scored)"
LN2 = 0.6931
"""Loss of a reward model that guesses, and of DPO where the policy is still the base model."""
MAX_POINTS = 800
"""Points of a curve when a figure is built; a longer history is thinned to every n-th point."""
LARGE = 100_000
"""From here on a number at the end of a curve or below the x axis is written shorter."""
WINDOW = 8
"""Logged lines that are averaged at the beginning and at the end of a curve: the average of one update jumps."""
LONGEST_TITLE = 30
"""Characters of a reward's name above its panel."""
PANEL_GAP = 0.085
"""Between two panels, for the lower one's heading, as a share of the figure's height."""
DETAIL_HEIGHT, DETAIL_GAP = 110, 44
"""Pixels from one panel to the next where there are many, and of these between the two."""


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare a metric with."""

    key: str
    value: float
    label: str
    color: str = GREY


@dataclass(frozen=True)
class Panel:
    """One metric of a stack of curves."""

    key: str
    title: str
    explanation: str
    """What it is and its unit, in a few words."""
    color: str = GREY
    weight: float = 1.0
    """Height relative to the other panels."""
    digits: int = 2
    percent: bool = False
    std: str = ""
    """Metric of the standard deviation, drawn as a light band around the curve."""
    held_out: str = ""
    """The same metric on held-out data, drawn as dots."""
    span: tuple[float | None, float | None] = (None, None)
    """Ends of the y axis that are fixed."""
    reach: float | None = None
    """The y axis reaches at least so far: a first point of 1e-7 nats is no curve."""

    @property
    def number(self) -> str:
        """Plotly's format of a value."""
        return ".0%" if self.percent else f".{self.digits}f"

    def label(self, value: float) -> str:
        """The value as it is written at the end of the curve, after some space."""
        space = "\u2003" if self.held_out else "\u2002"  # where a dot may stand at the end
        if self.percent:
            return space + percent(value)
        return space + minus(f"{value:.{self.digits}f}" if abs(value) < LARGE else f"{value:.1e}")


REWARD_PANELS = (
    Panel(
        metrics.LOSS,
        "Loss",
        "−log of the probability of people’s choice",
        span=(0, None),
        held_out=metrics.EVAL_LOSS,
    ),
    Panel(
        metrics.ACCURACY,
        "Accuracy",
        "pairs where it prefers the answer people chose",
        percent=True,
        held_out=metrics.EVAL_ACCURACY,
        span=(0.4, 1.05),
    ),
    Panel(
        metrics.MARGIN,
        "Margin",
        "score of the chosen minus the rejected answer",
        held_out=metrics.EVAL_MARGIN,
        span=(0, None),
        reach=0.1,
    ),
)
DPO_PANELS = (
    Panel(
        metrics.LOSS,
        "Loss",
        "−log of the probability of people’s choice",
        PPO,
        span=(0, None),
        held_out=metrics.EVAL_LOSS,
    ),
    Panel(
        metrics.DPO_ACCURACY,
        "Accuracy",
        "pairs where the chosen answer’s implicit reward is the higher one",
        PPO,
        percent=True,
        held_out=metrics.DPO_EVAL_ACCURACY,
        span=(0.4, 1.05),
    ),
    Panel(
        metrics.DPO_MARGIN,
        "Margin",
        "implicit reward of the chosen minus the rejected answer",
        PPO,
        held_out=metrics.DPO_EVAL_MARGIN,
    ),
)
PPO_PANELS = (
    Panel(
        metrics.SCORE,
        "Score",
        "reward per answer, mean ± std",
        PPO,
        weight=1.7,
        std=metrics.SCORE_STD,
        held_out=metrics.EVAL_SCORE,
    ),
    Panel(metrics.KL, "KL", "distance from the base model, nats per answer", PPO, digits=1, span=(0, None), reach=1.0),
    Panel(metrics.ENTROPY, "Entropy", "randomness of the answers, nats per answer", PPO, digits=1),
    Panel(metrics.MEAN_LENGTH, "Length", "tokens per answer", PPO, digits=0, span=(0, None)),
)
_OPTIMIZER = (
    Panel("grad_norm", "Gradient norm", "how steep the loss is, before it is clipped", GREY),
    Panel("learning_rate", "Learning rate", "size of the steps", GREY, digits=6, span=(0, None)),
)
DETAIL_PANELS = {
    "reward": _OPTIMIZER,
    "dpo": _OPTIMIZER,
    "ppo": (
        Panel(
            "policy/clipfrac_avg",
            "Clip fraction",
            "share of the tokens whose update was cut short",
            digits=3,
            span=(0, None),
            reach=0.1,
        ),
        Panel(
            "val/explained_variance", "Explained variance", "of the rewards, by the critic’s guesses; 1 is all of it"
        ),
        Panel("loss/value_avg", "Value loss", "of the critic’s guesses", span=(0, None)),
        Panel("policy/approxkl_avg", "KL within an update", "nats per token", digits=4, span=(0, None), reach=0.001),
        _OPTIMIZER[0],
        Panel("lr", "Learning rate", "size of the steps", digits=6, span=(0, None)),
    ),
}
"""What else is logged, by the kind of stage: for those who want it."""
PANELS = {"reward": REWARD_PANELS, "dpo": DPO_PANELS, "ppo": PPO_PANELS}
"""The main curves, by the kind of stage."""
_AXES = {metrics.STEP, metrics.EPISODE, "epoch", "time"}
"""What is logged to draw the others over."""
DASHES = ("dash", "dot", "dashdot")
"""Lines of other runs that are laid over a run's curves, in order."""
FRAME_METRICS = (metrics.LABEL_CEILING, metrics.AGREEMENT, metrics.SCORE, metrics.EVAL_LOSS, metrics.EVAL_SCORE)
"""Metrics whose first value adds a line or a key to a figure, not only a point."""


def reward_curves(rows: list[dict], total_steps: int | None = None, height: int = 420) -> go.Figure:
    """A reward run's logged rows -> loss, accuracy and margin over the steps."""
    levels = [
        Level(metrics.LOSS, LN2, "chance, ln 2"),
        Level(metrics.ACCURACY, 0.5, "chance, 50 %"),
        *_label_ceiling(metrics.ACCURACY, rows),
    ]
    return curves(REWARD_PANELS, rows, metrics.STEP, "optimizer step", total_steps, levels, height)


def dpo_curves(rows: list[dict], total_steps: int | None = None, height: int = 420) -> go.Figure:
    """A DPO run's logged rows -> loss, accuracy and margin of the implicit rewards over the steps."""
    levels = [
        Level(metrics.LOSS, LN2, "start: the base model, ln 2", BASE),
        Level(metrics.DPO_ACCURACY, 0.5, "chance, 50 %"),
        *_label_ceiling(metrics.DPO_ACCURACY, rows),
    ]
    return curves(DPO_PANELS, rows, metrics.STEP, "optimizer step", total_steps, levels, height)


def _label_ceiling(accuracy: str, rows: list[dict]) -> list[Level]:
    """What bounds an accuracy on noisy labels, where that is known: the noise itself, or how far people agree."""
    names = {metrics.LABEL_CEILING: "ceiling from label noise", metrics.AGREEMENT: "two people choose alike"}
    found = {name: value for key, name in names.items() if (value := latest(rows, key)) is not None}
    return [Level(accuracy, value, f"{name}, {percent(value)}") for name, value in found.items()]


def ppo_curves(rows: list[dict], total_episodes: int | None = None, height: int = 420) -> go.Figure:
    """A PPO run's logged rows -> score, KL, entropy and length over the episodes."""
    start = next((row[metrics.SCORE] for row in rows if row.get(metrics.SCORE) is not None), None)
    levels = [] if start is None else [Level(metrics.SCORE, start, "start: the base model", BASE)]
    return curves(PPO_PANELS, rows, metrics.EPISODE, EPISODES, total_episodes, levels, height)


def reward_panels(rows: list[dict], named: Sequence[tuple[str, float]]) -> list[Panel]:
    """A panel for each of the rewards that add up to PPO's score; none where there is only one.

    Args:
        rows: PPO's logged rows.
        named: what each reward is called, and its weight, in their order.
    """
    rewards = next((found for row in rows if (found := metrics.rewards_of(row))), {})
    panels = []
    for key, (name, weight) in zip(rewards.values(), named, strict=False):
        title = plain(name if len(name) <= LONGEST_TITLE else f"{name[:LONGEST_TITLE]}…")
        counts = "" if weight == 1 else f"; counts × {minus(f'{weight:g}')}"
        std = key.removesuffix("mean") + "std"
        panels.append(Panel(key, title, f"reward per answer, mean ± std{counts}", PPO, std=std))
    return panels if len(panels) > 1 else []


def latest(rows: list[dict], key: str) -> float | None:
    """The last value that was logged under this key."""
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def first_and_last(rows: list[dict], key: str) -> tuple[list[float], list[float]]:
    """The values whose means are "at the start" and "now" wherever the page says so; at most half of them each."""
    first = list(islice(_holding(rows, key), 2 * WINDOW))
    count = min(WINDOW, max(1, len(first) // 2))
    last = list(islice(_holding(reversed(rows), key), count))
    return [row[key] for row in first[:count]], [row[key] for row in last[::-1]]


def _holding(rows: Iterable[dict], key: str) -> Iterator[dict]:
    return (row for row in rows if row.get(key) is not None)


def recent(rows: list[dict], key: str) -> float | None:
    """Where a curve stands now: the mean of its last values. Headline and label of the curve say this number."""
    _, last = first_and_last(rows, key)
    return sum(last) / len(last) if last else None


def end(panel: Panel, rows: list[dict], x: str) -> dict[str, list]:
    """The short line at a curve's end, over the values that `recent` averages, with that mean beside it."""
    _, last = first_and_last(rows, panel.key)
    if not last:
        return {"x": [], "y": [], "text": []}
    xs = [row[x] for row in islice(_holding(reversed(rows), panel.key), len(last))]
    mean = sum(last) / len(last)
    return {"x": [xs[-1], xs[0]], "y": [mean, mean], "text": ["", panel.label(mean)]}


def detail_panels(kind: str, rows: list[dict]) -> list[Panel]:
    """What is logged and not among the main curves: first what has an explanation, then all else by its own name."""
    keys: dict[str, object] = {}
    for row in rows:
        keys.update(row)
    named = [panel for panel in DETAIL_PANELS[kind] if any(True for _ in _holding(rows, panel.key))]
    drawn = {key for panel in (*PANELS[kind], *named) for key in (panel.key, panel.std, panel.held_out)}
    others = [key for key in keys if key not in drawn | _AXES and len(list(islice(_holding(rows, key), 2))) > 1]
    held_out = {key: f"eval_{key}" for key in others if f"eval_{key}" in others}
    peaks = {key: max(abs(row[key]) for row in _holding(rows, key)) for key in others}
    return named + [
        Panel(key, plain(key), "", digits=3 if peaks[key] < 100 else 0, held_out=held_out.get(key, ""))
        for key in others
        if key not in held_out.values()
    ]


def detail_curves(panels: Sequence[Panel], rows: list[dict], x: str) -> go.Figure:
    """The curves of `detail_panels`, one below the other."""
    height = 64 + DETAIL_HEIGHT * len(panels) - DETAIL_GAP
    return curves(panels, rows, x, x, None, [], height, gap=DETAIL_GAP / (height - 64))


def overlay(panels: Sequence[Panel], rows: list[dict], x: str, name: str, dash: str) -> list[go.Scatter]:
    """Another run's curves, to be laid over a figure of the same panels."""
    traces = []
    for number, panel in enumerate(panels, start=1):
        points = thinned(rows, panel.key)
        traces.append(
            go.Scatter(
                x=[row[x] for row in points],
                y=[row[panel.key] for row in points],
                mode="lines",
                line={"width": 1.5, "color": INK, "dash": dash},
                opacity=0.7,
                name=name,
                yaxis="y" if number == 1 else f"y{number}",
                hovertemplate=f"{name}: %{{y:{panel.number}}}<extra></extra>",
                meta={"over": name},
            )
        )
    return traces


def curves(
    panels: Sequence[Panel],
    rows: list[dict],
    x: str,
    x_title: str,
    total: int | None,
    levels: Sequence[Level],
    height: int,
    gap: float = PANEL_GAP,
) -> go.Figure:
    """Curves stacked over one x axis, so that events line up; `total` is where that axis ends."""
    figure = blank(height, right=56, top=24, bottom=40)
    room = (1 - gap * (len(panels) - 1)) / sum(panel.weight for panel in panels)
    top = 1.0
    for number, panel in enumerate(panels, start=1):
        axis = "y" if number == 1 else f"y{number}"
        bottom = max(0.0, top - room * panel.weight)
        figure.add_traces([trace.update(yaxis=axis) for trace in _traces(panel, rows, x)])
        figure.update_layout({f"yaxis{number}": _y_axis(panel, [bottom, top], bool(rows))})
        key = "; ○ held out" if number == 1 and latest(rows, panel.held_out) is not None else ""
        heading(figure, panel.title, panel.explanation + key, top, separator="  ")
        for level in levels:
            if level.key == panel.key:
                _add_level(figure, level, axis)
        top = bottom - gap
    figure.update_xaxes(
        title_text=x_title,
        range=[0, total] if total else None,
        anchor=axis,
        rangemode="tozero",
        nticks=6,
        showticklabels=bool(total or rows),
        # 250,000,000 would be turned and lie on the title; 250M does not.
        tickformat=",d" if (total or 0) < LARGE else "",
        exponentformat="B",
        tickangle=0,
        # Where one points, a line runs through all panels.
        showspikes=True,
        spikemode="across",
        spikesnap="hovered data",
        spikethickness=1,
        spikedash="solid",
        spikecolor=GREY,
        unifiedhovertitle_text=f"{x} %{{x:,d}}",
    )
    return figure.update_layout(dragmode="zoom", hovermode="x unified", hoversubplots="axis")


def projected(panel: Panel, rows: list[dict], x: str, total: int | None) -> go.Figure:
    """One curve without a heading, large enough to be read across a classroom, in whatever room there is for it."""
    figure = blank(DETAIL_HEIGHT, left=68, right=124, top=16, bottom=72)
    figure.add_traces(_traces(panel, rows, x))
    for trace in figure.data:
        trace.update(line_width=2 * (trace.line.width or 0), textfont_size=32)
    large = {"tickfont": {"size": 23}, "title": {"font": {"size": 23}}}
    names = {metrics.STEP: "optimizer step", metrics.EPISODE: "episodes"}
    figure.update_xaxes(large, title_text=names[x], range=[0, total] if total else None, rangemode="tozero", nticks=4)
    figure.update_xaxes(tickformat=",d" if (total or 0) < LARGE else "", exponentformat="B", tickangle=0)
    figure.update_yaxes({**_y_axis(panel, [0, 1], bool(rows)), **large})
    return figure.update_layout(height=None)


def _y_axis(panel: Panel, domain: list[float], numbers: bool) -> dict:
    """An axis; without data its numbers would mean nothing and are left out."""
    low, high = panel.span
    axis = {"domain": domain, "nticks": 4, "showticklabels": numbers, "exponentformat": "power"}
    if panel.percent:
        axis |= percent_ticks(0, 0.8, 0.2)
    if low is not None and high is not None:
        return {**axis, "range": [low, high]}
    if panel.reach is not None:
        axis["autorangeoptions"] = {"include": panel.reach}
    return {**axis, "rangemode": "tozero" if low == 0 else "normal"}


def _add_level(figure: go.Figure, level: Level, axis: str) -> None:
    horizontal(figure, level.value, axis, level.color)
    figure.add_annotation(
        text=level.label,
        x=1,
        xref="x domain",
        y=level.value,
        yref=axis,
        xanchor="right",
        yanchor="bottom",
        font={"size": 11, "color": level.color},
        yshift=-1,
    )


def _traces(panel: Panel, rows: list[dict], x: str) -> list[go.Scatter]:
    """Band, curve, its end with a label, and held-out dots, each with the metrics it draws in `meta`."""
    points = thinned(rows, panel.key)
    xs, ys = [row[x] for row in points], [row[panel.key] for row in points]
    traces = []
    if panel.std:
        # The upper edge fills the space down to the lower one, which must be drawn before it.
        for sign, fill in ((-1, None), (1, "tonexty")):
            traces.append(
                go.Scatter(
                    x=xs,
                    y=[row[panel.key] + sign * (row.get(panel.std) or 0) for row in points],
                    mode="lines",
                    line={"width": 0, "color": panel.color},
                    hoverinfo="skip",
                    fill=fill,
                    fillcolor=PPO_BAND,
                    meta={"x": x, "key": panel.key, "std": panel.std, "sign": sign},
                )
            )
    curve = go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"width": 2, "color": panel.color},
        name=panel.title,
        hovertemplate=f"{panel.title.lower()} %{{y:{panel.number}}}<extra></extra>",
        meta={"x": x, "key": panel.key},
    )
    # Where the curve stands, with its value beside it, instead of a legend.
    label = go.Scatter(
        **end(panel, rows, x),
        mode="lines+text",
        hoverinfo="skip",
        textposition="middle right",
        cliponaxis=False,
        line={"width": 4, "color": panel.color},
        textfont={"color": PPO_INK if panel.color == PPO else panel.color, "size": 13, "weight": 600},
        meta={"x": x, "end": panel.key},
    )
    traces += [curve, label]
    if panel.held_out:
        dots = thinned(rows, panel.held_out)
        traces.append(
            go.Scatter(
                x=[row[x] for row in dots],
                y=[row[panel.held_out] for row in dots],
                mode="markers",
                name="held out",
                marker={"size": 8, "color": PAPER, "line": {"width": 2, "color": INK}},
                cliponaxis=False,
                hovertemplate=f"held-out {panel.title.lower()} %{{y:{panel.number}}}<extra></extra>",
                meta={"x": x, "key": panel.held_out},
            )
        )
    return traces


def thinned(rows: Sequence[dict], key: str) -> list[dict]:
    """The rows that hold this metric, thinned to what a screen can show; the newest one always stays."""
    points = list(_holding(rows, key))
    every = -(-len(points) // MAX_POINTS) or 1
    return points[::-1][::every][::-1]
