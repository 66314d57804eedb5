"""Base and PPO model on the same unseen prompts: responses, scores, and what can be concluded from them.

Both models answer with the same temperature and the same random numbers, and one function scores them. All statistics
are paired: what is averaged is the difference on one prompt, what is resampled is the prompt.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.generate import batches_by_length, generate
from rlhf.packed import line_up, logits_at, read, response_places, use_packed_attention
from rlhf.scoring import score_ids


BATCH = 64
RESAMPLES = 10_000
ROUNDING = 1e-4
"""Scores closer than this are equal: the same answer in another batch differs in its last digits."""
COLUMNS = ("prompt", "split", "model", "sample", "response", "score", "gold", "kl", "tokens", "ended")
GoldScorer = Callable[[str, str], float]


@dataclass
class Answers:
    """One model's responses to a list of prompts."""

    rows: list[list[int]]
    """Prompt and response ids, without pads."""
    prompt_lengths: list[int]
    texts: list[str]
    ended: list[bool]

    def tokens(self) -> list[int]:
        """Length of each response in tokens, the end token included."""
        return [len(row) - length for row, length in zip(self.rows, self.prompt_lengths, strict=True)]


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Sample one response a prompt; the same seed gives every model the same random numbers."""
    queries = tokenizer(prompts)["input_ids"]
    answers = Answers([], [len(query) for query in queries], [], [])
    for start in range(0, len(queries), BATCH):
        part = queries[start : start + BATCH]
        generation = generate(
            model,
            part,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_id=tokenizer.eos_token_id,
            generator=torch.Generator().manual_seed(seed * 1_000_003 + start),
        )
        said = generation.lists()
        answers.rows += [query + response for query, response in zip(part, said, strict=True)]
        answers.texts += [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]
        answers.ended += generation.ended.tolist()
        progress(len(part))
    return answers


@torch.no_grad()
def sequence_kl(
    policy: PreTrainedModel, reference: PreTrainedModel, answers: Answers, temperature: float
) -> list[float]:
    """KL(policy || reference) of each response in nats: the exact KL over the vocabulary, summed over tokens."""
    found = [0.0] * len(answers.rows)
    for model in (policy, reference):
        use_packed_attention(model)
    for part in batches_by_length(answers.rows, 1536):
        ids, rows = line_up([answers.rows[i] for i in part], policy.device)
        places, _ = response_places(ids, rows, [answers.prompt_lengths[i] for i in part])
        log_p, log_q = (
            logits_at(model, read(model, ids, rows)[places], temperature).log_softmax(dim=-1)
            for model in (policy, reference)
        )
        token_kl = torch.linalg.vecdot(log_p.exp(), log_p - log_q)
        tokens = [len(answers.rows[i]) - answers.prompt_lengths[i] for i in part]
        for row, kl in zip(part, token_kl.split(tokens), strict=True):
            found[row] = kl.sum().item()
    return found


def table(
    model: str,
    split: str,
    prompts: list[str],
    answers: Answers,
    scores: torch.Tensor,
    kl: list[float],
    gold: GoldScorer | None,
) -> list[dict]:
    """One row a response, with the columns of `scores.csv`."""
    columns = zip(prompts, answers.texts, scores.tolist(), kl, answers.tokens(), answers.ended, strict=True)
    return [
        {
            "prompt": prompt.strip(),
            "split": split,
            "model": model,
            "sample": 0,
            "response": response,
            "score": score,
            "gold": gold(prompt.strip(), response) if gold else None,
            "kl": nats,
            "tokens": tokens,
            "ended": ended,
        }
        for prompt, response, score, nats, tokens, ended in columns
    ]


def score_answers(reward_model: PreTrainedModel, answers: Answers) -> torch.Tensor:
    """Reward-model scores (n,) of the answers."""
    return score_ids(reward_model, answers.rows)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write `scores.csv`. A cell that a spreadsheet would run as a formula gets a leading apostrophe."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            safe = {
                key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
                for key, value in row.items()
            }
            writer.writerow(safe)


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of per-prompt values with its 95 % percentile interval over resampled prompts."""
    mean = float(values.mean())
    if np.ptp(values) == 0:  # nothing varies, so nothing can be resampled
        return mean, mean, mean
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed), batch=500
    )
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired(base: np.ndarray, ppo: np.ndarray) -> tuple[dict, dict]:
    """Scores on the same prompts (n,), (n,) -> gain {mean, ci_low, ci_high}, win rate {value, ci_low, ci_high}."""
    gain = dict(zip(("mean", "ci_low", "ci_high"), bootstrap(ppo - base), strict=True))
    tied = np.abs(ppo - base) < ROUNDING
    wins = np.where(tied, 0.5, ppo > base)
    return gain, dict(zip(("value", "ci_low", "ci_high"), bootstrap(wins), strict=True))


def distinct_2(texts: list[str]) -> float:
    """Share of the word pairs in all texts together that are different ones (Li et al. 1510.03055)."""
    pairs = [pair for text in texts for pair in zip(text.lower().split(), text.lower().split()[1:], strict=False)]
    return len(set(pairs)) / max(1, len(pairs))


def describe(rows: list[dict], size_mb: float) -> dict[str, float | None]:
    """One model's scores in numbers."""
    scores = np.array([row["score"] for row in rows])
    q1, median, q3 = np.percentile(scores, (25, 50, 75))
    gold = [row["gold"] for row in rows]
    return {
        "n": len(rows),
        "mean": float(scores.mean()),
        "median": float(median),
        "q1": float(q1),
        "q3": float(q3),
        "std": float(scores.std(ddof=1)),
        "mean_length": float(np.mean([row["tokens"] for row in rows])),
        "eos_rate": float(np.mean([row["ended"] for row in rows])),
        "distinct_2": distinct_2([row["response"] for row in rows]),
        "gold_mean": None if None in gold else float(np.mean(gold)),
        "size_mb": size_mb,
    }


def _column(rows: list[dict], model: str, split: str, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows if row["model"] == model and row["split"] == split])


def summarize(rows: list[dict], base_mb: float, ppo_mb: float) -> dict:
    """What `summary.json` says of a comparison; gold entries are None for data without a gold scorer."""

    def of(model: str, split: str) -> list[dict]:
        return [row for row in rows if row["model"] == model and row["split"] == split]

    has_gold = rows[0]["gold"] is not None
    gain, win_rate = paired(_column(rows, "base", "test", "score"), _column(rows, "ppo", "test", "score"))
    summary = {
        "base": describe(of("base", "test"), base_mb),
        "ppo": describe(of("ppo", "test"), ppo_mb),
        "gain": gain,
        "win_rate": win_rate,
        "gold_gain": None,
        "gold_win_rate": None,
        "kl": {"mean": float(_column(rows, "ppo", "test", "kl").mean())},
        "unseen_topics": None,
    }
    if has_gold:
        gold_gain, gold_win_rate = paired(_column(rows, "base", "test", "gold"), _column(rows, "ppo", "test", "gold"))
        summary |= {"gold_gain": gold_gain, "gold_win_rate": gold_win_rate}
    if has_gold and of("base", "unseen"):
        seen_gain, seen_wins = paired(_column(rows, "base", "unseen", "gold"), _column(rows, "ppo", "unseen", "gold"))
        summary["unseen_topics"] = {
            "n": len(of("base", "unseen")),
            "gold_gain": seen_gain,
            "gold_win_rate": seen_wins,
            "base_gold_mean": float(_column(rows, "base", "unseen", "gold").mean()),
            "ppo_gold_mean": float(_column(rows, "ppo", "unseen", "gold").mean()),
        }
    return summary
