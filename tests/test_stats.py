"""The statistics against hand calculation, closed forms and simulated worlds whose truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from rlhf.compare import stats
from rlhf.compare.stats import (
    CHANCE_LOSS,
    Interval,
    Overoptimization,
    accuracy,
    best_of_n_kl,
    bootstrap,
    calibration,
    fit_overoptimization,
    length_matched,
    more_to_decide,
    paired,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def covers(interval, x):
    return interval.low <= x <= interval.high


def test_interval():
    interval = Interval(0.5, 0.2, 0.7)
    assert interval.as_dict() == {"value": 0.5, "ci_low": 0.2, "ci_high": 0.7}


def test_bootstrap_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(0.3, 1.0, 400)
    interval = bootstrap(values)
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.06 * half_width)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.06 * half_width)
    assert bootstrap(values) == interval and bootstrap(values, seed=1) != interval
    assert bootstrap(np.full(5, 0.25)) == Interval(0.25, 0.25, 0.25)


def test_wilson_interval_against_published_values():
    few, many = accuracy(77, 128), accuracy(307, 512)
    assert (few.value, few.low, few.high) == pytest.approx((0.6016, 0.515, 0.682), abs=1e-3)
    assert (many.value, many.low, many.high) == pytest.approx((0.5996, 0.557, 0.641), abs=1e-3)
    assert accuracy(10, 10).low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)  # not 1, as the plain interval says


@pytest.mark.parametrize("wins", [6, 12, 13, 14])
def test_as_many_more_votes_as_are_said_decide_in_about_four_of_five_cases(wins):
    share = accuracy(wins, 20)
    n = 20 + more_to_decide(share, 20)
    decides = [more_to_decide(accuracy(won, n), n) == 0 for won in range(n + 1)]
    power = binom.pmf(range(n + 1), n, wins / 20) @ decides
    assert 0.7 < power < 0.9


def test_few_votes_decide_nothing_and_even_ones_never_do():
    assert [more_to_decide(accuracy(n, n), n) for n in (1, 5, 6, 9)] == [7, 3, 0, 0]
    assert more_to_decide(accuracy(4.5, 9), 9) is None and more_to_decide(accuracy(15, 20), 20) == 0
    assert accuracy(4.5, 9).low < 0.5 < accuracy(4.5, 9).high


# ---------------------------------------------------------------------------------------------------------------------


def test_paired_by_hand():
    found = paired(np.array([[0.0, 2.0], [1.0, 1.0]]), np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 8.0]]))
    assert found.n == 2
    assert found.gain.value == pytest.approx((1 + 2) / 2)
    assert (found.gain.low, found.gain.high) == pytest.approx((1, 2))
    # Prompt 1: 3 wins over the 0; loss, tie, win over the 2. Prompt 2: loss, tie, win, twice.
    assert found.win_rate.value == pytest.approx((4.5 / 6 + 3 / 6) / 2)
    assert found.detectable == pytest.approx(2.8 * math.sqrt(0.5) / math.sqrt(2))
    assert found.p == pytest.approx(2 / 4)


@pytest.mark.parametrize(("sign", "wins"), [(1, 1), (-1, 0)])
def test_sign_flip_p_is_exact_where_every_pattern_can_be_tried(sign, wins):
    base = np.random.default_rng(0).normal(size=8)
    found = paired(base, base + sign * np.linspace(0.1, 1, 8))
    assert found.p == pytest.approx(2 / 256)
    assert found.win_rate == Interval(wins, wins, wins) and not covers(found.gain, 0)


def test_sign_flip_p_of_one_contrary_prompt():
    # Two patterns of signs give a sum of 27 or more: this one, and the one in which the 1 is positive too.
    found = paired(np.zeros(7), np.array([-1.0, 2, 3, 4, 5, 6, 8]))
    assert found.p == pytest.approx(2 * 2 / 2**7)


def test_the_same_scores_show_nothing():
    base = np.random.default_rng(0).normal(size=(60, 4))
    # As scored in other batches, and leaning to one side.
    for again in (base, base + np.random.default_rng(1).uniform(0, 5e-5, (60, 4))):
        found = paired(base[:, 0], again[:, 0])
        assert found.gain == Interval(0, 0, 0) and found.p == 1 and found.detectable == 0
        assert found.win_rate == Interval(0.5, 0.5, 0.5)
        assert paired(base, again).win_rate.value == pytest.approx(0.5)


def test_one_sample_may_be_flat():
    rng = np.random.default_rng(0)
    base, other = rng.normal(size=30), rng.normal(size=30)
    assert paired(base, other) == paired(base[:, None], other[:, None])
    assert paired(base, np.stack([other, other], axis=1)) == paired(base, other)


def test_pairing_removes_the_spread_between_prompts():
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 10, 100)
    base, other = (hardness + shift + rng.normal(0, 0.1, 100) for shift in (0.0, 0.2))
    found = paired(base, other)
    assert found.gain.low > 0.1 and found.p < 0.001 and found.detectable < 0.1
    assert not covers(found.gain, 0) and covers(paired(base, rng.permutation(other)).gain, 0)


def test_a_model_against_itself_is_found_different_as_rarely_as_said(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    found = [paired(*rng.normal(size=(2, 40, 2))) for _ in range(200)]
    assert 180 <= sum(covers(pair.gain, 0) for pair in found) <= 198  # 95 % of 200 is 190
    assert 180 <= sum(covers(pair.win_rate, 0.5) for pair in found) <= 198
    assert 2 <= sum(pair.p < 0.05 for pair in found) <= 20


def test_a_detectable_gain_is_detected_four_times_in_five(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    base = np.zeros(64)
    assert np.mean([paired(base, rng.normal(size=64)).detectable for _ in range(20)]) == pytest.approx(0.35, abs=0.02)
    powered = [not covers(bootstrap(rng.normal(0.35, 1, 64)), 0) for _ in range(200)]
    assert 0.7 <= np.mean(powered) <= 0.9


# ---------------------------------------------------------------------------------------------------------------------


def test_a_gain_that_is_all_length_is_explained_by_length():
    base, other = np.repeat([10, 20, 30], [60, 30, 10]), np.repeat([10, 20, 30], [10, 30, 60])
    found = length_matched(base / 10, base, other / 10, other)
    assert found.gain == pytest.approx(0, abs=1e-12) and found.explained == pytest.approx(1)
    assert found.correlation == pytest.approx(1)
    rng = np.random.default_rng(0)
    base, other = rng.normal(40, 8, 2000), rng.normal(50, 8, 2000)
    noise = rng.normal(0, 0.2, (2, 2000))
    smooth = length_matched(0.1 * base + noise[0], base, 0.1 * other + noise[1], other)
    assert smooth.explained > 0.85 and smooth.correlation > 0.9  # the rest is difference in length within bins
    assert length_matched(0.1 * base, base, 0.1 * other, other, bins=40).explained > smooth.explained


def test_a_gain_that_has_nothing_to_do_with_length_is_left():
    rng = np.random.default_rng(0)
    base, other = rng.normal(40, 8, 2000), rng.normal(50, 8, 2000)
    found = length_matched(rng.normal(0, 0.2, 2000), base, rng.normal(1, 0.2, 2000), other)
    assert found.gain == pytest.approx(1, abs=0.03) and found.explained == pytest.approx(0, abs=0.03)


def test_bins_count_by_their_share_of_the_responses():
    # Gain 1 among the 4 responses of length 10, 4 among the 8 of length 20; nothing to compare at length 30.
    base_lengths, base_scores = np.array([10, 10, 10, 20, 20]), np.array([0.0, 0, 0, 1, 1])
    other_lengths, other_scores = np.repeat([10, 20, 30], [1, 6, 3]), np.repeat([1.0, 5, 90], [1, 6, 3])
    found = length_matched(base_scores, base_lengths, other_scores, other_lengths)
    assert found.gain == pytest.approx((4 * 1 + 8 * 4) / 12)
    plain = other_scores.mean() - base_scores.mean()
    assert found.explained == pytest.approx(1 - 3 / plain)


def test_what_length_cannot_say_is_none():
    tens, twenties = np.full(5, 10), np.full(5, 20)
    scores = np.arange(5.0)
    apart = length_matched(scores, tens, scores + 1, twenties)
    assert apart.gain is None and apart.explained is None and apart.correlation > 0
    alike = length_matched(scores, tens, scores + 1, tens)
    assert alike.gain == pytest.approx(1) and alike.explained == pytest.approx(0) and alike.correlation is None
    no_gain = length_matched(scores, np.arange(5), scores, np.arange(5))
    assert no_gain.gain == pytest.approx(0) and no_gain.explained is None
    assert length_matched(np.ones(5), tens, np.ones(5), twenties).correlation is None


# ---------------------------------------------------------------------------------------------------------------------


def test_best_of_n_kl():
    assert [best_of_n_kl(n) for n in (1, 4, 16, 64)] == pytest.approx([0, 0.64, 1.84, 3.17], abs=0.01)


def test_the_fit_recovers_the_curve_it_was_drawn_from():
    kl = np.array([0.5, 1, 2, 4, 8, 16, 32])
    d = np.sqrt(kl)
    gold = d * (1.5 - 0.7 * np.log(d))
    fit = fit_overoptimization(kl, gold)
    assert (fit.alpha, fit.beta) == pytest.approx((1.5, 0.7))
    assert fit.turnover_kl == pytest.approx(math.exp(2 * (1.5 / 0.7 - 1)))  # 9.8 nats
    assert fit.predict(kl) == pytest.approx(gold)
    around = fit.predict(fit.turnover_kl * np.array([0.9, 1, 1.1]))
    assert around.argmax() == 1
    noisy = fit_overoptimization(kl, gold + np.random.default_rng(0).normal(0, 0.02, 7))
    assert (noisy.alpha, noisy.beta) == pytest.approx((1.5, 0.7), abs=0.05)


def test_a_turnover_is_claimed_only_near_what_was_measured():
    curve = Overoptimization(1.5, 0.7, None)
    at = math.exp(2 * (1.5 / 0.7 - 1))
    for top, expected in ((at / 1.9, pytest.approx(at)), (at / 2.1, None)):
        kl = np.linspace(0.1, top, 5)
        assert fit_overoptimization(kl, curve.predict(kl)).turnover_kl == expected
    kl = np.linspace(0.1, 4, 5)
    rising = fit_overoptimization(kl, Overoptimization(1, -0.5, None).predict(kl))
    assert rising.beta == pytest.approx(-0.5) and rising.turnover_kl is None
    # Best at 6 nats, where a curve that peaks before it was fitted.
    found = fit_overoptimization(np.array([1.0, 2, 3, 4, 6]), np.array([0.3, 0.37, 0.375, 0.36, 0.38]))
    assert 3 < math.exp(2 * (found.alpha / found.beta - 1)) < 6 and found.turnover_kl is None
    straight = fit_overoptimization(kl, np.sqrt(kl))  # beta is zero but for rounding: no overflow either way
    assert straight.alpha == pytest.approx(1) and straight.turnover_kl is None


def test_points_without_kl_are_left_out():
    curve = Overoptimization(1.5, 0.7, None)
    kl = np.array([1.0, 4, 9])
    with_start = fit_overoptimization(np.array([0, -0.01, *kl]), np.array([5, 5, *curve.predict(kl)]))
    assert (with_start.alpha, with_start.beta) == pytest.approx((1.5, 0.7))
    assert curve.predict(0) == 0
    assert fit_overoptimization(np.array([0.0, 1, 4]), np.ones(3)) is None
    assert fit_overoptimization(np.array([1.0, 4, 4, 4]), np.ones(4)) is None


# ---------------------------------------------------------------------------------------------------------------------


def bradley_terry_margins(n=4000):
    """Margins of a reward model that is exactly as sure as it should be."""
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 1.5, n)
    return np.where(rng.uniform(size=n) < sigmoid(gap), gap, -gap)


def test_a_calibrated_model_is_found_calibrated():
    margins = bradley_terry_margins()
    found = calibration(margins)
    assert found.ece < 0.03 and found.scale == pytest.approx(1, abs=0.05) and found.told_from_chance
    assert found.loss.value == pytest.approx(-np.log(sigmoid(margins)).mean())
    assert found.loss.low < found.loss.value < found.loss.high
    assert found.below_chance.value == pytest.approx(math.log(2) - found.loss.value)
    assert found.below_chance.low == pytest.approx(math.log(2) - found.loss.high)
    assert found.loss.value < found.entropy_of_accuracy  # it knows of which pairs it is sure
    assert [found.count for found in found.reliability] == [400] * 10 and found.n == 4000
    confidences = [found.confidence for found in found.reliability]
    assert confidences == sorted(confidences) and confidences[0] > 0.5


@pytest.mark.parametrize("factor", [3, 1 / 3])
def test_scale_undoes_over_and_under_confidence(factor):
    margins = bradley_terry_margins()
    right, wrong = calibration(margins), calibration(factor * margins)
    assert wrong.scale == pytest.approx(right.scale / factor, rel=1e-3)
    assert wrong.scaled_loss == pytest.approx(right.scaled_loss, abs=1e-6)
    assert wrong.loss.value > right.loss.value + 0.02 and wrong.ece > 0.08
    assert wrong.accuracy.value == pytest.approx(right.accuracy.value, abs=1e-3)  # but for what counts as a tie
    gap = np.mean([found.confidence - found.correct for found in wrong.reliability])
    assert gap > 0.08 if factor > 1 else gap < -0.08


def test_an_accurate_model_at_chance_loss():
    """Accuracy 0.7473 beside a loss of 0.6931: a constant margin of 2.40 gives both."""
    found = calibration(np.array([2.4] * 68 + [-2.4] * 23))
    share = 68 / 91
    assert found.accuracy.value == pytest.approx(0.7473, abs=1e-4)
    assert found.accuracy == accuracy(68, 91)
    assert found.entropy_of_accuracy == pytest.approx(0.565, abs=5e-4)
    assert found.loss.value == pytest.approx(0.6931, abs=1e-3) and not found.told_from_chance
    (only,) = found.reliability  # equal confidences belong together, in whatever order they come
    assert (only.confidence, only.correct, only.count) == pytest.approx((sigmoid(2.4), share, 91))
    assert found.ece == pytest.approx(sigmoid(2.4) - share)
    assert found.scale == pytest.approx(math.log(share / (1 - share)) / 2.4, rel=1e-3)
    assert found.scaled_loss == pytest.approx(found.entropy_of_accuracy)
    assert found.mean_margin == pytest.approx(2.4 * 45 / 91) and found.mean_abs_margin == pytest.approx(2.4)


def test_noise_is_not_told_from_chance(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    timid = [calibration(rng.normal(0, 0.05, 200)) for _ in range(60)]
    assert sum(found.told_from_chance for found in timid) <= 4  # 2.5 % of 60 is 1.5
    assert sum(covers(found.accuracy, 0.5) for found in timid) >= 54  # 95 % of 60 is 57
    assert sum(calibration(rng.normal(0.02, 0.05, 200)).told_from_chance for _ in range(20)) == 20
    sure = calibration(rng.normal(0, 1, 500))
    assert sure.below_chance.high < 0 and sure.scale < 0.3  # sure of itself and wrong: worse than guessing


def test_ties_count_half():
    found = calibration(np.array([1.0, 2.0, -1.0, 0.0, 5e-5]))
    assert found.accuracy.value == pytest.approx((2 + 0.5 + 0.5) / 5) and found.tie_fraction == pytest.approx(0.4)
    assert calibration(np.array([1.0, 0.0, -1.0, 2.0])).accuracy.value == pytest.approx(2.5 / 4)
    collapsed = calibration(np.zeros(20))
    assert collapsed.loss.value == pytest.approx(CHANCE_LOSS) and collapsed.scaled_loss == pytest.approx(CHANCE_LOSS)
    assert collapsed.accuracy.value == 0.5 and collapsed.tie_fraction == 1 and not collapsed.told_from_chance
    assert collapsed.ece == 0 and collapsed.scale == 1 and len(collapsed.reliability) == 1


def test_margins_of_any_size_keep_the_loss_finite():
    found = calibration(np.array([1000.0, 1000.0, -1000.0]))
    assert found.loss.value == pytest.approx(1000 / 3)
    assert found.scale == pytest.approx(1e-3, rel=1e-3) and found.scaled_loss < found.loss.value
    assert calibration(np.full(5, 0.01)).scale == pytest.approx(1e3, rel=1e-3)  # every pair right: no best factor


# ---------------------------------------------------------------------------------------------------------------------


def test_one_prompt_shows_nothing():
    found = stats.paired(np.array([1.0]), np.array([2.0]))
    assert (found.p, found.detectable, found.gain.value) == (1.0, math.inf, 1.0)
