"""Numbers in, Plotly figure out; the page and the report draw with these and nothing else.

A figure is written in the colours of the light page. The page swaps them for their dark twins (`ui/live.py`), so every
colour here must be one of the constants below. A live figure is built once and then grows in the browser: each of its
traces says in `meta` which metric it draws, and the browser appends that metric's new points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go


BASE = "#0072B2"
PPO = "#D55E00"
PPO_INK = "#B04C00"
"""For words: the orange itself is too light to read on white."""
GOLD = "#009E73"
GREY = "#5B6470"
INK = "#1F2328"
GRID = "#E4E7EB"
PAPER = "#FFFFFF"
PPO_BAND = "rgba(213,94,0,0.14)"
CLEAR = "rgba(0,0,0,0)"

FONT = "Plex, ui-sans-serif, system-ui, sans-serif"
LN2 = 0.6931
LEFT = 44
"""Pixels for the numbers on the y axes; the panels' titles begin at the figure's edge."""
GAP = "\u2002"
"""Between the end of a curve and its value."""
MAX_POINTS = 800
"""Points of a curve when a figure is built; a longer history is thinned to every n-th point."""


def minus(text: str) -> str:
    """Numbers as they are printed: with a minus sign, not a hyphen."""
    return text.replace("-", "−")


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare a curve with."""

    key: str
    value: float
    label: str
    color: str = GREY


@dataclass(frozen=True)
class Panel:
    """One curve of a stack."""

    key: str
    title: str
    gloss: str
    """What it is and its unit, in a few words."""
    color: str = GREY
    weight: float = 1.0
    """Height beside the others."""
    digits: int = 2
    percent: bool = False
    band: str = ""
    """Metric of the spread that is drawn as a light band around the curve."""
    marks: str = ""
    """Metric of the same kind on held-out data, drawn as dots."""
    span: tuple[float | None, float | None] = (None, None)
    """Ends of the y axis that are fixed."""

    @property
    def number(self) -> str:
        """How the axis and the hover write a value, in Plotly's format."""
        return ".0%" if self.percent else f".{self.digits}f"

    def words(self, value: float) -> str:
        """The value as it is written at the end of the curve."""
        return f"{100 * value:.0f} %" if self.percent else minus(f"{value:.{self.digits}f}")


REWARD_PANELS = (
    Panel("loss", "Loss", "−log of the preferred answer's chance; ○ held out", span=(0, None), marks="eval_loss"),
    Panel(
        "accuracy",
        "Accuracy",
        "pairs in which it prefers what people chose",
        percent=True,
        marks="eval_accuracy",
        span=(0.4, 1.0),
    ),
    Panel("margin", "Margin", "score of the chosen answer minus the rejected", marks="eval_margin", span=(0, None)),
)
PPO_PANELS = (
    Panel(
        "objective/scores_raw", "Score", "reward model's mark, mean and spread", PPO, 1.7, band="objective/scores_std"
    ),
    Panel("objective/kl", "KL", "distance from the base model, nats an answer", PPO, digits=1, span=(0, None)),
    Panel("objective/entropy", "Entropy", "how undecided its words are, nats an answer", PPO, digits=1),
    Panel("completions/mean_length", "Length", "tokens an answer", PPO, digits=0, span=(0, None)),
)


def reward_curves(rows: list[dict], total_steps: int | None = None, height: int = 420) -> go.Figure:
    """A reward run's logged lines -> loss, accuracy and margin over the steps."""
    levels = [Level("loss", LN2, "guessing, ln 2"), Level("accuracy", 0.5, "guessing, 50 %")]
    ceiling = latest(rows, "label_ceiling")
    if ceiling is not None:
        levels.append(Level("accuracy", ceiling, f"most these noisy labels allow, {100 * ceiling:.0f} %"))
    return curves(REWARD_PANELS, rows, x="step", x_title="step", total=total_steps, levels=levels, height=height)


