"""Figures of a comparison and of a reward model: numbers in, Plotly figure out.

A point that a person may click belongs to a trace with `meta["pick"]`. Its `customdata` is the index of its question,
and where it stands for one answer, also the answer's number among those to that question, and its model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import plotly.graph_objects as go

from rlhf import metrics
from rlhf.compare.ceiling import Ceiling
from rlhf.compare.stats import Interval, Overoptimization, ReliabilityBin
from rlhf.figures.curves import recent, thinned
from rlhf.figures.style import (
    BASE,
    CLEAR,
    GOLD,
    GREY,
    GRID,
    INK,
    INK_BAND,
    PAPER,
    PPO,
    PPO_INK,
    blank,
    heading,
    horizontal,
    percent_ticks,
    plain,
    vertical,
)
from rlhf.words import minus, signed


HALVES = ([0.6, 1.0], [0.0, 0.4])
"""Heights of two panels over one x axis, with room for a heading above each."""
LENGTH_BINS, FEWEST = 8, 5
"""Bins of answer length, and the answers that a bin needs for its mean to be drawn."""
FURTHEST_TURN = 1.2
"""The fitted curve is drawn on to its maximum if that lies within this multiple of the largest KL."""
LABEL_ROOM = 0.2
"""Height of a label of two lines, as a share of a panel's height."""
KL_TITLE = "KL from the base model, nats per answer"
CEILING_NAME = "the most that is possible"
SYMBOLS = (
    "diamond", "square", "triangle-up", "cross", "star", "pentagon", "x", "triangle-down", "hexagon", "bowtie",
    "hourglass", "star-diamond",
)  # fmt: skip
"""Of the trained models in one figure, in order."""


def _around(values: Sequence[float], room: float = 0.08) -> list[float]:
    """The range of an axis that holds the values and zero, with some room at both ends."""
    low, high = min([0.0, *values]), max([0.0, *values])
    pad = room * (high - low) or 1.0
    return [low - pad, high + pad]


def _color_of_sign(value: float) -> str:
    """The colour of the model that a difference favours."""
    return PPO if value > 0 else BASE if value < 0 else GREY


# ---------------------------------------------------------------------------------------------------------------------
# One model against the base


def distributions(
    base_scores: Sequence[float], other_scores: Sequence[float], name: str, other: str, height: int = 400
) -> go.Figure:
    """Scores of two models' answers (n,), (m,) -> box plots over histograms with shared bins, means marked."""
    figure, other = blank(height, left=52, top=42), plain(other)
    edges = np.histogram_bin_edges(np.concatenate([base_scores, other_scores]), bins=24)
    middle = (edges[0] + edges[-1]) / 2
    sides = ((other, other_scores, PPO, PPO_INK), ("base", base_scores, BASE, BASE))
    for label, values, color, _ in sides[::-1]:
        figure.add_box(
            x=list(values),
            y=[label.replace(", ", "<br>")] * len(values),
            orientation="h",
            name=label,
            boxmean=True,
            boxpoints="outliers",
            line={"color": color, "width": 2},
            marker={"size": 4, "opacity": 0.6, "color": color},
            fillcolor=CLEAR,
            width=0.6,
            hoverinfo="x",
        )
        figure.add_bar(
            x=((edges[:-1] + edges[1:]) / 2).tolist(),
            y=np.histogram(values, edges)[0].tolist(),
            width=float(edges[1] - edges[0]),
            yaxis="y2",
            marker={"color": color, "opacity": 0.55, "line": {"width": 0}},
            name=label,
            customdata=[minus(f"{low:.2f} to {high:.2f}") for low, high in zip(edges, edges[1:], strict=False)],
            hovertemplate=f"%{{y}} of {len(values)} {label} answers score %{{customdata}}<extra></extra>",
        )
    # The labels stand one above the other and lean towards the middle.
    for row, (label, values, color, ink) in enumerate(sides):
        mean = float(np.mean(values))
        vertical(figure, mean, "paper", color)
        figure.add_annotation(
            text=minus(f"<b>{label} average {mean:.2f}</b>"),
            x=mean,
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor="left" if mean < middle else "right",
            xshift=-4 if mean < middle else 4,
            yshift=18 * row,
            font={"color": ink, "size": 13},
        )
    return figure.update_layout(
        barmode="overlay",
        bargap=0,
        xaxis={"title": {"text": name}, "anchor": "y2", "gridcolor": GRID},
        yaxis={
            "domain": [0.66, 0.98],
            "fixedrange": True,
            "tickfont": {"size": 13, "color": INK},
            "gridcolor": CLEAR,
            "autorange": "reversed",
            "automargin": True,
        },
        yaxis2={"domain": [0, 0.58], "fixedrange": True, "nticks": 5, "title": {"text": "number of answers"}},
    )


