"""What commands print when they are done."""

from typing import TYPE_CHECKING

from rlhf.write.templates import render


if TYPE_CHECKING:
    from rlhf.data.preview import Preview


def _printed(template: str, **values: object) -> str:
    """A text for a terminal, or for the script that reads its output: neither need know the minus sign."""
    return render(template, **values).replace("\N{MINUS SIGN}", "-").rstrip("\n")


def comparison_table(summary: dict) -> str:
    """Every model of a comparison in numbers, and what each shows against the base."""
    return _printed("comparison.txt.j2", **summary)


def demo_table(summary: dict) -> str:
    """The closing table of a demo: the reward model, if the demo trained one or knows its run, and the comparison."""
    return _printed("demo.txt.j2", **summary)


def sweep_table(sweep: dict) -> str:
    """Every point of a sweep, by its distance from the base."""
    return _printed("sweep.txt.j2", **sweep)


def preview_table(preview: "Preview") -> str:
    """A data set in numbers, and its first pairs."""
    return _printed("preview.txt.j2", **vars(preview))