def ppo_curves(rows: list[dict], total_episodes: int | None = None, height: int = 420) -> go.Figure:
    """A PPO run's logged lines -> score, KL, entropy and length over the episodes."""
    first = next((row["objective/scores_raw"] for row in rows if row.get("objective/scores_raw") is not None), None)
    levels = [] if first is None else [Level("objective/scores_raw", first, "base model, where it began", BASE)]
    return curves(
        PPO_PANELS,
        rows,
        x="episode",
        x_title="episodes (answers written and scored)",
        total=total_episodes,
        levels=levels,
        height=height,
    )


def latest(rows: list[dict], key: str) -> float | None:
    """The last value that was logged under this key."""
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def curves(
    panels: Sequence[Panel],
    rows: list[dict],
    *,
    x: str,
    x_title: str,
    total: int | None,
    levels: Sequence[Level],
    height: int,
) -> go.Figure:
    """Curves stacked over one x axis, so that events line up."""
    figure = go.Figure(layout=blank(height))
    tops = _domains([panel.weight for panel in panels])
    for number, (panel, domain) in enumerate(zip(panels, tops, strict=True), start=1):
        axis = "y" if number == 1 else f"y{number}"
        figure.add_traces([trace.update(yaxis=axis) for trace in _traces(panel, rows, x)])
        figure.update_layout({f"yaxis{number}": _y_axis(panel, domain, bool(rows))})
        heading(figure, panel.title, panel.gloss, domain[1])
        for level in levels:
            if level.key == panel.key:
                _level(figure, level, axis)
    _x_axis(figure, axis, x, x_title, total, numbers=bool(total or rows))
    return figure.update_layout(hovermode="x unified", hoversubplots="axis")


def _x_axis(figure: go.Figure, anchor: str, x: str, title: str, total: int | None, numbers: bool) -> None:
    """The axis that all panels share: as long as the whole run, with a line through all panels where one points."""
    figure.update_xaxes(
        title={"text": title, "standoff": 8, "font": {"color": GREY}},
        range=[0, total] if total else None,
        anchor=anchor,
        gridcolor=CLEAR,
        zeroline=False,
        rangemode="tozero",
        nticks=6,
        showticklabels=numbers,
        tickfont_color=GREY,
        tickformat=",d",
        ticks="outside",
        tickcolor=GRID,
        showline=True,
        linecolor=GRID,
        showspikes=True,
        spikemode="across",
        spikesnap="hovered data",
        spikethickness=1,
        spikedash="solid",
        spikecolor=GREY,
        unifiedhovertitle_text=f"{x} %{{x:,d}}",
    )


def blank(height: int) -> dict:
    """The layout that every figure begins with."""
    return {
        "template": "none",
        "height": height,
        "margin": {"l": LEFT, "r": 56, "t": 24, "b": 40},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": FONT, "size": 12, "color": INK},
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": GRID, "font": {"family": FONT, "size": 12, "color": INK}},
        "showlegend": False,
        # The same value at every update keeps a person's zoom.
        "uirevision": "keep",
        "dragmode": "zoom",
    }


def _domains(weights: list[float], gap: float = 0.085) -> list[list[float]]:
    """Bottom and top of each panel in parts of the figure's height, the first one on top."""
    room, top, domains = 1 - gap * (len(weights) - 1), 1.0, []
    for weight in weights:
        bottom = top - room * weight / sum(weights)
        domains.append([max(0.0, bottom), top])
        top = bottom - gap
    return domains


def _y_axis(panel: Panel, domain: list[float], numbers: bool) -> dict:
    """An axis; without data its numbers would mean nothing and are left out."""
    low, high = panel.span
    axis = {
        "domain": domain,
        "gridcolor": GRID,
        "zeroline": False,
        "nticks": 4,
        "tickfont": {"color": GREY, "size": 11},
        "showticklabels": numbers,
    }
    if panel.percent:
        ticks = [0.0, 0.2, 0.4, 0.6, 0.8]
        axis |= {"tickvals": ticks, "ticktext": [panel.words(tick) for tick in ticks]}
    if low is not None and high is not None:
        return {**axis, "range": [low, high]}
    return {**axis, "rangemode": "tozero" if low == 0 else "normal"}