def differences(gains: Sequence[float], gain: Interval, name: str, other: str, height: int = 300) -> go.Figure:
    """Each prompt's difference (n,) as a dot, from the smallest to the largest, around their mean."""
    order = np.argsort(gains, kind="stable").tolist()
    values = [float(gains[index]) for index in order]
    figure, other = blank(height), plain(other)
    figure.add_scatter(
        x=((np.arange(len(order)) + 0.5) / max(1, len(order))).tolist(),
        y=values,
        customdata=[[index] for index in order],
        mode="markers",
        marker={"size": 6, "opacity": 0.75, "color": [_color_of_sign(value) for value in values]},
        cliponaxis=False,
        hovertemplate=f"{other} minus base: <b>%{{y:+.2f}}</b><br>{name}, average of this question<extra></extra>",
        meta={"pick": True},
    )
    color = _color_of_sign(gain.value)
    band = {"y0": gain.low, "y1": gain.high, "fillcolor": color, "opacity": 0.18, "line": {"width": 0}}
    figure.add_shape(type="rect", x0=0, x1=1, xref="x domain", **band)
    horizontal(figure, gain.value, color=color, dash="solid")
    horizontal(figure, 0, color=INK, dash="solid")
    # Sorted dots rise, so the upper left and the lower right are free: one label goes to each.
    above = gain.value >= 0
    upper_left = {"x": 0, "xref": "x domain", "xanchor": "left", "yanchor": "bottom"}
    lower_right = {"x": 1, "xref": "x domain", "xanchor": "right", "yanchor": "top", "align": "right"}
    figure.add_annotation(text="no difference", y=0, **lower_right if above else upper_left)
    figure.add_annotation(
        text=f"<b>average {signed(gain.value)}</b><br>95 % interval {signed(gain.low)} to {signed(gain.high)}",
        y=gain.high if above else gain.low,
        font={"color": PPO_INK if color == PPO else color},
        **upper_left if above else lower_right,
    )
    heading(figure, f"{other} minus base", f"{name}; each dot is one question")
    figure.update_xaxes(
        title_text="share of questions, sorted by difference",
        range=[-0.005, 1.005],
        fixedrange=True,
        **percent_ticks(0, 1, 0.25),
    )
    shown = [0.0, *values, gain.low, gain.high]
    label = LABEL_ROOM * (max(shown) - min(shown))
    label_end = gain.high + label if above else gain.low - label
    return figure.update_yaxes(range=_around([*shown, label_end]), fixedrange=True, nticks=5)


@dataclass(frozen=True)
class Answers:
    """One model's answers, each sequence (n,)."""

    tokens: Sequence[int]
    scores: Sequence[float]
    places: Sequence[tuple[int, int]]
    """The index of the question, and the answer's number among those to it."""


