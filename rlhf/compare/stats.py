"""Statistics of a comparison and of a reward model, as functions of arrays.

Comparisons of two models are paired: both answered the same prompts, so the differences per prompt are averaged and
the prompts are resampled. The wide spread between prompts cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats


RESAMPLES = 10_000
BATCH = 500
"""Resamples drawn at once; more take more memory and are no faster."""
ROUNDING = 1e-4
"""Scores closer than this count as equal: the same answer in another batch differs by rounding."""
POWER = 2.8
"""A gain of so many standard errors is detected with 80 % power at the 5 % level: 1.96 + 0.84."""
CHANCE_LOSS = math.log(2)
"""Loss, in nats per pair, of a reward model that gives both answers of every pair probability one half."""
SCALES = (1e-3, 1e3)
"""Range in which the best scale of a reward model's margins is searched."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers under their names in `summary.json`."""
        return {"value": self.value, "ci_low": self.low, "ci_high": self.high}


def bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of per-prompt values (n,) with its percentile bootstrap interval over prompts (Efron 1979)."""
    mean = float(np.mean(values))
    if np.ptp(values) == 0:  # so are all resamples
        return Interval(mean, mean, mean)
    rng = np.random.default_rng(seed)
    result = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng, batch=BATCH)
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def across(results: Sequence[float]) -> Interval:
    """Mean result of two or more independent experiments with Student's t interval."""
    interval = stats.ttest_1samp(results, 0).confidence_interval()
    return Interval(float(np.mean(results)), float(interval.low), float(interval.high))


def accuracy(correct: float, n: int) -> Interval:
    """Share of successes among `n` independent trials, some of them half, with Wilson's interval (1927).

    The interval needs whole successes: half ones are rounded for it, but not in the value.
    """
    interval = stats.binomtest(round(correct), n).proportion_ci(method="wilson")
    return Interval(float(correct / n), float(interval.low), float(interval.high))


def more_to_decide(share: Interval, n: int) -> int | None:
    """How many more votes would tell a share of `n` votes from one half; 0 if these do, None if it is one half.

    These do if an exact binomial test says so at the 5 % level. Such a test has 80 % power for a share p with about
    n = (POWER / (2p - 1))^2 votes, since a vote's standard deviation is at most one half. That takes the true share to
    be the one seen so far, and the votes to be independent, which several by one person are not; and whoever looks
    after every vote, and stops once it is decided, errs more often than in 5 %.
    """
    if stats.binomtest(round(share.value * n), n).pvalue < 0.05:
        return 0
    return None if share.value == 0.5 else max(1, math.ceil((POWER / (2 * share.value - 1)) ** 2) - n)


# ---------------------------------------------------------------------------------------------------------------------
# Two models on the same prompts


@dataclass(frozen=True)
class Paired:
    """Two models on the same prompts; gains are in units of the score."""

    gain: Interval
    """Mean over prompts of the other model's mean score minus the base model's."""
    p: float
    """Two-sided p-value of the gain by a permutation test that flips the signs of the prompts' differences."""
    win_rate: Interval
    """Probability that an answer of the other model beats one of the base on the same prompt; a tie counts half."""
    detectable: float
    """Smallest detectable gain on this many prompts (80 % power at the 5 % level)."""
    n: int
    """Prompts."""


