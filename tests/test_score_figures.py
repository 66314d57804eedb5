"""Figures of a comparison and of a reward model: what is drawn follows from the numbers."""

import json
import re

import numpy as np
import pytest

from rlhf import metrics
from rlhf.compare.ceiling import estimate
from rlhf.compare.stats import Interval, Overoptimization, ReliabilityBin
from rlhf.figures import curves, scores, style
from rlhf.figures.scores import FrontierPoint
from rlhf.runs.directory import EXAMPLE, Run


GAINS = [0.5, -1.0, 2.0, 0.0]
GAIN = Interval(0.375, -0.6, 1.4)
FIT = Overoptimization(alpha=1.0, beta=0.4, turnover_kl=float(np.exp(3.0)))  # about 20.1 nats


def around(value, by=0.1):
    return Interval(value, value - by, value + 2 * by)


def points(gold=True, sizes=(4, 16)):
    def point(label, kl, score, kind):
        return FrontierPoint(label, kl, around(score), around(score / 4, 0.02) if gold else None, kind)

    lined = [point(f"best of {n}", np.log(n) - (n - 1) / n, 1 + np.log(n) / 2, "best-of-n") for n in sizes]
    return [point("PPO", 5.0, 3.0, "model"), *lined[::-1], point("base", 0.0, 1.0, "base")]


def over(kl, fit=FIT):
    kl = np.asarray(kl, float)
    return scores.overoptimization(kl, kl / 4, FIT.predict(kl), fit, [f"step {x:.0f}" for x in kl])


def scatter():
    lengths, rng = [10] * 6 + [30] * 6 + [50] * 6, np.random.default_rng(0)
    base, other = rng.normal(0, 1, 18), rng.normal(1, 1, 18)
    return scores.length_scatter(answers(lengths, base), answers(lengths, other), "score", "PPO"), base, other


def answers(tokens, values):
    """Two to each question."""
    return scores.Answers(tokens, values, [divmod(number, 2) for number in range(len(tokens))])


def a_ceiling():
    """Of scores that are normal with standard deviation 2, and gold scores a tenth of them."""
    drawn = np.random.default_rng(0).normal(scale=2, size=(30, 32))
    return estimate(drawn, drawn / 10)


CEILING = a_ceiling()
BINS = [ReliabilityBin(0.55, 0.5, 40), ReliabilityBin(0.7, 0.65, 40), ReliabilityBin(0.95, 0.9, 20)]
FIGURES = {
    "reward curves": lambda: curves.reward_curves(Run(EXAMPLE / "reward").metrics()),
    "PPO curves": lambda: curves.ppo_curves(Run(EXAMPLE / "ppo").metrics()),
    "distributions": lambda: scores.distributions([-0.5, 0.1, 1.0], [0.5, 2.0], "score", "PPO"),
    "differences": lambda: scores.differences(GAINS, GAIN, "score", "PPO"),
    "worse": lambda: scores.differences(np.array([-1.0, -0.5]), around(-0.75), "score", "PPO"),
    "equal": lambda: scores.differences([0.0, 0.0], Interval(0.0, 0.0, 0.0), "score", "PPO"),
    "lengths": lambda: scatter()[0],
    "no lengths": lambda: scores.length_scatter(answers([], []), answers([], []), "score", "PPO"),
    "frontier": lambda: scores.frontier(points(), "score"),
    "frontier without gold": lambda: scores.frontier(points(gold=False), "score"),
    "frontier without best of n": lambda: scores.frontier(points(sizes=()), "score"),
    "frontier below the ceiling": lambda: scores.frontier(points(), "score", CEILING),
    "sweep below the ceiling": lambda: scores.overoptimization([1, 2], [1, 2], [0.1, 0.2], None, ["a", "b"], CEILING),
    "path": lambda: scores.path(Run(EXAMPLE / "ppo").metrics(), CEILING),
    "path to come": lambda: scores.path([], CEILING),
    "nats": lambda: scores.nats_by_position([2.0, 0.5, 0.1], "PPO"),
    "no frontier": lambda: scores.frontier([], "score"),
    "overoptimization": lambda: over([1, 4, 9, 25]),
    "no fit": lambda: over([1, 4], fit=None),
    "no runs": lambda: over([], fit=None),
    "reliability": lambda: scores.reliability(BINS, 0.05),
    "no bins": lambda: scores.reliability([], 0.0),
}


def trace(figure, name, axis=None):
    return next(one for one in figure.data if one.name == name and (axis is None or one.yaxis == axis))


