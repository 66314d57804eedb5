"""Figures: what is drawn follows from the numbers."""

import numpy as np
import pytest

from rlhf.figures import curves as figures


def ppo_rows(count):
    return [
        {
            "step": step,
            "episode": 64 * step,
            "objective/scores_raw": 0.1 * step,
            "objective/scores_std": 0.5,
            "objective/kl": 0.2 * step,
            "objective/entropy": 40.0 - step,
            "completions/mean_length": 30.0,
        }
        for step in range(1, count + 1)
    ]


def reward_rows(count):
    rows = [{"step": step, "loss": 0.7, "accuracy": 0.5, "margin": 0.0} for step in range(1, count + 1)]
    held_out = {"step": count, "eval_loss": 0.4, "eval_accuracy": 0.86, "eval_margin": 1.2, "label_ceiling": 0.93}
    return [*rows, held_out]


def trace(figure, **meta):
    return next(trace for trace in figure.data if all(trace.meta.get(key) == value for key, value in meta.items()))


def texts(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def test_ppo_curves_are_stacked_over_the_episodes():
    figure = figures.ppo_curves(ppo_rows(3), total_episodes=640)
    assert list(trace(figure, key="objective/kl", x="episode").x) == [64, 128, 192]
    assert list(figure.layout.xaxis.range) == [0, 640]
    assert {trace.yaxis for trace in figure.data} == {"y", "y2", "y3", "y4"}
    assert not any(trace.xaxis not in (None, "x") for trace in figure.data)


def test_spread_is_a_band_around_the_score():
    figure = figures.ppo_curves(ppo_rows(2))
    assert list(trace(figure, sign=-1).y) == pytest.approx([-0.4, -0.3])
    assert list(trace(figure, sign=1).y) == pytest.approx([0.6, 0.7])


def test_value_stands_at_the_end_of_each_curve():
    figure = figures.reward_curves(reward_rows(4))
    assert trace(figure, end="accuracy").text[0].strip() == "50 %"
    assert trace(figure, end="loss").x == (4,)


def test_lines_to_compare_with_are_drawn():
    assert {"guessing, ln 2", "guessing, 50 %", "most these noisy labels allow, 93 %"} <= set(
        texts(figures.reward_curves(reward_rows(4)))
    )
    assert not any("allow" in text for text in texts(figures.reward_curves(reward_rows(4)[:-1])))
    base = next(shape for shape in figures.ppo_curves(ppo_rows(3)).layout.shapes if shape.line.color == figures.BASE)
    assert base.y0 == pytest.approx(0.1)


def test_long_history_is_thinned_and_keeps_the_newest_point():
    figure = figures.ppo_curves(ppo_rows(5_000))
    curve = trace(figure, key="objective/kl")
    assert len(curve.x) <= figures.MAX_POINTS
    assert curve.x[-1] == 64 * 5_000


def test_missing_numbers_are_left_out():
    rows = [{"step": 1, "loss": None, "accuracy": 0.5, "margin": 0.1}, {"step": 2, "loss": 0.6}]
    figure = figures.reward_curves(rows)
    assert list(trace(figure, key="loss").x) == [2]
    assert list(trace(figure, key="accuracy").x) == [1]


def test_histograms_share_their_bins_and_hold_every_answer():
    rng = np.random.default_rng(0)
    base, ppo = rng.normal(0, 1, 100).tolist(), rng.normal(1, 1, 80).tolist()
    figure = figures.distributions(base, ppo, "score")
    first, second = (trace for trace in figure.data if trace.type == "bar")
    assert list(first.x) == list(second.x)
    assert (sum(first.y), sum(second.y)) == (100, 80)
    assert [trace.name for trace in figure.data if trace.type == "box"] == ["base", "PPO"]
    assert f"<b>base average {np.mean(base):.2f}</b>".replace("-", "−") in texts(figure)


def test_equal_scores_can_be_drawn():
    figures.distributions([0.5, 0.5], [0.5, 0.5], "score")