def paired(base: np.ndarray, other: np.ndarray) -> Paired:
    """Compare scores (n, k) and (n, m) of k and m samples per prompt on the same n prompts; (n,) is one sample each.

    Below 14 prompts the permutation test is exact, over all patterns of signs; above, it draws `RESAMPLES` of them.
    """
    base, other = (np.asarray(scores, float).reshape(len(scores), -1) for scores in (base, other))
    gains = other.mean(axis=1) - base.mean(axis=1)  # (n,)
    gains[np.abs(gains) < ROUNDING] = 0  # rounding errors of one sign would look significant
    margins = other[:, None, :] - base[:, :, None]  # (n, k, m), each sample against each
    return Paired(
        gain=bootstrap(gains),
        p=_sign_flip_p(gains),
        win_rate=bootstrap(_credit(margins).mean(axis=(1, 2))),
        detectable=float(POWER * gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.inf,
        n=len(gains),
    )


def _sign_flip_p(gains: np.ndarray) -> float:
    if len(gains) == 1:  # both signs give a mean of the same size
        return 1.0
    rng = np.random.default_rng(0)
    result = stats.permutation_test(
        (gains,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, batch=BATCH, rng=rng
    )
    return float(result.pvalue)


def _credit(margins: np.ndarray) -> np.ndarray:
    """1 for a win, 0 for a loss, one half for a tie."""
    return np.where(np.abs(margins) < ROUNDING, 0.5, margins > 0)


def _quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Index of each value's quantile bin (n,). Equal values share a bin, so bins may differ in size."""
    inner_edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(inner_edges, values, side="right")


# ---------------------------------------------------------------------------------------------------------------------
# Length-controlled gain


@dataclass(frozen=True)
class LengthMatched:
    """The gain between responses of similar length (after Singhal et al. 2310.03716)."""

    gain: float | None
    """Length-controlled gain: the mean over bins of length; None where the two models share no bin."""
    explained: float | None
    """Share of the plain gain that length explains; None without a length-controlled or a plain gain."""
    correlation: float | None
    """Spearman correlation of length and score over the responses of both models; None where one is constant."""


def length_matched(
    base_scores: np.ndarray,
    base_lengths: np.ndarray,
    other_scores: np.ndarray,
    other_lengths: np.ndarray,
    bins: int = 8,
) -> LengthMatched:
    """Compare scores of responses of similar length.

    The bins are quantiles of the pooled lengths. Bins with responses of both models are weighted by their number of
    responses; the others are left out.

    Args:
        base_scores, base_lengths: (n,) over the base model's responses; lengths in tokens.
        other_scores, other_lengths: (m,) over the other model's.
        bins: at most so many.
    """
    scores = np.concatenate([base_scores, other_scores])
    lengths = np.concatenate([base_lengths, other_lengths])
    is_other = np.arange(len(scores)) >= len(base_scores)
    labels = _quantile_bins(lengths, bins)
    shared = [
        in_bin
        for in_bin in (labels == label for label in np.unique(labels))
        if is_other[in_bin].any() and not is_other[in_bin].all()
    ]
    gains = [scores[in_bin & is_other].mean() - scores[in_bin & ~is_other].mean() for in_bin in shared]
    gain = float(np.average(gains, weights=[in_bin.sum() for in_bin in shared])) if shared else None
    plain = float(np.mean(other_scores) - np.mean(base_scores))
    vary = np.ptp(lengths) > 0 and np.ptp(scores) > 0
    return LengthMatched(
        gain=gain,
        explained=None if gain is None or abs(plain) < ROUNDING else 1 - gain / plain,
        correlation=float(stats.spearmanr(lengths, scores).statistic) if vary else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# KL and over-optimisation


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling in nats, at most (Stiennon et al. 2009.01325, G.3; Beirami et al. 2401.01879)."""
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class Overoptimization:
    """Gold gain R(d) = d (alpha - beta log d) at d = sqrt(KL), KL in nats (Gao, Schulman and Hilton 2210.10760)."""

    alpha: float
    beta: float
    turnover_kl: float | None
    """KL at which the gold score peaks; None if it does not, only beyond twice the largest KL that was measured, or
    before the KL of the largest gain, which contradicts it."""

    def predict(self, kl: np.ndarray) -> np.ndarray:
        """The curve's gold gain at `kl` >= 0, of any shape."""
        d = np.sqrt(kl)
        return self.alpha * d - self.beta * special.xlogy(d, d)  # xlogy is 0 at 0, as the curve is


def fit_overoptimization(kl: np.ndarray, gold: np.ndarray) -> Overoptimization | None:
    """Fit the curve to gold gains (m,) at `kl` (m,) by least squares; None with fewer than three distinct KL > 0.

    Points at KL <= 0 are left out: the curve passes through zero anyway, and a KL estimate may be negative.
    """
    kl, gold = np.asarray(kl, float), np.asarray(gold, float)
    positive = kl > 0
    if len(np.unique(kl[positive])) < 3:
        return None
    d = np.sqrt(kl[positive])
    # The curve is linear in alpha and beta.
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -special.xlogy(d, d)], axis=1), gold[positive])
    turnover = None
    if beta > 0:
        log_turnover = 2 * (alpha / beta - 1)  # of d*^2, from R'(d*) = alpha - beta log d* - beta = 0
        if kl[gold.argmax()] <= math.exp(min(log_turnover, 700.0)) <= 2 * kl.max():
            turnover = math.exp(log_turnover)
    return Overoptimization(float(alpha), float(beta), turnover)


