"""What commands print when they are done."""

from typing import TYPE_CHECKING

from rlhf.write.templates import render


if TYPE_CHECKING:
    from rlhf.data.preview import Preview


def comparison_table(summary: dict) -> str:
    """Every model of a comparison in numbers, and what each shows against the base."""
    return render("comparison.txt.j2", **summary).rstrip("\n")


def demo_table(summary: dict) -> str:
    """The closing table of a demo: the reward model, if the demo trained one or knows its run, and the comparison."""
    return render("demo.txt.j2", **summary).rstrip("\n")


def sweep_table(sweep: dict) -> str:
    """Every point of a sweep, by its distance from the base."""
    return render("sweep.txt.j2", **sweep).rstrip("\n")


def preview_table(preview: "Preview") -> str:
    """A data set in numbers, and its first pairs."""
    return render("preview.txt.j2", **vars(preview)).rstrip("\n")
