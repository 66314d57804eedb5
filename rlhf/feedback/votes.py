"""What people say of two models: how often they prefer one to the other, and whether the rewards agree with them."""

from collections import defaultdict
from dataclasses import dataclass

from rlhf.compare.stats import ROUNDING, Interval, accuracy, more_to_decide
from rlhf.feedback.store import Choice, Pair, Store


@dataclass(frozen=True)
class Matchup:
    """Two models that people have compared; a tie is half a win."""

    models: tuple[str, str]
    """As people call them; the base model comes first."""
    blind: bool
    votes: int
    win_rate: Interval
    """The second model's. One vote between three or four models counts in several matchups: as by Luce's axiom (1959),
    whichever of two models is the best of all is taken to be the better of the two."""
    more: int | None
    """How many more votes would decide it, see `more_to_decide`."""


def _votes(store: Store, run_id: str) -> list[tuple[Pair, Choice]]:
    """Those that were given while this run was shown."""
    voted = ((pair, choice) for pair, choice in store.votes() if choice.choice != "skip")
    return [(pair, choice) for pair, choice in voted if pair.chat["run"] == run_id]


def matchups(store: Store, run_id: str) -> list[Matchup]:
    """The models that were compared while a run was shown; what was retrained is another model."""
    points: dict[tuple, list[float]] = defaultdict(list)
    for pair, choice in _votes(store, run_id):
        sides = [(side["name"] != "base", side["name"], side["who"], side["weights"]) for side in pair.chat["sides"]]
        won = {"a": 0.0, "b": 1.0, "tie": 0.5}[choice.choice]
        points[*sorted(sides), pair.chat["blind"]].append(won if sides == sorted(sides) else 1 - won)
    found = []
    for ((*_, one, _), (*_, other, _), blind), won in points.items():
        win_rate = accuracy(sum(won), len(won))
        found.append(Matchup((one, other), blind, len(won), win_rate, more_to_decide(win_rate, len(won))))
    return found


def points_against(store: Store, other: str) -> dict[str, tuple[float, int]]:
    """What each model earned in the pairs of its answer and another model's that people were asked about.

    That is 1, 0, or one half for a tie, for each judgement; votes in Chat are not among them.

    Returns:
        by model the sum of these points, and of how many judgements.
    """
    points: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for (models, _, choice), number in store.tally(chat=False).items():
        if choice != "skip" and models[0] != models[1] and other in models:
            ours = "ba"[models[1] == other]
            model = models["ab".index(ours)]
            earned, judged = points[model]
            points[model] = earned + number * {ours: 1.0, "tie": 0.5}.get(choice, 0.0), judged + number
    return dict(points)


def win_rate(earned: float, judged: int) -> tuple[Interval, int] | None:
    """The mean of such points, and of how many judgements; None of none.

    The interval takes judgements to be independent, which several by one person are not.
    """
    return (accuracy(earned, judged), judged) if judged else None


def agreement_with_rewards(store: Store, run_id: str) -> tuple[Interval, int] | None:
    """How often the answer that people chose has the higher score, equal ones half, and of how many; ties left out."""
    right = []
    for pair, choice in _votes(store, run_id):
        a, b = (side["score"] for side in pair.chat["sides"])
        if choice.choice != "tie" and None not in (a, b):
            margin = a - b if choice.choice == "a" else b - a
            right.append(0.5 if abs(margin) < ROUNDING else float(margin > 0))
    return (accuracy(sum(right), len(right)), len(right)) if right else None