def words(figure):
    return " | ".join(re.sub("<[^>]*>", " ", annotation.text) for annotation in figure.layout.annotations)


def lines(figure, **wanted):
    """The straight lines among the shapes whose attributes are the wanted ones."""
    every = [shape for shape in figure.layout.shapes if shape.type == "line"]
    return [shape for shape in every if all(shape[key] == value for key, value in wanted.items())]


def colors(value, key=""):
    """Everything in a figure that stands under the key of a colour or a shadow, and everything that looks like one."""
    if isinstance(value, dict):
        return [color for name, inner in value.items() for color in colors(inner, name)]
    if isinstance(value, list | tuple):
        return [color for item in value for color in colors(item, key)]
    is_color = key.endswith(("color", "shadow")) or re.search(r"#[0-9A-Fa-f]{3,8}\b|rgba?\(|color:", str(value))
    return [(key, value)] if is_color else []


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_every_colour_of_a_figure_has_a_twin_for_the_dark_page_and_stands_where_the_page_looks(draw):
    text = json.dumps(draw().to_plotly_json())  # as the page sends it: numpy's numbers would fail
    assert "NaN" not in text
    for key, color in colors(json.loads(text)):
        assert key.endswith(("color", "shadow")), (key, color)
        assert color in {*style.DARK, style.CLEAR}, (key, color)


# ---------------------------------------------------------------------------------------------------------------------
# Distributions


def test_histograms_share_their_bins_and_hold_every_answer():
    rng = np.random.default_rng(0)
    base, other = rng.normal(-1, 1, 100).tolist(), rng.normal(1, 1, 80).tolist()
    figure = scores.distributions(base, other, "score", "PPO, seed 1")
    first, second = (one for one in figure.data if one.type == "bar")
    assert list(first.x) == list(second.x)
    assert (sum(first.y), sum(second.y)) == (100, 80)
    assert [one.name for one in figure.data if one.type == "box"] == ["base", "PPO, seed 1"]
    assert f"base average −{-np.mean(base):.2f}" in words(figure)
    assert "-" not in "".join(first.customdata)


def test_equal_scores_can_be_drawn():
    figure = scores.distributions([0.5, 0.5], [0.5, 0.5], "score", "PPO")
    assert [sum(one.y) for one in figure.data if one.type == "bar"] == [2, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Differences


def test_differences_are_sorted_and_know_their_prompt():
    (dots,) = scores.differences(GAINS, GAIN, "score", "PPO").data
    assert dots.y == (-1.0, 0.0, 0.5, 2.0)
    assert [entry[0] for entry in dots.customdata] == [1, 3, 0, 2]
    assert [GAINS[entry[0]] for entry in dots.customdata] == list(dots.y)
    assert dots.x == (0.125, 0.375, 0.625, 0.875)
    assert dots.marker.color == (style.BASE, style.GREY, style.PPO, style.PPO)
    assert dots.meta == {"pick": True}


def test_the_average_stands_in_its_interval():
    figure = scores.differences(GAINS, GAIN, "score", "PPO")
    (band,) = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (band.y0, band.y1) == (GAIN.low, GAIN.high)
    assert lines(figure, y0=GAIN.value, y1=GAIN.value)
    assert lines(figure, y0=0, y1=0)
    assert "average +0.38" in words(figure)
    assert "95 % interval −0.60 to +1.40" in words(figure)
    assert "no difference" in words(figure)


def test_axis_of_differences_holds_zero_and_the_interval():
    low, high = scores.differences([3.0, 3.5], Interval(3.2, 2.0, 4.0), "score", "PPO").layout.yaxis.range
    assert low < 0
    assert high > 4


# ---------------------------------------------------------------------------------------------------------------------
# Score against length


def test_dots_know_their_answer_and_model():
    figure, base, _ = scatter()
    dots = trace(figure, "base")
    assert list(dots.y) == pytest.approx(base)
    assert dots.customdata[3] == [1, 1, "base"]
    assert trace(figure, "PPO").customdata[16] == [8, 0, "PPO"]
    assert [one.name for one in figure.data if one.meta == {"pick": True}] == ["base", "PPO"]


def test_trend_is_the_average_of_each_bin_of_length():
    figure, base, other = scatter()
    for name, values in (("base", base), ("PPO", other)):
        trend = trace(figure, f"{name}, average")
        assert trend.x == (10, 30, 50)
        assert list(trend.y) == pytest.approx([values[:6].mean(), values[6:12].mean(), values[12:].mean()])
        assert trend.customdata == (6, 6, 6)


def test_both_models_share_the_bins_of_length_and_small_ones_are_left_out():
    # The pooled lengths are 1..80, so a bin holds ten of them: the base fills four, the other four.
    base, other = [*range(1, 38), 78, 79, 80], [*range(38, 78)]
    figure = scores.length_scatter(answers(base, base), answers(other, other), "score", "PPO")
    assert trace(figure, "base, average").x == (5.5, 15.5, 25.5, 34.0)  # 31 to 37 are seven; 78 to 80 too few
    assert trace(figure, "PPO, average").x == (45.5, 55.5, 65.5, 74.0)  # 38 to 40 are too few


# ---------------------------------------------------------------------------------------------------------------------
# Frontier


def test_frontier_draws_scores_with_their_intervals():
    figure = scores.frontier(points(), "score by the reward model")
    model = trace(figure, "PPO", "y")
    assert (model.x, model.y) == ((5.0,), (3.0,))
    assert model.error_y.array == pytest.approx((0.2,))
    assert model.error_y.arrayminus == pytest.approx((0.1,))
    assert model.marker.color == style.PPO
    assert model.customdata[0] == ["PPO", "2.90 to 3.20", ""]
    low, high = figure.layout.xaxis.range
    assert low < 0 < 5 < high  # the base's point at 0 lies within the panel


def test_gold_has_a_panel_of_its_own_over_the_same_axis():
    figure = scores.frontier(points(), "score")
    gold = trace(figure, "PPO", "y2")
    assert gold.y == (0.75,)
    assert gold.marker.color == style.GOLD
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]
    assert figure.layout.xaxis.anchor == "y2"