def length_scatter(base: Answers, other: Answers, name: str, other_name: str, height: int = 300) -> go.Figure:
    """Score against length, one dot per answer; with the mean at each length."""
    figure = blank(height)
    sides = (("base", base, BASE, "circle"), (plain(other_name), other, PPO, "diamond"))
    for label, answers, color, symbol in sides:
        figure.add_scatter(
            x=[int(count) for count in answers.tokens],
            y=[float(score) for score in answers.scores],
            customdata=[[*place, label] for place in answers.places],
            mode="markers",
            name=label,
            legendgroup=label,
            showlegend=False,
            marker={"size": 6, "opacity": 0.35, "color": color, "symbol": symbol},
            hovertemplate=f"<b>{label}</b>: %{{x}} tokens<br>{name}: %{{y:.2f}}<extra></extra>",
            meta={"pick": True},
        )
    # Both share their bins, so one line above the other means a higher score at the same length.
    pooled = [*base.tokens, *other.tokens]
    edges = np.quantile(pooled, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1]) if pooled else np.zeros(0)
    for label, answers, color, symbol in sides:
        means = _bin_means(answers.tokens, answers.scores, edges)
        figure.add_scatter(
            x=[length for length, _, _ in means],
            y=[score for _, score, _ in means],
            customdata=[count for _, _, count in means],
            mode="lines+markers",
            name=f"{label}, average",
            legendgroup=label,
            line={"width": 2, "color": color},
            marker={"size": 8, "color": color, "symbol": symbol, "line": {"width": 1.5, "color": PAPER}},
            hovertemplate=f"<b>{label}</b>: %{{customdata}} answers of about %{{x:.0f}} tokens"
            "<br>score %{y:.2f} on average<extra></extra>",
        )
    heading(figure, "Do longer answers score higher?", "each dot is one answer; lines: average at each length")
    figure.update_xaxes(title_text="answer length, tokens", rangemode="tozero", fixedrange=True)
    figure.update_yaxes(title_text=name, fixedrange=True, nticks=5)
    return _with_legend(figure)


