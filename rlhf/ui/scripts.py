"""What runs in the browser: the .js files beside this one, Plotly, and the component that draws a figure."""

import json
from pathlib import Path

import gradio as gr
import plotly

from rlhf.figures.style import DARK


PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def script(name: str) -> str:
    """The text of a .js file beside this one."""
    return Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8")


LAB = script("lab").replace("__DARK__", json.dumps(DARK))
# An inline script runs at once; Plotly is fetched once for all components that name it, relative to the page, which a
# proxy may serve under a path.
HEAD = f"<script>{LAB}</script>"
PLOTLY_HEAD = f'{HEAD}<script src="gradio_api/file={PLOTLY_JS.as_posix()}"></script>'


def figure_view(height: int, **kwargs: object) -> gr.HTML:
    """A Plotly figure that follows the page between light and dark; its value is the figure as a dict, or None.

    A click on a point of a trace with `meta["pick"]` is an event `pick` of the document; its detail is the point's
    `customdata`.
    """
    return gr.HTML(
        html_template=f'<div class="plot" style="height:{height}px"></div>',
        js_on_load=script("figure"),
        head=PLOTLY_HEAD,
        apply_default_css=False,
        **kwargs,
    )
