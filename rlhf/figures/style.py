"""What all figures share: colours, the template, headings and reference lines.

Figures are written in the colours of the light page, and every colour is one of the constants below. On the dark page
`ui/lab.js` replaces them by those in `DARK`.
"""

from html import escape

import plotly.graph_objects as go

from rlhf.words import percent


BASE = "#0072B2"
PPO = "#D55E00"
PPO_INK = "#B04C00"
"""PPO's colour for text: the orange itself is too light to read on white."""
GOLD = "#009E73"
GREY = "#5B6470"
INK = "#1F2328"
GRID = "#E4E7EB"
PAPER = "#FFFFFF"
PPO_BAND = "rgba(213,94,0,0.14)"
INK_BAND = "rgba(31,35,40,0.10)"
CLEAR = "rgba(0,0,0,0)"
HALO = f"0 0 2px {PAPER}, 0 0 2px {PAPER}, 0 0 3px {PAPER}"
"""Shadow around text that may lie on dots or lines."""
DARK = {
    BASE: "#58ABE0",
    PPO: "#F28C44",
    PPO_INK: "#F29C5E",
    GOLD: "#35C196",
    GREY: "#A3ACB9",
    INK: "#E8EAED",
    GRID: "#323842",
    PAPER: "#14171C",
    PPO_BAND: "rgba(242,140,68,0.18)",
    INK_BAND: "rgba(232,234,237,0.14)",
    HALO: HALO.replace(PAPER, "#14171C"),
}
"""Each colour on the dark page, where the originals would be too dim to read."""

LEFT = 44
"""Pixels for the numbers of the y axes; headings begin at the figure's left edge."""
FONT = {"family": "Plex, ui-sans-serif, system-ui, sans-serif", "size": 12, "color": INK}
_AXIS = {
    "zeroline": False,
    "tickfont": {"color": GREY, "size": 11},
    "title": {"standoff": 8, "font": {"color": GREY, "size": 12}},
}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": PAPER,
        "plot_bgcolor": CLEAR,
        "font": FONT,
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": GRID, "font": FONT},
        "showlegend": False,
        "legend": {"font": {"size": 11.5, "color": GREY}},
        "xaxis": {
            **_AXIS,
            "gridcolor": CLEAR,
            "showline": True,
            "linecolor": GRID,
            "ticks": "outside",
            "tickcolor": GRID,
        },
        "yaxis": {**_AXIS, "gridcolor": GRID},
        "annotationdefaults": {"showarrow": False, "align": "left", "font": {"color": GREY, "shadow": HALO}},
        "shapedefaults": {"line": {"color": GREY, "width": 1.2, "dash": "dot"}, "layer": "below"},
    }
)


def plain(text: str) -> str:
    """A name that stays text in a figure: Plotly takes tags for markup, links among them, and %{...} for a value."""
    return escape(text, quote=False).replace("{", "&#123;")


def percent_ticks(low: float, high: float, step: float) -> dict:
    """Tick marks of an axis of shares."""
    ticks = [low + step * number for number in range(round((high - low) / step) + 1)]
    return {"tickvals": ticks, "ticktext": [percent(tick) for tick in ticks]}


def blank(height: int, left: int = LEFT, right: int = 16, top: int = 44, bottom: int = 44) -> go.Figure:
    """An empty figure with margins in pixels. Dragging does nothing, so that a finger can scroll past it."""
    margin = {"l": left, "r": right, "t": top, "b": bottom}
    # The same `uirevision` at every update keeps a person's zoom.
    return go.Figure(
        layout={
            "template": TEMPLATE,
            "height": height,
            "margin": margin,
            "dragmode": False,
            "hovermode": "closest",
            "uirevision": "keep",
        }
    )


def heading(figure: go.Figure, title: str, explanation: str, top: float = 1.0, separator: str = "<br>") -> None:
    """What a panel shows, above its upper edge at `top` (a share of the figure's height), from its left edge on."""
    figure.add_annotation(
        text=f"<b>{title}</b>{separator}<span style='fill-opacity:0.74'>{explanation}</span>",
        x=0,
        y=top,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        xshift=-figure.layout.margin.l,
        yshift=5,
        font={"color": INK, "size": 12.5},
    )


def horizontal(figure: go.Figure, y: float, axis: str = "y", color: str = GREY, dash: str = "dot") -> None:
    """A reference line through a whole panel."""
    figure.add_shape(
        type="line", x0=0, x1=1, xref="x domain", y0=y, y1=y, yref=axis, line={"color": color, "dash": dash}
    )


def vertical(figure: go.Figure, x: float, panel: str, color: str = GREY) -> None:
    """A reference line from the bottom to the top of a panel such as "y2 domain", or of the figure, "paper"."""
    figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref=panel, line={"color": color})