def test_without_every_gold_score_there_is_one_panel():
    some = [*points(gold=False), *points(sizes=())]
    for given in (points(gold=False), some):
        figure = scores.frontier(given, "score")
        assert {one.yaxis for one in figure.data} == {"y"}
        assert tuple(figure.layout.yaxis.domain) == (0, 1)
        assert "Gold" not in words(figure)


def test_best_of_n_is_one_line_from_left_to_right_with_n_at_its_points():
    figure = scores.frontier(points(sizes=(4, 16, 64)), "score")
    for axis in ("y", "y2"):
        line = trace(figure, "best of n base answers", axis)
        assert {"lines", "markers", "text"} == set(line.mode.split("+"))
        assert [label for label, _, _ in line.customdata] == ["best of 4", "best of 16", "best of 64"]
        assert line.text == ("4", "16", "64")
        assert list(line.x) == sorted(line.x)


def test_every_model_of_a_frontier_is_in_its_legend_once_with_a_symbol_of_its_own():
    models = [FrontierPoint(f"PPO, seed {i}", 5 + 0.01 * i, around(3), around(0.8), "model") for i in range(10)]
    figure = scores.frontier([*models, *points()], "score")
    assert figure.layout.showlegend
    entries = [one for one in figure.data if one.showlegend]
    assert sorted(one.name for one in entries) == sorted(
        [*(model.label for model in models), "PPO", "base", "best of n base answers"]
    )
    symbols = [one.marker.symbol for one in entries if one.marker.color == style.PPO]
    assert len(set(symbols)) == len(symbols) == 11
    for entry in entries:  # a click on a name hides that model in both panels
        assert [one.yaxis for one in figure.data if one.legendgroup == entry.legendgroup] == ["y", "y2"]


def test_without_best_of_n_nothing_speaks_of_it():
    figure = scores.frontier(points(sizes=()), "score")
    assert {one.name for one in figure.data} == {"base", "PPO"}


# ---------------------------------------------------------------------------------------------------------------------
# The most that is possible


def test_the_ceiling_stands_above_the_bases_mean_in_both_panels_and_once_in_the_legend():
    figure = scores.frontier(points(), "score", CEILING)
    of_ceiling = [one for one in figure.data if one.name == scores.CEILING_NAME]
    assert sum(one.showlegend for one in of_ceiling) == 1
    for axis, base, curve in (("y", 1.0, CEILING.score), ("y2", 0.25, CEILING.gold)):
        low, high, solid, dotted = (one for one in of_ceiling if one.yaxis == axis)
        assert high.fill == "tonexty" and list(low.y) == pytest.approx([base + gain for gain in curve.ci_low])
        assert [*solid.y, *dotted.y[1:]] == pytest.approx([base + gain for gain in curve.value])
        assert solid.line.dash == "solid" and solid.x[-1] >= CEILING.settled_kl and dotted.line.dash == "dot"