def heading(figure: go.Figure, title: str, gloss: str, top: float, gap: str = "  ") -> None:
    """What a panel shows, above its upper edge at `top` in parts of the figure's height, from its left edge on."""
    figure.add_annotation(
        text=f"<b>{title}</b>{gap}<span style='color:{GREY}'>{gloss}</span>",
        x=0,
        y=top,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        align="left",
        showarrow=False,
        xshift=-figure.layout.margin.l,
        yshift=2,
        font_size=12.5,
    )


def _level(figure: go.Figure, level: Level, axis: str) -> None:
    figure.add_shape(
        type="line",
        x0=0,
        x1=1,
        xref="x domain",
        y0=level.value,
        y1=level.value,
        yref=axis,
        line={"color": level.color, "width": 1.2, "dash": "dot"},
    )
    figure.add_annotation(
        text=level.label,
        x=1,
        xref="x domain",
        y=level.value,
        yref=axis,
        xanchor="right",
        yanchor="bottom",
        showarrow=False,
        font={"size": 11, "color": level.color},
        yshift=-1,
    )


def _known(rows: list[dict], key: str) -> list[dict]:
    """The rows that hold this metric, thinned to what a screen can show; the newest one always stays."""
    known = [row for row in rows if row.get(key) is not None]
    every = -(-len(known) // MAX_POINTS) or 1
    return known[::-1][::every][::-1]


def _traces(panel: Panel, rows: list[dict], x: str) -> list[go.Scatter]:
    """Band, curve, held-out dots and the end label, each with the metric it draws in `meta`."""
    known = _known(rows, panel.key)
    traces = [_edge(panel, known, x, sign) for sign in (-1, 1)] if panel.band else []
    traces.append(_line(panel, known, x))
    if panel.marks:
        traces.append(_dots(panel, _known(rows, panel.marks), x))
    return [*traces, _end(panel, known[-1:], x)]


def _columns(rows: list[dict], x: str, key: str) -> dict[str, list[float]]:
    return {"x": [row[x] for row in rows], "y": [row[key] for row in rows]}


def _edge(panel: Panel, rows: list[dict], x: str, sign: int) -> go.Scatter:
    """One edge of the band; the upper one fills the space down to the lower, which must be drawn before it."""
    return go.Scatter(
        x=[row[x] for row in rows],
        y=[row[panel.key] + sign * (row.get(panel.band) or 0) for row in rows],
        mode="lines",
        line={"width": 0, "color": panel.color},
        hoverinfo="skip",
        fill="tonexty" if sign == 1 else None,
        fillcolor=PPO_BAND,
        meta={"x": x, "key": panel.key, "spread": panel.band, "sign": sign},
    )


def _line(panel: Panel, rows: list[dict], x: str) -> go.Scatter:
    return go.Scatter(
        **_columns(rows, x, panel.key),
        mode="lines",
        line={"width": 2, "color": panel.color},
        name=panel.title,
        hovertemplate=f"{panel.title.lower()} %{{y:{panel.number}}}<extra></extra>",
        meta={"x": x, "key": panel.key},
    )


def _dots(panel: Panel, rows: list[dict], x: str) -> go.Scatter:
    return go.Scatter(
        **_columns(rows, x, panel.marks),
        mode="markers",
        name="held out",
        marker={"size": 8, "color": PAPER, "line": {"width": 2, "color": INK}},
        cliponaxis=False,
        hovertemplate=f"held-out {panel.title.lower()} %{{y:{panel.number}}}<extra></extra>",
        meta={"x": x, "key": panel.marks},
    )


def _end(panel: Panel, last: list[dict], x: str) -> go.Scatter:
    """The newest point with its value beside it: the label that a legend would be too far away for."""
    return go.Scatter(
        **_columns(last, x, panel.key),
        text=[GAP + panel.words(row[panel.key]) for row in last],
        mode="markers+text",
        hoverinfo="skip",
        textposition="middle right",
        cliponaxis=False,
        marker={"size": 6, "color": panel.color},
        textfont={"color": PPO_INK if panel.color == PPO else panel.color, "size": 13, "weight": 600},
        meta={"x": x, "end": panel.key, "digits": panel.digits, "percent": panel.percent},
    )


def distributions(
    base: Sequence[float], ppo: Sequence[float], name: str, height: int = 400, other: str = "PPO"
) -> go.Figure:
    """Scores of two models' answers -> a boxplot over a histogram on shared bins, averages marked."""
    figure = go.Figure(layout=blank(height))
    edges = np.histogram_bin_edges(np.concatenate([base, ppo]), bins=24)
    for label, values, color in (("base", base, BASE), (other, ppo, PPO)):
        _box(figure, label, values, color)
        _histogram(figure, label, values, color, edges)
    means = (other, float(np.mean(ppo)), PPO, PPO_INK), ("base", float(np.mean(base)), BASE, BASE)
    _averages(figure, means, middle=float(edges[0] + edges[-1]) / 2)
    figure.update_xaxes(
        title={"text": name, "standoff": 8},
        anchor="y2",
        gridcolor=GRID,
        zeroline=False,
        tickfont_color=GREY,
        title_font_color=GREY,
        showline=True,
        linecolor=GRID,
    )
    return figure.update_layout(
        margin={"l": 52, "r": 16, "t": 42, "b": 44},
        barmode="overlay",
        bargap=0,
        hovermode="closest",
        yaxis={
            "domain": [0.66, 0.98],
            "fixedrange": True,
            "tickfont": {"size": 13},
            "autorange": "reversed",
            "automargin": True,
        },
        yaxis2={
            "domain": [0, 0.58],
            "gridcolor": GRID,
            "zeroline": False,
            "fixedrange": True,
            "nticks": 5,
            "title": {"text": "answers", "standoff": 6},
            "tickfont_color": GREY,
            "title_font_color": GREY,
        },
    )


def _box(figure: go.Figure, label: str, values: Sequence[float], color: str) -> None:
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


def _histogram(figure: go.Figure, label: str, values: Sequence[float], color: str, edges: np.ndarray) -> None:
    counts, _ = np.histogram(values, edges)
    spans = [f"{low:.2f} to {high:.2f}" for low, high in zip(edges, edges[1:], strict=False)]
    figure.add_bar(
        x=((edges[:-1] + edges[1:]) / 2).tolist(),
        y=counts.tolist(),
        width=float(edges[1] - edges[0]),
        yaxis="y2",
        marker={"color": color, "opacity": 0.55, "line": {"width": 0}},
        name=label,
        customdata=spans,
        hovertemplate=f"%{{y}} of {len(values)} {label} answers score %{{customdata}}<extra></extra>",
    )


def _averages(figure: go.Figure, means: tuple, middle: float) -> None:
    """A line at each average through both parts; the labels stand one above the other and lean to the middle."""
    for row, (label, mean, color, ink) in enumerate(means):
        figure.add_shape(
            type="line", x0=mean, x1=mean, y0=0, y1=1, yref="paper", line={"color": color, "width": 1.5, "dash": "dot"}
        )
        figure.add_annotation(
            text=minus(f"<b>{label} average {mean:.2f}</b>"),
            x=mean,
            y=1,
            yref="paper",
            showarrow=False,
            yanchor="bottom",
            xanchor="left" if mean < middle else "right",
            xshift=-4 if mean < middle else 4,
            yshift=18 * row,
            font={"color": ink, "size": 13},
        )
