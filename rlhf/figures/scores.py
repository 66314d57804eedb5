"""Figures of a comparison and of a reward model: numbers in, Plotly figure out.

The rules of `figures.py` hold here too: the colours are its constants, so that the page can swap them for their dark
twins, and words stand beside what they name. A point that a person may click belongs to a trace with `meta["pick"]`
and begins its `customdata` with the index of the prompt, as the numbers were given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rlhf.compare.stats import Interval, Overoptimization, ReliabilityBin
from rlhf.figures.curves import BASE, CLEAR, GOLD, GREY, GRID, INK, LEFT, PAPER, PPO, PPO_INK, blank, heading, minus


NARROW = 320
"""Pixels between the axes on a phone; labels are kept apart for this width."""
BOLD, PLAIN, LINE, BESIDE = 7.0, 6.2, 15, 9
"""Pixels of a letter's width in bold and not, of a line's height, and from a point to its label."""
SPREAD = 40
"""Pixels that labels of neighbours keep apart: on a wide screen their points lie further from each other."""
EDGE = 44
"""Pixels for the heading above the panels, and for the axis below them."""
HALO = ", ".join([f"0 0 2px {PAPER}"] * 4)
"""Around words that may lie on dots or lines."""
HALVES = ([0.585, 1.0], [0.0, 0.415])
"""Heights of two panels over one x axis, with room for a heading above each."""
BINS, FEWEST = 8, 5
"""Bins of length, and answers that a bin needs for an average that is worth drawing."""
FURTHER = 1.2
"""How far beyond the last point a curve goes on, at most, to show where it turns."""
LABEL = 0.2
"""Height of two lines of words, as a share of a panel's."""
KL_TITLE = "KL from the base model, nats an answer"


# ---------------------------------------------------------------------------------------------------------------------
# What all of them share


