"""What choices say about answers that nobody has judged: Bayesian logistic regression on the answers' words and on a
frozen model's states.

Fine-tuned on a hundred choices, a reward model does not find a taste that shows in one answer of fifteen: it has seen
seven preferences. A linear model finds it, also because a tie teaches it which differences do not matter; the base's
states, averaged over the answer, tell it what an answer is like, and the words what it names. So it judges a thousand
pairs, and the reward model learns from these as well.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedModel

from rlhf.models.prompts import PromptReader, TemplateRefused


JUDGING, ASKING = 3.0, 0.01
"""Precision of the weights' prior, where the features have a mean square of one divided by their number. To judge, a
firm one: people err, and of more features than choices a vague one would learn every error by heart. To find out what
to ask, a vague one, which doubts what nobody has judged."""
STEPS = 12
"""Of Newton's method at most; it has converged by then."""
REFITS = 2
"""Towards the lasso, see `Probe.sparse`."""
FOLDS = 10
"""Parts of the choices, each of which the others judge."""
ROWS_AT_ONCE = 64


@dataclass
class Features:
    """What is known of n answers."""

    states: torch.Tensor
    """What the model makes of them (n, 4 * hidden size), see `answer_states`."""
    words: list[set[int]]
    """The tokens that each one has."""

    def __len__(self) -> int:
        return len(self.words)

    def rows(self) -> Iterator[tuple[torch.Tensor, set[int]]]:
        """States and words of each answer."""
        return zip(self.states, self.words, strict=True)

    @classmethod
    def of(cls, rows: Iterable[tuple[torch.Tensor, set[int]]]) -> "Features":
        """The features that have these rows."""
        states, words = zip(*rows, strict=True)
        return cls(torch.stack(states), list(words))


