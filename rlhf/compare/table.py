"""`scores.csv`, one row per response, and the statistics computed from it: `summary.json`.

The summary depends on nothing but this file, which is read row by row, so that only numbers are held in memory.
"""

import csv
import math
import re
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
"""With fewer, bootstrap intervals over prompts are too narrow to be trusted."""
BEST_OF = "best-of-"
"""What the names of the baselines begin with that need no training."""
_FORMULA = re.compile(r"'*(?![+-]?[\d.]+$)[=+@\t\r-]")
"""The start of a text that a spreadsheet would run, unless it is a number; or of one that looks guarded already."""
_REWARD = "rewards/"

csv.field_size_limit(2**31 - 1)  # by default a cell of more than 131,072 characters cannot be read back


def reward_column(name: str) -> str:
    """The column of what one of several rewards gave, called as its curve in training."""
    return _REWARD + name


class Writer:
    """Writes a `scores.csv` of the rows' `COLUMNS`, and a column for each of these rewards.

    A text that a spreadsheet would run gets a leading apostrophe. Of a file that is there already, so many bytes are
    kept.
    """

    def __init__(self, path: Path, rewards: Iterable[str] = (), kept: int = 0) -> None:
        self.file = path.open("a", newline="", encoding="utf-8")
        self.file.truncate(kept)
        self.csv = csv.DictWriter(self.file, [*COLUMNS, *map(reward_column, rewards)], extrasaction="ignore")
        if not kept:
            self.csv.writeheader()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def size(self) -> int:
        """Bytes of the file, all of which are written."""
        self.file.flush()
        return self.file.tell()

    def write(self, rows: Iterable[dict]) -> None:
        """Append rows; None leaves a cell empty."""
        for row in rows:
            guarded = {
                key: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
                for key, value in row.items()
            }
            self.csv.writerow(guarded)


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of a `scores.csv` as they were written: numbers as floats, empty cells as None."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name in ("prompt", "response"):
                if row[name].startswith("'") and _FORMULA.match(row[name][1:]):
                    row[name] = row[name][1:]
            row["ended"] = float(row["ended"] == "True")
            numbers = (*NUMBERS, *(name for name in row if name and name.startswith(_REWARD)))
            yield row | {name: float(row[name]) if row[name] not in ("", None) else None for name in numbers}


def _mean(numbers: np.ndarray) -> float | None:
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if known.size else None


