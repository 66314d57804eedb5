"""Training curves: what is drawn follows from the logged rows."""

import pytest

from rlhf import metrics
from rlhf.figures import curves, style
from rlhf.runs.directory import EXAMPLE, Run


@pytest.fixture(scope="module")
def ppo_rows():
    return Run(EXAMPLE / "ppo").metrics()


@pytest.fixture(scope="module")
def reward_rows():
    return Run(EXAMPLE / "reward").metrics()


def column(rows, key):
    return [row[key] for row in rows if key in row]


def trace(figure, **meta):
    return next(trace for trace in figure.data if all(trace.meta.get(key) == value for key, value in meta.items()))


def texts(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def test_ppo_curves_are_stacked_over_the_episodes(ppo_rows):
    figure = curves.ppo_curves(ppo_rows, total_episodes=12_000)
    kl = trace(figure, key=metrics.KL, x=metrics.EPISODE)
    assert list(kl.x) == column(ppo_rows, metrics.EPISODE)
    assert list(kl.y) == column(ppo_rows, metrics.KL)
    assert list(figure.layout.xaxis.range) == [0, 12_000]
    assert {trace.yaxis for trace in figure.data} == {"y", "y2", "y3", "y4"}
    assert not any(trace.xaxis not in (None, "x") for trace in figure.data)


def test_standard_deviation_is_a_band_around_the_score(ppo_rows):
    figure = curves.ppo_curves(ppo_rows)
    first = ppo_rows[0]
    mean, std = first[metrics.SCORE], first[metrics.SCORE_STD]
    assert trace(figure, sign=-1).y[0] == pytest.approx(mean - std)
    assert trace(figure, sign=1).y[0] == pytest.approx(mean + std)


def test_value_stands_at_the_end_of_each_curve(reward_rows):
    figure = curves.reward_curves(reward_rows)
    accuracy = sum(column(reward_rows, metrics.ACCURACY)[-8:]) / 8
    assert trace(figure, end=metrics.ACCURACY).text[1].strip() == f"{100 * accuracy:.0f} %"
    steps = [row[metrics.STEP] for row in reward_rows if metrics.LOSS in row]
    assert trace(figure, end=metrics.LOSS).x == (steps[-8], steps[-1])  # a line over what the number averages


def test_levels_to_compare_with_are_drawn(reward_rows, ppo_rows):
    ceiling = next(iter(column(reward_rows, metrics.LABEL_CEILING)))
    label = f"ceiling from label noise, {100 * ceiling:.0f} %"
    assert {"chance, ln 2", "chance, 50 %", label} <= set(texts(curves.reward_curves(reward_rows)))
    without = [row for row in reward_rows if metrics.LABEL_CEILING not in row]
    assert not any("ceiling" in text for text in texts(curves.reward_curves(without)))
    (start,) = (line for line in curves.ppo_curves(ppo_rows).layout.shapes if line.line.color == style.BASE)
    assert start.y0 == ppo_rows[0][metrics.SCORE]


def test_evaluations_on_held_out_data_are_dots_with_a_key(reward_rows, ppo_rows):
    figure = curves.reward_curves(reward_rows)
    assert list(trace(figure, key=metrics.EVAL_LOSS).y) == column(reward_rows, metrics.EVAL_LOSS)
    assert "○ held out" in texts(figure)[0]
    evaluation = {metrics.STEP: 80, metrics.EPISODE: 5120, metrics.EVAL_SCORE: 2.75, metrics.EVAL_BASE_SCORE: 0.8}
    figure = curves.ppo_curves([*ppo_rows[:80], evaluation, *ppo_rows[80:]])
    dots = trace(figure, key=metrics.EVAL_SCORE)
    assert (dots.x, dots.y, dots.mode, dots.yaxis) == ((5120,), (2.75,), "markers", "y")
    assert "○ held out" in texts(figure)[0]
    assert len(trace(figure, key=metrics.SCORE, x=metrics.EPISODE).x) == len(ppo_rows)


def test_without_evaluations_nothing_speaks_of_held_out_data(ppo_rows):
    figure = curves.ppo_curves(ppo_rows)
    assert trace(figure, key=metrics.EVAL_SCORE).x == ()
    assert not any("held out" in text for text in texts(figure))


def test_long_history_is_thinned_and_keeps_the_newest_point(ppo_rows):
    rows = [{**ppo_rows[step % 160], metrics.EPISODE: 64 * (step + 1)} for step in range(5_000)]
    curve = trace(curves.ppo_curves(rows), key=metrics.KL)
    assert len(curve.x) <= curves.MAX_POINTS
    assert curve.x[-1] == 64 * 5_000


def test_missing_numbers_are_left_out():
    rows = [{"step": 1, "loss": None, "accuracy": 0.5, "margin": 0.1}, {"step": 2, "loss": 0.6}]
    figure = curves.reward_curves(rows)
    assert list(trace(figure, key="loss").x) == [2]
    assert list(trace(figure, key="accuracy").x) == [1]


def test_a_run_that_has_logged_nothing_has_axes_without_numbers():
    figure = curves.ppo_curves([])
    assert not figure.layout.yaxis.showticklabels
    assert not figure.layout.xaxis.showticklabels