@torch.no_grad()
def answer_states(model: PreTrainedModel, rows: Sequence[list[int]], prompt_lengths: Sequence[int]) -> torch.Tensor:
    """States of a language model, or of its trunk, that reads a prompt and its answer (n, 4 * hidden size).

    They are: the last layer at the last token, its mean over the answer, that of the layer in the middle, and the sum
    of the answer's embeddings, which counts words.
    """
    found = torch.empty(len(rows), 0)
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = by_length[start : start + ROWS_AT_ONCE]
        longest = len(rows[part[-1]])
        ids = torch.tensor([rows[row] + [0] * (longest - len(rows[row])) for row in part], device=model.device)
        place = torch.arange(longest, device=model.device)
        ends = torch.tensor([len(rows[row]) for row in part], device=model.device)[:, None]
        begins = torch.tensor([prompt_lengths[row] for row in part], device=model.device)[:, None]
        states = model.base_model(
            input_ids=ids, attention_mask=(place < ends).long(), output_hidden_states=True, use_cache=False
        ).hidden_states
        answer = ((place >= begins) & (place < ends)).float()[:, :, None]
        first, middle, last = (states[layer].float() for layer in (0, len(states) // 2, -1))
        count = answer.sum(1)
        pooled = [
            last[torch.arange(len(part)), ends[:, 0] - 1],
            (last * answer).sum(1) / count,
            (middle * answer).sum(1) / count,
            (first * answer).sum(1),
        ]
        batch = torch.cat(pooled, dim=1).cpu()
        if not found.shape[1]:
            found = torch.empty(len(rows), batch.shape[1])
        found[part] = batch
    return found


def answer_features(
    model: PreTrainedModel,
    reader: PromptReader,
    prompts: Sequence[str | list[dict]],
    answers: Sequence[str | list[dict]],
) -> Features:
    """Features of answers to prompts; zeros and no words where a chat template refuses to write one.

    Raises:
        TemplateRefused: it refuses all.
    """
    sides = zip(prompts, answers, strict=True)
    messages = [
        [{"role": "assistant", "content": answer}] if isinstance(prompt, list) and isinstance(answer, str) else answer
        for prompt, answer in sides
    ]
    read = reader.pairs(prompts, messages)
    kept = {row: pair for row, pair in enumerate(read) if not isinstance(pair, TemplateRefused)}
    if not kept:
        raise read[0]
    rows, lengths = [pair.ids for pair in kept.values()], [len(pair.prompt_ids) for pair in kept.values()]
    found = answer_states(model, rows, lengths)
    features = Features(torch.zeros(len(read), found.shape[1]), [set() for _ in read])
    features.states[list(kept)] = found
    for row, ids, length in zip(kept, rows, lengths, strict=True):
        features.words[row] = set(ids[length:])
    return features


def standardised(values: torch.Tensor) -> torch.Tensor:
    """Features (n, d) with a mean of zero and a mean square of 1 / d."""
    return (values - values.mean(0)) / (values.std(0) + 1e-6) / math.sqrt(values.shape[1])


def comparable(*groups: Features) -> list[torch.Tensor]:
    """The features of several groups of answers on one scale (n, d), half states and half words.

    A word is one that at least two answers have; the more often some have it and some have not, the more it weighs.
    """
    words = list(chain.from_iterable(group.words for group in groups))
    counts = Counter(chain.from_iterable(words))
    column = {word: number for number, word in enumerate(word for word in counts if counts[word] > 1)}
    has = torch.zeros(len(words), len(column))
    for row, its_words in enumerate(words):
        has[row, [column[word] for word in its_words if word in column]] = 1
    has -= has.mean(0)
    has /= has.square().sum(1).mean().sqrt() + 1e-6
    together = torch.cat([standardised(torch.cat([group.states for group in groups])), has], dim=1)
    return list(together.split([len(group) for group in groups]))


@dataclass
class Probe:
    """The posterior of a taste, as a Gaussian around its mode (Laplace)."""

    weights: torch.Tensor
    """The mode (d,): a feature's worth."""
    prior: float
    """Precision of the prior."""
    learned: torch.Tensor
    """Directions of which the pairs say something, orthonormal (d, k); of all others the prior is what is known."""
    root: torch.Tensor
    """Cholesky factor of the posterior's precision along these (k, k)."""

    @classmethod
    def fit(cls, differences: torch.Tensor, preferred: torch.Tensor, prior: float) -> "Probe":
        """Learn from pairs.

        Args:
            differences: features of the first answer minus those of the second (n, d).
            preferred: 1 where the first was chosen, 0 where the second was, 1/2 for a tie (n,).
            prior: precision of the weights before anything was learned.
        """
        learned = torch.linalg.qr(differences.T).Q  # the mode lies in the span of the pairs, of which there are fewer
        along = differences @ learned
        weights = torch.zeros(along.shape[1])
        for _ in range(STEPS):
            share = torch.sigmoid(along @ weights)
            gradient = along.T @ (share - preferred) + prior * weights
            weight = (share * (1 - share)).clamp_min(1e-4)
            precision = along.T @ (along * weight[:, None]) + prior * torch.eye(len(weights))
            step = torch.linalg.solve(precision, gradient)
            weights = weights - step
            if step.norm() <= 1e-4 * weights.norm():
                break
        return cls(learned @ weights, prior, learned, torch.linalg.cholesky(precision))

    @classmethod
    def sparse(cls, differences: torch.Tensor, preferred: torch.Tensor, prior: float) -> torch.Tensor:
        """Weights (d,) of a taste that is about few things: most are small. The arguments are those of `fit`.

        Each further fit gives every weight the more room the larger it was in the one before; many of these would end
        at the mode of a Laplace prior, the lasso (iteratively reweighted least squares). Where a taste is about one
        word, the other words of what was chosen no longer count; where it is not, little is lost by `REFITS`.
        """
        weights = cls.fit(differences, preferred, prior).weights
        for _ in range(REFITS):
            room = weights.abs().sqrt()
            # No room is left where people contradict each other.
            room *= differences.norm() / ((differences * room).norm() + 1e-12)
            weights = room * cls.fit(differences * room, preferred, prior).weights
        return weights

    def doubt(self, differences: torch.Tensor) -> torch.Tensor:
        """Standard deviation of these pairs' margins (n,): how little is known about which answer is better."""
        along = differences @ self.learned
        within = torch.linalg.solve_triangular(self.root, along.T, upper=False).square().sum(0)
        beside = (differences.square().sum(1) - along.square().sum(1)).clamp_min(0) / self.prior
        return (within + beside).sqrt()


def told_by_others(differences: torch.Tensor, preferred: torch.Tensor, prior: float) -> torch.Tensor:
    """Each pair's margin (n,) in the eyes of a probe that has not learned from it; the arguments are those of `fit`.

    A probe of all the pairs would agree with an error too: there are more features than choices.
    """
    margins = torch.empty(len(differences))
    for fold in torch.randperm(len(differences), generator=torch.Generator().manual_seed(0)).chunk(FOLDS):
        others = torch.ones(len(differences), dtype=torch.bool)
        others[fold] = False
        margins[fold] = differences[fold] @ Probe.sparse(differences[others], preferred[others], prior)
    return margins
