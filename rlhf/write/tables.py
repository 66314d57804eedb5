"""What commands print when they are done."""

from typing import TYPE_CHECKING

import numpy as np

from rlhf import metrics
from rlhf.compare.ceiling import Ceiling
from rlhf.write.templates import render


SHOWN_KL = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
"""Nats per answer."""

if TYPE_CHECKING:
    from rlhf.data.preview import Preview


def _printed(template: str, **values: object) -> str:
    """A text for a terminal, or for the script that reads its output: neither need know the minus sign."""
    return render(template, **values).replace("\N{MINUS SIGN}", "-").rstrip("\n")


def ppo_line(update: dict) -> str:
    """The last update of PPO: the score, and what each reward gave where there are several."""
    return _printed("ppo.txt.j2", update=update, rewards=metrics.rewards_of(update), metrics=metrics)


def comparison_table(summary: dict) -> str:
    """Every model of a comparison in numbers, and what each shows against the base."""
    return _printed("comparison.txt.j2", **summary)


def demo_table(summary: dict) -> str:
    """The closing table of a demo: the reward model, if the demo trained one or knows its run, and the comparison."""
    return _printed("demo.txt.j2", **summary)


def ceiling_table(ceiling: dict) -> str:
    """The best possible gains at round values of KL, and how many answers they rest on."""
    found = Ceiling.read(ceiling)
    rows = [
        {
            "kl": kl,
            "score": found.at("score", kl).as_dict(),
            "gold": found.at("gold", kl).as_dict() if found.gold else None,
            "doubling": float(np.interp(kl, found.kl, found.score.doubling)),
            "ess": float(np.interp(kl, found.kl, found.ess)),
        }
        for kl in SHOWN_KL
        if kl <= found.kl[-1]
    ]
    return _printed("ceiling.txt.j2", ceiling=found, rows=rows)


def sweep_table(sweep: dict) -> str:
    """Every point of a sweep, by its distance from the base."""
    return _printed("sweep.txt.j2", **{"ceiling": None, **sweep})


def preview_table(preview: "Preview") -> str:
    """A data set in numbers, and its first pairs."""
    return _printed("preview.txt.j2", **vars(preview))
