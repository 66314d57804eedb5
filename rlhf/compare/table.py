"""`scores.csv`, one row a response, and what can be concluded from it: `summary.json`.

The file is all that a conclusion rests on. It is read row by row, so only its numbers are in memory, never its texts.
"""

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rlhf.compare import stats
from rlhf.config import BadInput


COLUMNS = (
    "prompt", "split", "model", "sample", "response", "score", "gold", "kl", "tokens", "ended", "base_nll",
)  # fmt: skip
"""base_nll: minus the base model's log-probability of the response at temperature 1, in nats."""
NUMBERS = ("score", "gold", "kl", "tokens", "ended", "base_nll")
FEW_PROMPTS = 20
"""Below this, an interval over prompts says little: the bootstrap is too sure of itself."""
_FORMULA = ("=", "+", "-", "@", "\t")


class Writer:
    """Appends rows to a `scores.csv`. A cell that a spreadsheet would run as a formula gets a leading apostrophe."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", newline="", encoding="utf-8")
        self.csv = csv.DictWriter(self.file, COLUMNS)
        self.csv.writeheader()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, rows: Iterable[dict]) -> None:
        """Append rows; a value of None leaves its cell empty."""
        for row in rows:
            guarded = {
                key: f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
                for key, value in row.items()
            }
            self.csv.writerow(guarded)


def read_rows(path: Path) -> Iterator[dict]:
    """Rows of a `scores.csv` as they were before they were written: numbers as floats, empty cells as None."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name in ("prompt", "response"):
                if row[name].startswith("'") and row[name][1:].startswith(_FORMULA):
                    row[name] = row[name][1:]
            row["ended"] = float(row["ended"] == "True")
            yield row | {name: float(row[name]) if row[name] not in ("", None) else None for name in NUMBERS}


class _Answers:
    """The numbers of one model's answers to the prompts of one split, in the order of the file."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float]] = {name: [] for name in NUMBERS}
        self.prompts: list[str] = []
        self.pairs: set[tuple[str, ...]] = set()
        self.pair_count = 0
        self.different: set[int] = set()

    def add(self, row: dict) -> None:
        for name, values in self.columns.items():
            values.append(math.nan if row[name] is None else row[name])
        if not self.prompts or self.prompts[-1] != row["prompt"]:
            self.prompts.append(row["prompt"])
        words = row["response"].lower().split()
        pairs = list(zip(words, words[1:], strict=False))
        self.pairs.update(pairs)
        self.pair_count += len(pairs)
        self.different.add(hash(row["response"]))

    def column(self, name: str) -> np.ndarray:
        """(prompts, samples)"""
        return np.array(self.columns[name]).reshape(len(self.prompts), -1)

    def has(self, name: str) -> bool:
        """Whether all answers carry this number."""
        return not np.isnan(self.columns[name]).any()

    def describe(self) -> dict[str, float | None]:
        """One model's answers in numbers."""
        scores, tokens = self.column("score"), self.column("tokens")
        q1, median, q3 = np.percentile(scores, (25, 50, 75))
        return {
            "prompts": len(self.prompts),
            "samples": scores.shape[1],
            "mean": float(scores.mean()),
            "median": float(median),
            "q1": float(q1),
            "q3": float(q3),
            "std": float(scores.std(ddof=1)) if scores.size > 1 else 0.0,
            "gold_mean": float(self.column("gold").mean()) if self.has("gold") else None,
            "mean_length": float(tokens.mean()),
            "eos_rate": float(self.column("ended").mean()),
            # Word pairs that differ among all (Li et al. 1510.03055), and answers that do.
            "distinct_2": len(self.pairs) / max(1, self.pair_count),
            "unique": len(self.different) / scores.size,
            "base_perplexity": math.exp(self.column("base_nll").sum() / tokens.sum()),
            "kl": stats.bootstrap(self.column("kl").mean(axis=1)).as_dict(),
        }


def _paired(base: _Answers, other: _Answers, name: str) -> dict:
    found = stats.paired(base.column(name), other.column(name))
    return asdict(found) | {"gain": found.gain.as_dict(), "win_rate": found.win_rate.as_dict()}


def _against(base: _Answers, other: _Answers) -> dict:
    """What two models' answers to the same prompts show: paired by score and by gold, and beside their length."""
    columns = (side.column(name).ravel() for side in (base, other) for name in ("score", "tokens"))
    longer = stats.bootstrap(other.column("tokens").mean(axis=1) - base.column("tokens").mean(axis=1))
    return {
        "score": _paired(base, other, "score"),
        "gold": _paired(base, other, "gold") if base.has("gold") else None,
        "length": {"longer": longer.as_dict(), **asdict(stats.length_matched(*columns))},
    }


def summarize(rows: Iterable[dict], base: str) -> dict:
    """Rows of `scores.csv` -> each split's models in numbers, and each model against the one called `base`.

    {split: {"models": {model: ...}, "against_base": {model: {"score", "gold", "length"}}}}; gold is None where the
    data have no gold scorer.

    Raises:
        BadInput: two models of a split were not asked the same prompts in the same order.
    """
    answers: dict[str, dict[str, _Answers]] = {}
    for row in rows:
        answers.setdefault(row["split"], {}).setdefault(row["model"], _Answers()).add(row)
    for models in answers.values():
        for name, of_model in models.items():
            if base not in models or of_model.prompts != models[base].prompts:
                raise BadInput(f"{name} and {base} did not answer the same prompts, so they cannot be paired.")
    return {
        split: {
            "models": {name: of_model.describe() for name, of_model in models.items()},
            "against_base": {
                name: _against(models[base], of_model) for name, of_model in models.items() if name != base
            },
        }
        for split, models in answers.items()
    }


def over_seeds(against_base: dict, names: list[str]) -> dict:
    """What several trainings that differ in their seed alone gained, and what another seed would gain."""
    found: dict[str, object] = {"models": names}
    for kind in ("score", "gold"):
        gains = [against_base[name][kind]["gain"]["value"] for name in names if against_base[name][kind]]
        found[kind] = stats.across(gains).as_dict() if gains else None
    return found


def cautions(against: dict, name: str, reward: dict | None) -> list[str]:
    """Where a reader of one model's comparison with the base would be fooled, a sentence each.

    Args:
        against: an entry of `against_base`.
        name: the model, as a sentence calls it.
        reward: the report of the reward model that scored, if there is one.
    """
    score, gold, length = against["score"], against["gold"], against["length"]
    found = []
    if reward and not reward["told_from_chance"]:
        found.append("The reward model's loss cannot be told from guessing, so its scores mean nothing.")
    if score["n"] < FEW_PROMPTS:
        found.append(
            f"{score['n']} prompts are too few: only a gain of {score['detectable']:.2f} or more would have shown "
            f"reliably. Compare on {FEW_PROMPTS} prompts at least, better on 100."
        )
    if score["gain"]["ci_low"] <= 0 <= score["gain"]["ci_high"]:
        found.append(f"The interval holds zero: these prompts do not show that {name} scores differently.")
    if length["explained"] is not None and length["explained"] > 0.5 and score["gain"]["ci_low"] > 0:
        found.append(
            f"{100 * min(1.0, length['explained']):.0f} % of the gain in score goes with length: answers of like "
            "length differ less."
        )
    if gold and score["gain"]["ci_low"] > 0 and gold["gain"]["ci_high"] < 0:
        found.append(f"The score rose while the gold score fell: {name} pleases the reward model, not its makers.")
    return found
