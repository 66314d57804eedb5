"""The statistics of a comparison and of a reward model: numbers in, small records out; no model is needed.

Everything that compares two models is paired. Both answered the same prompts, so what is averaged is the difference on
one prompt and what is resampled is the prompt: the spread between prompts, which is wide, cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats


RESAMPLES = 10_000
BATCH = 500
"""Resamples drawn at once; more are no faster and take more memory."""
ROUNDING = 1e-4
"""Scores closer than this are equal: the same answer in another batch differs in its last digits."""
POWER = 2.8
"""Standard errors that a gain must measure to be found with 80 % power at the 5 % level: 1.96 + 0.84."""
CHANCE_LOSS = math.log(2)
"""Pairwise loss, in nats, of a reward model that gives every pair one half."""
SCALES = (1e-3, 1e3)
"""Where the best scale of a reward model's margins is looked for."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def covers(self, x: float) -> bool:
        """Whether `x` is one of the values that the data do not rule out."""
        return self.low <= x <= self.high

    def as_dict(self) -> dict[str, float]:
        """The three numbers under their names in `summary.json`."""
        return {"value": self.value, "ci_low": self.low, "ci_high": self.high}


def bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of per-prompt values (n,) with its percentile interval over resampled prompts (Efron 1979)."""
    mean = float(np.mean(values))
    if np.ptp(values) == 0:  # nothing varies, so nothing can be resampled
        return Interval(mean, mean, mean)
    rng = np.random.default_rng(seed)
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng, batch=BATCH)
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


def across(results: Sequence[float]) -> Interval:
    """Mean of the results of two or more whole experiments, with Student's t interval for the mean of such results."""
    found = stats.ttest_1samp(results, 0).confidence_interval()
    return Interval(float(np.mean(results)), float(found.low), float(found.high))


def accuracy(correct: int, n: int) -> Interval:
    """Share of `n` independent yes-or-no outcomes that are yes, with the interval of Wilson (1927)."""
    found = stats.binomtest(correct, n).proportion_ci(method="wilson")
    return Interval(correct / n, float(found.low), float(found.high))


# ---------------------------------------------------------------------------------------------------------------------
# Two models on the same prompts


@dataclass(frozen=True)
class Paired:
    """What the scores of two models on the same prompts show; gains are in units of the score."""

    gain: Interval
    """Mean over prompts of the other model's mean score less the base model's."""
    p: float
    """Two-sided p-value of the gain: how often flipping the sign of each prompt's difference gives one as large."""
    win_rate: Interval
    """Probability that a sample of the other model beats one of the base model on the same prompt; a tie is a half."""
    detectable: float
    """The smallest gain that this many prompts would have shown, with 80 % power at the 5 % level."""
    n: int
    """Prompts."""


def paired(base: np.ndarray, other: np.ndarray) -> Paired:
    """Compare scores (n, k) and (n, m) of k and m samples on the same n prompts; (n,) is one sample a prompt.

    Below 14 prompts the permutation test goes through every pattern of signs, above it draws `RESAMPLES` of them.
    """
    base, other = (np.asarray(scores, float).reshape(len(scores), -1) for scores in (base, other))
    gains = other.mean(axis=1) - base.mean(axis=1)  # (n,)
    gains[np.abs(gains) < ROUNDING] = 0  # rounding alone may lean to one side, and would then look significant
    margins = other[:, None, :] - base[:, :, None]  # (n, k, m), every sample against every sample
    return Paired(
        gain=bootstrap(gains),
        p=_sign_flip_p(gains),
        win_rate=bootstrap(_credit(margins).mean(axis=(1, 2))),
        detectable=float(POWER * gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.inf,
        n=len(gains),
    )


def _sign_flip_p(gains: np.ndarray) -> float:
    if len(gains) == 1:  # either sign is as large
        return 1.0
    rng = np.random.default_rng(0)
    found = stats.permutation_test(
        (gains,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, batch=BATCH, rng=rng
    )
    return float(found.pvalue)


def _credit(margins: np.ndarray) -> np.ndarray:
    """1 for a win, 0 for a loss, one half for a tie."""
    return np.where(np.abs(margins) < ROUNDING, 0.5, margins > 0)


def _quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Number of the quantile bin of each of the values (n,). Equal values share a bin, so bins may differ in size."""
    inner_edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(inner_edges, values, side="right")


# ---------------------------------------------------------------------------------------------------------------------
# How much of a gain is length


@dataclass(frozen=True)
class LengthMatched:
    """A gain between responses of like length (Singhal et al. 2310.03716)."""

    gain: float | None
    """Gain within bins of length; None where the two models share no bin."""
    explained: float | None
    """Share of the plain gain that the difference in length accounts for; None without a matched or a plain gain."""
    correlation: float | None
    """Spearman correlation of length and score over both models; None where one of them does not vary."""


def length_matched(
    base_scores: np.ndarray,
    base_lengths: np.ndarray,
    other_scores: np.ndarray,
    other_lengths: np.ndarray,
    bins: int = 8,
) -> LengthMatched:
    """Compare scores at like length. Arrays over responses: base (n,), (n,), other (m,), (m,); lengths in tokens.

    The bins are quantiles of the pooled lengths. Each that holds responses of both models counts by its share of the
    pooled responses; the rest have nothing to compare and are left out.
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
# How far the policy went, and whether it was too far


def best_of_n_kl(n: int) -> float:
    """KL in nats of the best of `n` samples from one (Stiennon et al. 2009.01325, G.3); an upper bound if some tie."""
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class Overoptimization:
    """Gold gain R(d) = d (alpha - beta log d) at d = sqrt(KL), KL in nats (Gao, Schulman and Hilton 2210.10760)."""

    alpha: float
    beta: float
    turnover_kl: float | None
    """KL beyond which the gold score falls; None if the curve does not fall, or only far beyond what was measured."""

    def predict(self, kl: np.ndarray) -> np.ndarray:
        """Gold gain that the curve gives at `kl` >= 0, of any shape."""
        d = np.sqrt(kl)
        return self.alpha * d - self.beta * special.xlogy(d, d)  # xlogy is 0 at 0, as the curve is


def fit_overoptimization(kl: np.ndarray, gold: np.ndarray) -> Overoptimization | None:
    """Least squares through gold gains (m,) over the start, at `kl` (m,); None below three different KL > 0.

    Points at KL <= 0 are left out: the curve starts at zero whatever its parameters, and an estimate may be negative.
    """
    kl, gold = np.asarray(kl, float), np.asarray(gold, float)
    moved = kl > 0
    if len(np.unique(kl[moved])) < 3:
        return None
    d = np.sqrt(kl[moved])
    # Linear in both parameters, so one solution and no starting point.
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -special.xlogy(d, d)], axis=1), gold[moved])
    turnover = None
    if beta > 0:
        log_turnover = 2 * (alpha / beta - 1)  # of d*^2, from R'(d*) = alpha - beta log d* - beta = 0
        if log_turnover <= math.log(2 * kl.max()):
            turnover = math.exp(log_turnover)
    return Overoptimization(float(alpha), float(beta), turnover)


