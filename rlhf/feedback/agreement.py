"""How far people agree who were asked about the same pairs: the ceiling of any model that learns from them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import fsum


@dataclass
class Agreement:
    """Of pairs that several people have judged."""

    pairs: int
    judgements: int
    raw: float
    """Share of two people's judgements of one pair that are the same, in the mean over such twos."""
    alpha: float | None
    """Krippendorff's alpha for nominal data: 1 where all agree, 0 where they agree as often as by chance. None where
    all judgements are the same, so that chance has nothing to be told from."""


def agreement(judgements: Mapping[Sequence[str], int]) -> Agreement | None:
    """The agreement within pairs, given as what the judges of a pair chose -> of how many pairs; None if no pair has
    two judges.

    Krippendorff, Content Analysis, 4th ed. (2018), chapter 12: each pair of judgements of a unit with m judgements
    enters the table of coincidences with weight 1 / (m - 1).
    """
    units = {unit: number for unit, number in judgements.items() if len(unit) > 1}
    if not units:
        return None
    same = twos = 0
    weights: dict[tuple[str, str], list[float]] = defaultdict(list)
    for unit, number in units.items():
        chosen = Counter(unit)
        for one, other in product(chosen, repeat=2):
            ways = number * chosen[one] * (chosen[other] - (one == other))
            weights[one, other].append(ways / (len(unit) - 1))
            same, twos = same + ways * (one == other), twos + ways
    coincidences = {both: fsum(added) for both, added in weights.items()}  # the same in whatever order
    totals: dict[str, float] = defaultdict(float)
    for (one, _), count in coincidences.items():
        totals[one] += count
    n = sum(totals.values())
    observed = sum(count for (one, other), count in coincidences.items() if one != other) / n
    expected = sum(totals[one] * totals[other] for one, other in permutations(totals, 2)) / (n * (n - 1))
    judged = sum(len(unit) * number for unit, number in units.items())
    return Agreement(sum(units.values()), judged, same / twos, 1 - observed / expected if expected else None)