def _bin_means(tokens: Sequence[int], scores: Sequence[float], edges: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean length, mean score and count of each bin between the edges that holds enough answers."""
    tokens, scores = np.asarray(tokens, float), np.asarray(scores, float)
    labels = np.searchsorted(edges, tokens, side="right")
    bins = [labels == label for label in np.unique(labels)]
    full = [in_bin for in_bin in bins if in_bin.sum() >= FEWEST]
    return [(float(tokens[in_bin].mean()), float(scores[in_bin].mean()), int(in_bin.sum())) for in_bin in full]


def _with_legend(figure: go.Figure) -> go.Figure:
    """The figure with its legend below the x axis, in as many rows as a narrow screen needs."""
    legend = {"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_xaxes(automargin=True)
    return figure.update_layout(showlegend=True, legend=legend)


# ---------------------------------------------------------------------------------------------------------------------
# Score against the distance from the base model


@dataclass(frozen=True)
class FrontierPoint:
    """One model, or one way to answer the test prompts."""

    label: str
    kl: float
    """Distance from the base model, in nats per answer."""
    score: Interval
    gold: Interval | None
    kind: str
    """One of "base", "model" and "best-of-n"."""


def add_ceiling(
    figure: go.Figure, ceiling: Ceiling, measure: str, axis: str = "y", base: float = 0.0, explained: str = "score"
) -> None:
    """The largest score that is possible at each KL as a line in its 95 % band; dotted where few answers are left.

    Args:
        measure: "score" or "gold".
        base: the base's mean, to which the gains are added.
        explained: what the y axis shows, as the line's label says it.
    """
    curve = getattr(ceiling, measure)
    kl, best, low, high = (np.array(column) for column in (ceiling.kl, curve.value, curve.ci_low, curve.ci_high))
    name = {"name": CEILING_NAME, "legendgroup": CEILING_NAME, "yaxis": axis}
    # The upper edge fills the space down to the lower one, which must be drawn before it.
    for edge, fill in ((low, None), (high, "tonexty")):
        figure.add_scatter(
            x=kl.tolist(),
            y=(base + edge).tolist(),
            mode="lines",
            line={"width": 0, "color": INK},
            fill=fill,
            fillcolor=INK_BAND,
            hoverinfo="skip",
            showlegend=False,
            **name,
        )
    settled = int(np.searchsorted(ceiling.kl, ceiling.settled_kl))
    for part, dash in ((slice(settled + 1), "solid"), (slice(settled, None), "dot")):
        figure.add_scatter(
            x=kl[part].tolist(),
            y=(base + best[part]).tolist(),
            customdata=[
                minus(f"{base + a:.2f} to {base + b:.2f}") for a, b in zip(low[part], high[part], strict=True)
            ],
            mode="lines",
            line={"width": 2, "color": INK, "dash": dash},
            showlegend=axis == "y" and dash == "solid",
            hovertemplate=f"<b>{CEILING_NAME}</b><br>at %{{x:.2f}} nats from the base"
            f"<br>{explained} %{{y:.2f}}, 95 % interval %{{customdata}}<extra></extra>",
            **name,
        )


def frontier(
    points: Sequence[FrontierPoint], name: str, ceiling: Ceiling | None = None, height: int = 340
) -> go.Figure:
    """Score against the distance from the base model; a second panel below has the gold scores, if all have one.

    With a ceiling, the most that is possible is drawn above the base.
    """
    figure = blank(height)
    two_panels = bool(points) and all(point.gold is not None for point in points)
    right = 1.06 * max((point.kl for point in points), default=0.0) or 1.0
    figure.update_xaxes(
        title_text=KL_TITLE, range=[-0.03 * right, right], anchor="y2" if two_panels else "y", fixedrange=True
    )
    figure.update_layout(yaxis={"domain": HALVES[0] if two_panels else [0, 1], "nticks": 4, "fixedrange": True})
    heading(figure, name[:1].upper() + name[1:], "average and 95 % confidence interval")
    bases = [point for point in points if point.kind == "base"]
    if ceiling and bases:
        add_ceiling(figure, ceiling, "score", "y", bases[0].score.value)
        if two_panels and ceiling.gold:
            add_ceiling(figure, ceiling, "gold", "y2", bases[0].gold.value)
    _add_models(figure, points, [point.score for point in points], "y", PPO)
    if two_panels:
        figure.update_layout(yaxis2={"domain": HALVES[1], "nticks": 4, "fixedrange": True})
        heading(figure, "Gold score", "by a scorer that training never sees", HALVES[1][1], separator="  ")
        _add_models(figure, points, [point.gold for point in points], "y2", GOLD)
    return _with_legend(figure)


def _add_models(
    figure: go.Figure, points: Sequence[FrontierPoint], scores: Sequence[Interval], axis: str, color: str
) -> None:
    """One panel of the frontier: a trace per model; best-of-n is one method at several n, so a line joins it."""
    pairs = list(zip(points, scores, strict=True))
    symbols = cycle(SYMBOLS)
    for point, score in pairs:
        if point.kind == "base":
            horizontal(figure, score.value, axis, BASE)
            _add_intervals(figure, point.label, [(point, score)], axis, BASE, {"size": 10, "color": BASE})
        elif point.kind == "model":
            marker = {"size": 10, "color": color, "symbol": next(symbols)}
            _add_intervals(figure, point.label, [(point, score)], axis, color, marker)
    best_of_n = sorted((pair for pair in pairs if pair[0].kind == "best-of-n"), key=lambda pair: pair[0].kl)
    if best_of_n:
        marker = {"size": 7, "color": PAPER, "line": {"width": 1.5, "color": GREY}}
        _add_intervals(figure, "best of n base answers", best_of_n, axis, GREY, marker)


def _add_intervals(
    figure: go.Figure,
    label: str,
    pairs: list[tuple[FrontierPoint, Interval]],
    axis: str,
    color: str,
    marker: dict,
) -> None:
    """Points with their confidence intervals, under one name in the legend that both panels share."""
    is_line, label = pairs[0][0].kind == "best-of-n", plain(label)
    figure.add_scatter(
        x=[point.kl for point, _ in pairs],
        y=[score.value for _, score in pairs],
        error_y={
            "array": [score.high - score.value for _, score in pairs],
            "arrayminus": [score.value - score.low for _, score in pairs],
            "symmetric": False,
            "color": color,
            "thickness": 1.5,
            "width": 0,
        },
        text=[point.label.removeprefix("best of ") for point, _ in pairs] if is_line else None,
        textposition="bottom right",
        textfont={"size": 11, "color": GREY},
        customdata=[
            [plain(point.label), minus(f"{score.low:.2f} to {score.high:.2f}"), "at most " if is_line else ""]
            for point, score in pairs
        ],
        mode="lines+markers+text" if is_line else "markers",
        name=label,
        legendgroup=label,
        showlegend=axis == "y",
        line={"width": 1.2, "color": color},
        marker=marker,
        cliponaxis=False,
        yaxis=axis,
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[2]}%{x:.2f} nats from the base"
        "<br>score %{y:.2f}, 95 % interval %{customdata[1]}<extra></extra>",
    )


def overoptimization(
    kl: Sequence[float],
    proxy: Sequence[float],
    gold: Sequence[float],
    fit: Overoptimization | None,
    labels: Sequence[str],
    ceiling: Ceiling | None = None,
    height: int = 340,
) -> go.Figure:
    """Gains of checkpoints or runs, each (m,), against their KL: the reward model's, and below it the gold score's.

    With a ceiling, the most that is possible is drawn too.
    """
    figure = blank(height)
    furthest = max([0.0, *kl])
    turn = fit.turnover_kl if fit else None
    if turn is not None and turn > FURTHEST_TURN * furthest:  # a guess
        turn = None
    end = max(furthest, turn or 0.0)
    fitted = []
    highest: dict[str, list[float]] = {"score": [], "gold": []}
    for measure, axis in (("score", "y"), ("gold", "y2")):
        if ceiling and getattr(ceiling, measure):
            add_ceiling(figure, ceiling, measure, axis, explained="gain")
            highest[measure] = getattr(ceiling, measure).ci_high[-1:]
    if fit:
        x = end * np.linspace(0, 1, 81) ** 2  # closer where the curve bends most, at the start
        fitted = fit.predict(x).tolist()
        line = {"width": 2, "color": GOLD}
        figure.add_scatter(x=x.tolist(), y=fitted, yaxis="y2", mode="lines", name="fit", line=line, hoverinfo="skip")
    for axis, gains, color, symbol in (("y", proxy, PPO, "circle"), ("y2", gold, GOLD, "diamond")):
        figure.add_scatter(
            x=[float(distance) for distance in kl],
            y=[float(gain) for gain in gains],
            text=list(labels),
            mode="markers",
            marker={"size": 8, "color": color, "opacity": 0.85, "symbol": symbol},
            cliponaxis=False,
            yaxis=axis,
            hovertemplate="<b>%{text}</b><br>%{x:.2f} nats from the base<br>gain %{y:+.2f}<extra></extra>",
        )
        horizontal(figure, 0, axis)
    if turn is not None:
        for panel in ("y domain", "y2 domain"):
            vertical(figure, turn, panel, INK)
        right = turn > end / 2
        figure.add_annotation(
            text=f"gold score turns down at about {turn:.{1 if turn < 10 else 0}f} nats",
            x=turn,
            y=0.3,  # below the curve, which is highest here
            yref="y2 domain",
            xanchor="right" if right else "left",
            xshift=-4 if right else 4,
            font={"color": INK},
        )
    explained = "dark line: the most that is possible" if ceiling else "what PPO maximizes"
    heading(figure, "Score by the reward model", f"gain over the base; {explained}")
    curve = "; line: fit of Gao et al. (2023)" if fit else ""
    heading(figure, "Gold score", f"gain; training never sees it{curve}", HALVES[1][1])
    return figure.update_layout(
        xaxis={
            "title": {"text": KL_TITLE},
            "range": [min([0.0, *kl]), 1.04 * end or 1.0],
            "anchor": "y2",
            "fixedrange": True,
        },
        yaxis={
            "domain": HALVES[0],
            "nticks": 4,
            "range": _around([*proxy, *highest["score"]], 0.12),
            "fixedrange": True,
        },
        yaxis2={
            "domain": HALVES[1],
            "nticks": 4,
            "range": _around([*gold, *fitted, *highest["gold"]], 0.12),
            "fixedrange": True,
        },
    )


def path(rows: Sequence[dict], ceiling: Ceiling, height: int = 300) -> go.Figure:
    """PPO's gain in score over its KL, a dot for each update, from its logged rows; and the most that is possible.

    As in `curves`, each trace names in `meta` the metrics that it draws, and here what is taken from the score.
    """
    figure = blank(height, right=56, top=24, bottom=40)
    add_ceiling(figure, ceiling, "score", explained="gain")
    logged = [row for row in rows if row.get(metrics.SCORE) is not None and row.get(metrics.KL) is not None]
    dots = thinned(logged, metrics.KL)
    kl, gains = [row[metrics.KL] for row in dots], [row[metrics.SCORE] - ceiling.base_score for row in dots]
    of_score = {"x": metrics.KL, "minus": ceiling.base_score}
    figure.add_scatter(
        x=kl,
        y=gains,
        mode="lines+markers",
        name="PPO",
        opacity=0.8,
        line={"width": 0.5, "color": PPO},
        marker={"size": 5, "color": PPO, "opacity": 0.6},
        hovertemplate="<b>an update of PPO</b><br>%{x:.2f} nats from the base<br>gain %{y:.2f}<extra></extra>",
        meta={**of_score, "key": metrics.SCORE},
    )
    figure.add_scatter(
        **path_end(logged, ceiling),
        mode="markers",
        hoverinfo="skip",
        cliponaxis=False,
        marker={"size": 11, "color": PPO, "line": {"width": 2, "color": PAPER}},
        meta={"end": metrics.SCORE},
    )
    heading(figure, "Gain in score", "over the base model’s average", separator="  ")
    figure.update_xaxes(title_text=KL_TITLE, rangemode="tozero")
    return figure.update_yaxes(nticks=5, rangemode="tozero")


def path_end(rows: list[dict], ceiling: Ceiling) -> dict[str, list]:
    """Where PPO stands on its path: the means of the last updates, as at the ends of the curves."""
    kl, score = recent(rows, metrics.KL), recent(rows, metrics.SCORE)
    return {"x": [], "y": []} if kl is None or score is None else {"x": [kl], "y": [score - ceiling.base_score]}


def nats_by_position(by_position: Sequence[float], other: str, height: int = 300) -> go.Figure:
    """KL at each position of the answers, mean over all answers (T,), which adds up to the KL per answer."""
    figure, other = blank(height), plain(other)
    total = sum(by_position)
    figure.add_bar(
        x=list(range(1, len(by_position) + 1)),
        y=list(by_position),
        customdata=(np.cumsum(by_position) / (total or 1.0)).tolist(),
        marker={"color": PPO, "opacity": 0.75, "line": {"width": 0}},
        hovertemplate="token %{x}: %{y:.2f} nats<br>up to here %{customdata:.0%} of all<extra></extra>",
    )
    heading(
        figure, "KL at each token of an answer", f"nats; the bars add up to the {total:.1f} nats per answer of {other}"
    )
    figure.update_xaxes(title_text="position in the answer, tokens", fixedrange=True)
    return figure.update_yaxes(fixedrange=True, nticks=5)


# ---------------------------------------------------------------------------------------------------------------------
# How far a reward model's confidence can be trusted


def reliability(bins: Sequence[ReliabilityBin], ece: float, height: int = 300) -> go.Figure:
    """How often people agreed with the reward model, against its confidence."""
    figure = blank(height, left=50)
    lowest = min([0.5, *(group.correct for group in bins)])
    diagonal = {"width": 1.2, "color": GREY, "dash": "dot"}
    figure.add_scatter(
        x=[0.5, 1], y=[0.5, 1], mode="lines", line=diagonal, name="perfectly calibrated", hoverinfo="skip"
    )
    figure.add_scatter(
        x=[group.confidence for group in bins],
        y=[group.correct for group in bins],
        customdata=[group.count for group in bins],
        mode="lines+markers",
        name="reward model",
        line={"width": 1.5, "color": INK},
        marker={
            "size": [group.count for group in bins],
            "sizemode": "area",
            "sizeref": max((group.count for group in bins), default=1) * 2 / 14**2,
            "sizemin": 4,
            "color": INK,
            "opacity": 1,
            "line": {"width": 1.5, "color": PAPER},
        },
        cliponaxis=False,
        hovertemplate="confidence %{x:.0%} on %{customdata} pairs:<br>people agreed on %{y:.0%}<extra></extra>",
    )
    figure.add_annotation(text="perfectly calibrated", x=0.7, y=0.7, xanchor="right", yanchor="bottom", xshift=-4)
    figure.add_annotation(
        text=f"<b>calibration error<br>{100 * ece:.1f} percentage points</b>",
        x=1,
        y=0,
        xref="x domain",
        yref="y domain",
        xanchor="right",
        yanchor="bottom",
        align="right",
        font={"color": INK},
    )
    heading(figure, "Reliability", "does its confidence match how often people agree?")
    figure.update_xaxes(
        title_text="confidence of the reward model", range=[0.5, 1.005], fixedrange=True, **percent_ticks(0.5, 1, 0.1)
    )
    return figure.update_yaxes(range=[max(0.0, lowest - 0.1), 1.02], fixedrange=True, **percent_ticks(0, 1, 0.2))