def _signed(value: float) -> str:
    return minus(f"{value:+.2f}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _canvas(height: int, left: int = LEFT) -> go.Figure:
    """An empty figure with room for a heading. Dragging does nothing, so that a finger can scroll past."""
    figure = go.Figure(layout=blank(height))
    margin = {"l": left, "r": 16, "t": EDGE, "b": EDGE}
    return figure.update_layout(margin=margin, dragmode=False, hovermode="closest")


def _heading(figure: go.Figure, title: str, gloss: str, top: float = 1.0) -> None:
    """A panel's heading; on two lines where one would be too long for a phone."""
    heading(figure, title, gloss, top, gap="  " if len(title) + len(gloss) < 52 else "<br>")


def _axis(title: str = "", **more: object) -> dict:
    return {
        "title": {"text": title, "standoff": 8, "font": {"color": GREY, "size": 12}},
        "gridcolor": GRID,
        "zeroline": False,
        "fixedrange": True,
        "nticks": 5,
        "tickfont": {"color": GREY, "size": 11},
        **more,
    }


def _floor(title: str, **more: object) -> dict:
    """The axis along the lower edge."""
    return _axis(
        title,
        **{"gridcolor": CLEAR, "showline": True, "linecolor": GRID, "ticks": "outside", "tickcolor": GRID} | more,
    )


def _shares(low: float, high: float, step: float = 0.25) -> dict:
    """Tick marks of a share, written in percent."""
    ticks = np.arange(low, high + step / 2, step).tolist()
    return {"tickvals": ticks, "ticktext": [_percent(tick) for tick in ticks]}


def _around(values: Sequence[float], room: float = 0.08) -> list[float]:
    """An axis that holds the values and zero, with some room at both ends."""
    low, high = min([0.0, *values]), max([0.0, *values])
    pad = room * (high - low) or 1.0
    return [low - pad, high + pad]


def _label(figure: go.Figure, text: str, x: float, y: float, color: str = GREY, **more: object) -> None:
    """Words at a place in the figure."""
    font = {"size": 12, "color": color, "shadow": HALO}
    figure.add_annotation(text=text, x=x, y=y, font=font, **{"align": "left", "showarrow": False} | more)


def _across(figure: go.Figure, y: float, yref: str = "y", color: str = GREY, dash: str = "dot") -> None:
    """A horizontal line through the whole panel."""
    line = {"color": color, "width": 1.2, "dash": dash}
    figure.add_shape(type="line", x0=0, x1=1, xref="x domain", y0=y, y1=y, yref=yref, line=line, layer="below")


# ---------------------------------------------------------------------------------------------------------------------
# One model against the base, prompt by prompt


def differences(gains: Sequence[float], gain: Interval, name: str, other: str, height: int = 300) -> go.Figure:
    """Each prompt's difference (n,) as a dot, from the smallest to the largest, around their average."""
    order = np.argsort(gains, kind="stable").tolist()
    values = [float(gains[index]) for index in order]
    figure = _canvas(height)
    figure.add_scatter(
        x=((np.arange(len(order)) + 0.5) / max(1, len(order))).tolist(),
        y=values,
        customdata=[[index] for index in order],
        mode="markers",
        marker={"size": 6, "opacity": 0.75, "color": [_side(value) for value in values]},
        cliponaxis=False,
        hovertemplate=f"{other} minus base: <b>%{{y:+.2f}}</b><br>{name}, on this prompt<extra></extra>",
        meta={"pick": True},
    )
    _mean_band(figure, gain)
    _across(figure, 0, color=INK, dash="solid")
    # Sorted dots rise, so what is free is the upper left and the lower right: one label to each.
    above = gain.value >= 0
    zero = (
        {"x": 1, "xanchor": "right", "yanchor": "top"} if above else {"x": 0, "xanchor": "left", "yanchor": "bottom"}
    )
    _label(figure, "no difference", y=0, xref="x domain", **zero)
    _heading(figure, f"{other} minus base", f"{name}; each dot is one prompt")
    figure.update_xaxes(_floor("share of prompts, sorted by their difference", range=[-0.005, 1.005], **_shares(0, 1)))
    # Room for the two lines that say the average, beyond the end of its interval.
    shown = [0.0, *values, gain.low, gain.high]
    lines = LABEL * (max(shown) - min(shown))
    beyond = gain.high + lines if above else gain.low - lines
    return figure.update_yaxes(_axis(range=_around([*shown, beyond])))


def _side(value: float) -> str:
    """The colour of the model that a difference speaks for."""
    return PPO if value > 0 else BASE if value < 0 else GREY


def _mean_band(figure: go.Figure, gain: Interval) -> None:
    """The average as a line, its interval as a band and both in words."""
    color, above = _side(gain.value), gain.value >= 0
    band = {"fillcolor": color, "opacity": 0.18, "line": {"width": 0}}
    figure.add_shape(type="rect", x0=0, x1=1, xref="x domain", y0=gain.low, y1=gain.high, layer="below", **band)
    _across(figure, gain.value, color=color, dash="solid")
    _label(
        figure,
        f"<b>average {_signed(gain.value)}</b><br>95 % interval {_signed(gain.low)} to {_signed(gain.high)}",
        color=PPO_INK if color == PPO else color,
        x=0 if above else 1,
        xref="x domain",
        xanchor="left" if above else "right",
        y=gain.high if above else gain.low,
        yanchor="bottom" if above else "top",
        align="left" if above else "right",
    )


def length_scatter(
    base_tokens: Sequence[int],
    base_scores: Sequence[float],
    other_tokens: Sequence[int],
    other_scores: Sequence[float],
    name: str,
    other: str,
    height: int = 300,
) -> go.Figure:
    """Score against length, a dot an answer: base (n,), (n,) and other (m,), (m,), with the average at each length."""
    figure = _canvas(height)
    sides = (("base", base_tokens, base_scores, BASE), (other, other_tokens, other_scores, PPO))
    for label, tokens, scores, color in sides:
        figure.add_scatter(
            x=[int(count) for count in tokens],
            y=[float(score) for score in scores],
            customdata=[[index, label] for index in range(len(tokens))],
            mode="markers",
            name=label,
            marker={"size": 6, "opacity": 0.35, "color": color, "symbol": "circle" if color == BASE else "diamond"},
            hovertemplate=f"<b>{label}</b>: %{{x}} tokens<br>{name}: %{{y:.2f}}<extra></extra>",
            meta={"pick": True},
        )
    # The same bins for both, so that one line above the other means a higher score at like length.
    pooled = [*base_tokens, *other_tokens]
    edges = np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1]) if pooled else np.zeros(0)
    for label, tokens, scores, color in sides:
        figure.add_trace(_trend(label, _bin_means(tokens, scores, edges), color))
    key = f"<span style='color:{BASE}'>● base</span>  <span style='color:{PPO_INK}'>◆ {other}</span>"
    _heading(figure, "Do longer answers score higher?", f"{key}  line: average by length")
    figure.update_xaxes(_floor("length of the answer, tokens", rangemode="tozero"))
    return figure.update_yaxes(_axis(name))