# ---------------------------------------------------------------------------------------------------------------------
# Whether a reward model means what it says


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of which the reward model was about equally sure."""

    confidence: float
    """Mean probability that it gave to the response it preferred."""
    correct: float
    """Share in which people preferred that one too; a tie is a half."""
    count: int


@dataclass(frozen=True)
class Calibration:
    """A reward model on unseen pairs under the Bradley-Terry model; losses in nats, margins in units of the score."""

    n: int
    """Pairs."""
    loss: Interval
    """Mean of -log sigmoid(margin)."""
    below_chance: Interval
    """log 2 less the loss."""
    told_from_chance: bool
    """Whether the loss is below chance by more than the pairs could do by luck: that interval lies above zero."""
    accuracy: Interval
    """Share of pairs with a margin above zero; a tie is a half."""
    entropy_of_accuracy: float
    """The best loss at this accuracy for a model that is equally sure of every pair."""
    tie_fraction: float
    mean_margin: float
    mean_abs_margin: float
    reliability: list[ReliabilityBin]
    """From the least to the most sure, about equally many pairs in each."""
    ece: float
    """Expected calibration error: distance of confidence and share correct, over the bins (Guo et al. 1706.04599)."""
    scale: float
    """Factor on the margins that makes the loss smallest: above 1 the model is too timid, below 1 over-confident.

    At either end of `SCALES` there is no best factor: every pair is right, or guessing beats the model.
    """
    scaled_loss: float
    """The loss with the margins times `scale`."""


def calibration(margins: np.ndarray, bins: int = 10) -> Calibration:
    """Judge a reward model by its margins (n,) = score(chosen) - score(rejected) on unseen pairs."""
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
        # Wilson's interval counts whole successes, so the half wins of ties are rounded for it, not in the value.
        accuracy=replace(accuracy(round(wins), n), value=share),
        entropy_of_accuracy=float(stats.entropy([share, 1 - share])),
        tie_fraction=float(np.mean(np.abs(margins) < ROUNDING)),
        mean_margin=float(margins.mean()),
        mean_abs_margin=float(np.abs(margins).mean()),
        reliability=reliability,
        ece=sum(found.count * abs(found.confidence - found.correct) for found in reliability) / n,
        scale=scale,
        scaled_loss=float(_pair_losses(scale * margins).mean()),
    )


def _pair_losses(margins: np.ndarray) -> np.ndarray:
    """-log sigmoid(margin), which stays finite at any margin."""
    return np.logaddexp(0, -margins)


def _reliability(margins: np.ndarray, bins: int) -> list[ReliabilityBin]:
    sureness = np.abs(margins)
    labels = _quantile_bins(sureness, bins)
    found = []
    for in_bin in (labels == label for label in np.unique(labels)):
        confidence = float(special.expit(sureness[in_bin]).mean())
        found.append(ReliabilityBin(confidence, float(_credit(margins[in_bin]).mean()), int(in_bin.sum())))
    return found


def _best_scale(margins: np.ndarray) -> float:
    """Post-hoc temperature: the factor 1/T on the margins with the smallest mean loss."""
    if not margins.any():  # every factor gives the same loss
        return 1.0
    found = optimize.minimize_scalar(
        lambda log_scale: _pair_losses(math.exp(log_scale) * margins).mean(), bounds=np.log(SCALES), method="bounded"
    )
    return math.exp(found.x)


# ---------------------------------------------------------------------------------------------------------------------
# Whether a policy still says different things


def distinct(texts: list[str], n: int) -> float:
    """Share of the word n-grams in all texts together that are different ones (Li et al. 1510.03055)."""
    words = [text.lower().split() for text in texts]
    ngrams = [tuple(said[i : i + n]) for said in words for i in range(len(said) - n + 1)]
    return len(set(ngrams)) / max(1, len(ngrams))


def unique(texts: list[str]) -> float:
    """Share of the texts that are different ones."""
    return len(set(texts)) / max(1, len(texts))