def test_the_kl_of_best_of_n_is_said_to_be_a_bound():
    figure = scores.frontier(points(), "score", CEILING)
    assert trace(figure, "best of n base answers", "y").customdata[0][2] == "at most "
    assert trace(figure, "PPO", "y").customdata[0][2] == ""


def test_the_way_of_ppo_is_a_dot_for_each_update_above_the_bases_mean():
    rows = Run(EXAMPLE / "ppo").metrics()
    figure = scores.path([*rows[:3], {metrics.STEP: 3, metrics.EVAL_SCORE: 1.0}, *rows[3:]], CEILING)
    dots = trace(figure, "PPO")
    assert list(dots.x) == [row[metrics.KL] for row in rows]
    assert list(dots.y) == pytest.approx([row[metrics.SCORE] - CEILING.base_score for row in rows])
    assert dots.meta == {"x": metrics.KL, "key": metrics.SCORE, "minus": CEILING.base_score}
    assert figure.data[-1].x[0] == pytest.approx(np.mean(dots.x[-8:]))  # where it stands: as at the ends of the curves
    assert figure.data[-1].y[0] == pytest.approx(np.mean(dots.y[-8:]))


def test_the_bars_of_the_nats_add_up():
    (bars,) = scores.nats_by_position([2.0, 1.0, 1.0], "PPO").data
    assert (bars.x, bars.y, bars.customdata) == ((1, 2, 3), (2.0, 1.0, 1.0), (0.5, 0.75, 1.0))
    assert "4.0 nats per answer of PPO" in words(scores.nats_by_position([2.0, 1.0, 1.0], "PPO"))


# ---------------------------------------------------------------------------------------------------------------------
# Over-optimization


def test_curve_is_the_fit_over_the_measured_range():
    figure = over([1, 4, 9])
    curve = trace(figure, "fit")
    assert (curve.x[0], curve.x[-1]) == (0, 9)
    assert list(curve.y) == pytest.approx(FIT.predict(np.array(curve.x)).tolist())
    assert curve.yaxis == "y2"
    assert not lines(figure, yref="y2 domain")  # the turn is far beyond 9 nats
    assert "turns down" not in words(figure)


@pytest.mark.parametrize(
    "last, end", [((19.0, 25.0), 25.0), ((18.0,), FIT.turnover_kl)], ids=["within", "just beyond"]
)
def test_turn_of_the_gold_score_is_marked_and_the_curve_reaches_it(last, end):
    figure = over([1, 4, *last])
    assert trace(figure, "fit").x[-1] == pytest.approx(end)
    assert {line.yref for line in lines(figure, x0=FIT.turnover_kl, x1=FIT.turnover_kl)} == {"y domain", "y2 domain"}
    assert "gold score turns down at about 20 nats" in words(figure)
    assert figure.layout.xaxis.range[1] > end


def test_both_gains_stand_in_panels_over_one_axis():
    figure = over([1, 4, 9], fit=None)
    proxy, gold = figure.data
    assert (proxy.yaxis, proxy.marker.color, proxy.y) == ("y", style.PPO, (0.25, 1.0, 2.25))
    assert (gold.yaxis, gold.marker.color) == ("y2", style.GOLD)
    assert proxy.x == gold.x == (1, 4, 9)
    assert gold.text == ("step 1", "step 4", "step 9")
    assert "Gao" not in words(figure)


def test_a_kl_that_was_estimated_below_zero_stays_in_the_picture():
    figure = scores.overoptimization([-0.2, 3.0], [0.0, 1.0], [0.0, 0.2], None, ["start", "end"])
    assert figure.layout.xaxis.range[0] <= -0.2


# ---------------------------------------------------------------------------------------------------------------------
# Reliability and seeds


def test_reliability_shows_its_bins_beside_the_diagonal():
    figure = scores.reliability(BINS, 0.0475)
    dots, diagonal = trace(figure, "reward model"), trace(figure, "perfectly calibrated")
    assert dots.x == (0.55, 0.7, 0.95)
    assert dots.y == (0.5, 0.65, 0.9)
    assert dots.marker.size == dots.customdata == (40, 40, 20)
    assert dots.marker.sizemode == "area"
    assert diagonal.x == diagonal.y == (0.5, 1)
    assert "calibration error 4.8 percentage points" in re.sub(" +", " ", words(figure))


def test_axis_of_reliability_reaches_down_to_the_worst_bin():
    figure = scores.reliability([ReliabilityBin(0.9, 0.2, 5)], 0.7)
    assert figure.layout.yaxis.range[0] < 0.2
    assert scores.reliability([ReliabilityBin(0.9, 0.0, 5)], 0.9).layout.yaxis.range[0] == 0