# ---------------------------------------------------------------------------------------------------------------------
# Calibration of a reward model


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs on which the reward model is about equally confident."""

    confidence: float
    """Mean probability of the response that it prefers."""
    correct: float
    """Share of pairs in which that one was chosen; a tie counts half."""
    count: int


@dataclass(frozen=True)
class Calibration:
    """A reward model on held-out pairs (Bradley-Terry); losses in nats per pair, margins in units of the score."""

    n: int
    """Pairs."""
    loss: Interval
    """Mean of -log sigmoid(margin)."""
    below_chance: Interval
    """log 2 minus the loss."""
    told_from_chance: bool
    """Whether the loss is significantly better than chance: the interval of `below_chance` is above zero."""
    accuracy: Interval
    """Share of pairs with a positive margin; a tie counts half."""
    entropy_of_accuracy: float
    """The lowest loss at this accuracy for a model with the same confidence on every pair."""
    tie_fraction: float
    mean_margin: float
    mean_abs_margin: float
    reliability: list[ReliabilityBin]
    """From the least to the most confident, with about equally many pairs each."""
    ece: float
    """Expected calibration error: mean distance of confidence and accuracy over the bins (Guo et al. 1706.04599)."""
    scale: float
    """Factor on the margins that minimises the loss: above 1 the model is under-confident, below 1 over-confident.

    At either end of `SCALES` there is no optimum: every pair is right, or guessing beats the model.
    """
    scaled_loss: float
    """The loss with the margins multiplied by `scale`."""


def calibration(margins: np.ndarray, bins: int = 10) -> Calibration:
    """Evaluate a reward model by its margins (n,) = score(chosen) - score(rejected) on held-out pairs."""
    margins = np.asarray(margins, float)
    n = len(margins)
    loss = bootstrap(_pair_losses(margins))
    below_chance = Interval(CHANCE_LOSS - loss.value, CHANCE_LOSS - loss.high, CHANCE_LOSS - loss.low)
    wins = _credit(margins).sum()
    share = float(wins / n)
    reliability = _reliability(margins, bins)
    scale = _best_scale(margins)
    return Calibration(
        n=n,
        loss=loss,
        below_chance=below_chance,
        told_from_chance=below_chance.low > 0,
        accuracy=accuracy(wins, n),
        entropy_of_accuracy=float(stats.entropy([share, 1 - share])),
        tie_fraction=float(np.mean(np.abs(margins) < ROUNDING)),
        mean_margin=float(margins.mean()),
        mean_abs_margin=float(np.abs(margins).mean()),
        reliability=reliability,
        ece=sum(b.count * abs(b.confidence - b.correct) for b in reliability) / n,
        scale=scale,
        scaled_loss=float(_pair_losses(scale * margins).mean()),
    )


def _pair_losses(margins: np.ndarray) -> np.ndarray:
    """-log sigmoid(margin), without overflow."""
    return np.logaddexp(0, -margins)


def _reliability(margins: np.ndarray, bins: int) -> list[ReliabilityBin]:
    certainty = np.abs(margins)
    labels = _quantile_bins(certainty, bins)
    reliability = []
    for in_bin in (labels == label for label in np.unique(labels)):
        confidence = float(special.expit(certainty[in_bin]).mean())
        reliability.append(ReliabilityBin(confidence, float(_credit(margins[in_bin]).mean()), int(in_bin.sum())))
    return reliability


def _best_scale(margins: np.ndarray) -> float:
    """Temperature scaling: the factor 1/T on the margins with the lowest mean loss (Guo et al. 1706.04599)."""
    if not margins.any():  # the loss is the same at every scale
        return 1.0
    result = optimize.minimize_scalar(
        lambda log_scale: _pair_losses(math.exp(log_scale) * margins).mean(), bounds=np.log(SCALES), method="bounded"
    )
    return math.exp(result.x)