def _bin_means(tokens: Sequence[int], scores: Sequence[float], edges: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean length, mean score and count of each bin between the edges that holds enough answers."""
    tokens, scores = np.asarray(tokens, float), np.asarray(scores, float)
    labels = np.searchsorted(edges, tokens, side="right")
    bins = [labels == label for label in np.unique(labels)]
    full = [in_bin for in_bin in bins if in_bin.sum() >= FEWEST]
    return [(float(tokens[in_bin].mean()), float(scores[in_bin].mean()), int(in_bin.sum())) for in_bin in full]


def _trend(label: str, means: list[tuple[float, float, int]], color: str) -> go.Scatter:
    symbol = "circle" if color == BASE else "diamond"
    return go.Scatter(
        x=[length for length, _, _ in means],
        y=[score for _, score, _ in means],
        customdata=[count for _, _, count in means],
        mode="lines+markers",
        name=f"{label}, average",
        line={"width": 2, "color": color},
        marker={"size": 8, "color": color, "symbol": symbol, "line": {"width": 1.5, "color": PAPER}},
        hovertemplate=f"<b>{label}</b>: %{{customdata}} answers of about %{{x:.0f}} tokens"
        "<br>score %{y:.2f} on average<extra></extra>",
    )


# ---------------------------------------------------------------------------------------------------------------------
# What was gained, and how far from the base it led


@dataclass(frozen=True)
class FrontierPoint:
    """One way to answer the test prompts."""

    label: str
    kl: float
    """Distance from the base model, nats an answer."""
    score: Interval
    gold: Interval | None
    kind: str
    """One of "base", "model" and "best-of-n"."""


Mark = tuple[FrontierPoint, Interval]
"""A point and what one judge says of it."""
Box = tuple[float, float, float, float]
"""Left, right, lower and upper edge in pixels."""


def frontier(points: Sequence[FrontierPoint], name: str, height: int = 340) -> go.Figure:
    """Score against the distance from the base model; a second panel below has the gold scores, if all have one."""
    figure = _canvas(height)
    both = bool(points) and all(point.gold is not None for point in points)
    domains = HALVES if both else ([0.0, 1.0],)
    right = 1.06 * max((point.kl for point in points), default=0.0) or 1.0
    figure.update_xaxes(_floor(KL_TITLE, range=[0, right], anchor="y2" if both else "y"))
    _heading(figure, name[:1].upper() + name[1:], "average, bar: 95 % interval")
    colors = {"best-of-n": GREY, "base": BASE, "model": PPO}
    _judged(figure, [(point, point.score) for point in points], "y", domains[0], colors)
    if both:
        _heading(figure, "Gold score", "by a judge that training never sees", domains[1][1])
        _judged(figure, [(point, point.gold) for point in points], "y2", domains[1], colors | {"model": GOLD})
    return figure


def _judged(figure: go.Figure, marks: list[Mark], axis: str, domain: list[float], colors: dict[str, str]) -> None:
    """One judge's marks in a panel of their own, with labels."""
    ends = [end for _, score in marks for end in (score.low, score.high)] or [0.0, 1.0]
    room = max(ends) - min(ends) or 1.0
    span = [min(ends) - 0.22 * room, max(ends) + 0.12 * room]
    figure.update_layout({f"yaxis{axis[1:]}": _axis(domain=domain, nticks=4, range=span)})
    for kind, color in colors.items():
        found = sorted((mark for mark in marks if mark[0].kind == kind), key=lambda mark: mark[0].kl)
        if found:
            figure.add_trace(_with_bars(found, kind, color).update(yaxis=axis))
        if found and kind == "base":
            _across(figure, found[0][1].value, axis, color)
    # The one at the right edge has the fewest places for its label, so it chooses first.
    marks = sorted(marks, key=lambda mark: -mark[0].kl)
    inks = {"base": BASE, "model": PPO_INK if axis == "y" else INK}
    labels = [([mark], f"<b>{mark[0].label}</b>", inks[mark[0].kind]) for mark in marks if mark[0].kind in inks]
    lined = [mark for mark in marks if mark[0].kind == "best-of-n"]
    labels.append((lined, "best of n from the base:<br>free, no training", GREY))
    _write_beside(figure, labels, marks, axis, span, (domain[1] - domain[0]) * (figure.layout.height - 2 * EDGE))


def _write_beside(
    figure: go.Figure,
    labels: list[tuple[list[Mark], str, str]],
    marks: list[Mark],
    axis: str,
    span: list[float],
    tall: float,
) -> None:
    """Labels beside one of their points, or as near as is free, with a line that leads there.

    What is taken is kept in pixels of a narrow screen; on a wider one everything lies further apart.
    """
    right, up = NARROW / figure.layout.xaxis.range[1], tall / (span[1] - span[0])
    taken = [
        (x - 6, x + 6, up * (score.low - span[0]) - 5, up * (score.high - span[0]) + 5)
        for x, score in ((right * point.kl, score) for point, score in marks)
    ]
    for named, text, color in labels:
        lines = text.replace("<b>", "").replace("</b>", "").split("<br>")
        size = (PLAIN if text == "<br>".join(lines) else BOLD) * max(map(len, lines)), LINE * len(lines)
        for point, score in named:  # where no place is free, hovering over the point still tells
            place = _free_place(right * point.kl, up * (score.value - span[0]), size, taken, tall)
            if place:
                side, lift, box = place
                first, last, *heights = box
                taken.append((first - SPREAD, last + SPREAD, *heights))
                anchor = {"xanchor": "left" if side > 0 else "right", "yanchor": "middle", "yref": axis}
                lead = {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": GREY, "standoff": BESIDE}
                _label(figure, text, point.kl, score.value, color, ax=side * BESIDE, ay=-lift, **lead, **anchor)
                break


def _free_place(
    x: float, y: float, size: tuple[float, float], taken: list[Box], tall: float
) -> tuple[int, float, Box] | None:
    """Side, lift and box of the nearest place beside a point that covers nothing and lies in the panel."""
    for step in sorted(range(-5, 6), key=abs):
        for side in (1, -1):
            first = x + BESIDE if side > 0 else x - BESIDE - size[0]
            bottom = y + LINE * step - size[1] / 2
            last, top = first + size[0], bottom + size[1]
            inside = first >= 0 and last <= NARROW + 10 and bottom >= -3 and top <= tall
            if inside and not any(first < d and c < last and bottom < f and e < top for c, d, e, f in taken):
                return side, LINE * step, (first, last, bottom, top)
    return None


def _with_bars(found: list[Mark], kind: str, color: str) -> go.Scatter:
    """Points of one kind with their intervals; best-of-n is one method at several sizes, so a line joins it."""
    scores = [score for _, score in found]
    is_line = kind == "best-of-n"
    return go.Scatter(
        x=[point.kl for point, _ in found],
        y=[score.value for score in scores],
        error_y={
            "array": [score.high - score.value for score in scores],
            "arrayminus": [score.value - score.low for score in scores],
            "symmetric": False,
            "color": color,
            "thickness": 1.5,
            "width": 0,
        },
        customdata=[[point.label, minus(f"{score.low:.2f} to {score.high:.2f}")] for point, score in found],
        mode="lines+markers" if is_line else "markers",
        name=kind,
        line={"width": 1.2, "color": GREY},
        marker={
            "size": 7 if is_line else 10,
            "symbol": {"model": "diamond"}.get(kind, "circle"),
            "color": PAPER if is_line else color,
            "line": {"width": 1.5 if is_line else 0, "color": color},
        },
        cliponaxis=False,
        hovertemplate="<b>%{customdata[0]}</b><br>%{x:.2f} nats from the base"
        "<br>score %{y:.2f}, 95 % interval %{customdata[1]}<extra></extra>",
    )


def overoptimization(
    kl: Sequence[float],
    proxy: Sequence[float],
    gold: Sequence[float],
    fit: Overoptimization | None,
    labels: Sequence[str],
    height: int = 340,
) -> go.Figure:
    """Gains of checkpoints or runs, each (m,), against their KL: the reward model's, and below it the gold score's."""
    figure = _canvas(height)
    furthest = max([0.0, *kl])
    turn = fit.turnover_kl if fit and fit.turnover_kl is not None and fit.turnover_kl <= FURTHER * furthest else None
    end = max(furthest, turn or 0.0)
    drawn = _curve(figure, fit, end) if fit else []
    for axis, gains, color, symbol in (("y", proxy, PPO, "circle"), ("y2", gold, GOLD, "diamond")):
        figure.add_trace(_gains(kl, gains, labels, color, symbol).update(yaxis=axis))
        _across(figure, 0, axis)
    if turn is not None:
        _turning(figure, turn, turn > end / 2)
    _heading(figure, "Score by the reward model", "gain; training raises it")
    curve = "; line: curve of Gao et al." if fit else ""
    _heading(figure, "Gold score", f"gain; training never sees it{curve}", HALVES[1][1])
    return figure.update_layout(
        xaxis=_floor(KL_TITLE, range=[min([0.0, *kl]), 1.04 * end or 1.0], anchor="y2"),
        yaxis=_axis(domain=HALVES[0], nticks=4, range=_around(proxy, 0.12)),
        yaxis2=_axis(domain=HALVES[1], nticks=4, range=_around([*gold, *drawn], 0.12)),
    )


def _gains(kl: Sequence[float], gains: Sequence[float], labels: Sequence[str], color: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[float(distance) for distance in kl],
        y=[float(gain) for gain in gains],
        text=list(labels),
        mode="markers",
        marker={"size": 8, "color": color, "opacity": 0.85, "symbol": symbol},
        cliponaxis=False,
        hovertemplate="<b>%{text}</b><br>%{x:.2f} nats from the base<br>gain %{y:+.2f}<extra></extra>",
    )


def _curve(figure: go.Figure, fit: Overoptimization, end: float) -> list[float]:
    """The fitted curve on the gold panel and its heights; its points lie closer where it bends most, at the start."""
    x = end * np.linspace(0, 1, 81) ** 2
    y = fit.predict(x).tolist()
    figure.add_scatter(
        x=x.tolist(),
        y=y,
        yaxis="y2",
        mode="lines",
        name="fit",
        line={"width": 2, "color": GOLD},
        hoverinfo="skip",
    )
    return y


def _turning(figure: go.Figure, kl: float, leftward: bool) -> None:
    """A line through both panels where the gold score begins to fall."""
    line = {"color": INK, "width": 1.2, "dash": "dot"}
    for panel in ("y domain", "y2 domain"):
        figure.add_shape(type="line", x0=kl, x1=kl, y0=0, y1=1, yref=panel, line=line, layer="below")
    words = f"gold turns down at {kl:.1f} nats" if kl < 10 else f"gold turns down at {kl:.0f} nats"
    side = {"xanchor": "right", "xshift": -4} if leftward else {"xanchor": "left", "xshift": 4}
    _label(figure, words, kl, 0.4, INK, yref="y2 domain", yanchor="middle", **side)  # below the curve, highest here


# ---------------------------------------------------------------------------------------------------------------------
# Whether a reward model is as sure as it should be


def reliability(bins: Sequence[ReliabilityBin], ece: float, height: int = 300) -> go.Figure:
    """How often people agreed with the reward model, against how sure it was."""
    figure = _canvas(height, left=50)
    lowest = min([0.5, *(found.correct for found in bins)])
    dots = {"width": 1.2, "color": GREY, "dash": "dot"}
    figure.add_scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line=dots, name="honest", hoverinfo="skip")
    figure.add_scatter(
        x=[found.confidence for found in bins],
        y=[found.correct for found in bins],
        customdata=[found.count for found in bins],
        mode="lines+markers",
        name="reward model",
        line={"width": 1.5, "color": INK},
        marker={
            "size": [found.count for found in bins],
            "sizemode": "area",
            "sizeref": max((found.count for found in bins), default=1) * 2 / 14**2,
            "sizemin": 4,
            "color": INK,
            "opacity": 1,
            "line": {"width": 1.5, "color": PAPER},
        },
        cliponaxis=False,
        hovertemplate="sure to %{x:.0%} about %{customdata} pairs:<br>people agreed on %{y:.0%}<extra></extra>",
    )
    _label(figure, "perfectly honest", 0.7, 0.7, xanchor="right", yanchor="bottom", xshift=-4)
    words = f"<b>calibration error<br>{100 * ece:.1f} percentage points</b>"
    _label(
        figure, words, 1, 0, INK, xref="x domain", yref="y domain", xanchor="right", yanchor="bottom", align="right"
    )
    _heading(figure, "Is it as sure as it should be?", "share of pairs on which people agreed with it")
    figure.update_xaxes(_floor("how sure the reward model was", range=[0.5, 1.005], **_shares(0.5, 1, 0.1)))
    return figure.update_yaxes(_axis(range=[max(0.0, lowest - 0.1), 1.02], **_shares(0, 1, 0.2)))