class _Rows:
    """One model's rows of one split, in the order of the file, without the texts."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float]] = {name: [] for name in NUMBERS}
        self.prompts: list[str] = []
        self.bigrams: set[tuple[str, str]] = set()
        self.num_bigrams = 0
        self.responses: set[int] = set()

    def add(self, row: dict) -> None:
        rewards = (name for name in row if name.startswith(_REWARD))
        for name in (*NUMBERS, *rewards):
            self.columns.setdefault(name, []).append(math.nan if row[name] is None else row[name])
        if not self.prompts or self.prompts[-1] != row["prompt"]:
            self.prompts.append(row["prompt"])
        words = row["response"].lower().split()
        bigrams = list(zip(words, words[1:], strict=False))
        self.bigrams.update(bigrams)
        self.num_bigrams += len(bigrams)
        self.responses.add(hash(row["response"]))

    def column(self, name: str) -> np.ndarray:
        """One number of all responses, (prompts, samples)."""
        return np.array(self.columns[name]).reshape(len(self.prompts), -1)

    def has(self, name: str) -> bool:
        """Whether all responses have this number."""
        return not np.isnan(self.columns[name]).any()

    def describe(self) -> dict[str, float | None]:
        """Means and spreads, as `summary.json` holds them."""
        scores, tokens = self.column("score"), self.column("tokens")
        q1, median, q3 = np.percentile(scores, (25, 50, 75))
        rewards = [name for name in self.columns if name.startswith(_REWARD)]
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
            # Shares of distinct bigrams (Li et al. 1510.03055) and of distinct responses
            "distinct_2": len(self.bigrams) / max(1, self.num_bigrams),
            "unique": len(self.responses) / scores.size,
            "base_perplexity": math.exp(self.column("base_nll").sum() / tokens.sum()),
            "kl": stats.bootstrap(self.column("kl").mean(axis=1)).as_dict(),
            # Means of what each of several rewards gave, where it had an opinion
            **({"rewards": {name: _mean(self.column(name)) for name in rewards}} if rewards else {}),
        }


def _paired(base: _Rows, other: _Rows, name: str) -> dict:
    result = stats.paired(base.column(name), other.column(name))
    return asdict(result) | {"gain": result.gain.as_dict(), "win_rate": result.win_rate.as_dict()}


def _against(base: _Rows, other: _Rows) -> dict:
    """Two models on the same prompts: paired by score and by gold score, and the gain controlled for length."""
    scores_and_lengths = (rows.column(name).ravel() for rows in (base, other) for name in ("score", "tokens"))
    longer = stats.bootstrap(other.column("tokens").mean(axis=1) - base.column("tokens").mean(axis=1))
    return {
        "score": _paired(base, other, "score"),
        "gold": _paired(base, other, "gold") if base.has("gold") else None,
        "length": {"longer": longer.as_dict(), **asdict(stats.length_matched(*scores_and_lengths))},
    }


def _against_best_of(models: dict[str, _Rows], other: _Rows) -> dict:
    """Win rates, by score and gold score, of one model against each best-of-n: one answer against the best of n."""
    return {
        name: {
            measure: stats.paired(rows.column(measure), other.column(measure)).win_rate.as_dict()
            for measure in ("score", "gold")
            if rows.has(measure)
        }
        for name, rows in models.items()
        if name.startswith(BEST_OF) and rows is not other
    }


def summarize(rows: Iterable[dict], base: str) -> dict:
    """Describe each split's models, and compare each with the one called `base`, from the rows of `scores.csv`.

    Returns:
        {split: {"models": {model: ...}, "against_base": {model: {"score", "gold", "length", "best_of"}}}}, with None
        for gold where the data have no gold scorer.

    Raises:
        BadInput: two models of a split did not answer the same prompts in the same order.
    """
    splits: dict[str, dict[str, _Rows]] = {}
    for row in rows:
        splits.setdefault(row["split"], {}).setdefault(row["model"], _Rows()).add(row)
    for models in splits.values():
        for name, of_model in models.items():
            if base not in models or of_model.prompts != models[base].prompts:
                raise BadInput(f"{name} and {base} did not answer the same prompts, so they cannot be paired.")
    return {
        split: {
            "models": {name: of_model.describe() for name, of_model in models.items()},
            "against_base": {
                name: _against(models[base], of_model) | {"best_of": _against_best_of(models, of_model)}
                for name, of_model in models.items()
                if name != base
            },
        }
        for split, models in splits.items()
    }


def over_seeds(against_base: dict, names: list[str]) -> dict:
    """Mean gain, in score and gold score, of trainings that differ only in their seed, with an interval over seeds."""
    summary: dict[str, object] = {"models": names}
    for measure in ("score", "gold"):
        gains = [against_base[name][measure]["gain"]["value"] for name in names if against_base[name][measure]]
        summary[measure] = stats.across(gains).as_dict() if gains else None
    return summary


def cautions(against: dict, name: str, reward: dict | None) -> list[str]:
    """Warnings for the reader of one model's comparison with the base, one sentence or two each.

    Args:
        against: an entry of `against_base`.
        name: the model's name.
        reward: the report on the reward model that scored, if there is one.
    """
    score, gold, length = against["score"], against["gold"], against["length"]
    warnings = []
    if reward and not reward["told_from_chance"]:
        warnings.append("The reward model's loss is not better than chance, so its scores mean nothing.")
    if score["n"] < FEW_PROMPTS:
        warnings.append(
            f"{score['n']} prompts are too few: only a gain of at least {score['detectable']:.2f} would have been "
            f"detected reliably. Compare on {FEW_PROMPTS} prompts or more, better on 100."
        )
    if score["gain"]["ci_low"] <= 0 <= score["gain"]["ci_high"]:
        warnings.append(
            f"The confidence interval includes zero: these prompts do not show that {name} scores differently from "
            "the base."
        )
    if length["explained"] is not None and length["explained"] > 0.5 and score["gain"]["ci_low"] > 0:
        warnings.append(
            f"{100 * min(1.0, length['explained']):.0f} % of the gain in score is explained by length: the "
            "length-controlled gain is smaller."
        )
    if gold and score["gain"]["ci_low"] > 0 and gold["gain"]["ci_high"] < 0:
        warnings.append(f"Reward hacking: the score of {name} rose while its gold score fell.")
    return warnings
