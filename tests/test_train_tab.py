"""The Train tab: what its headline claims, what it says about a run, and how it behaves in a browser."""

import json
import random

import pytest

from rlhf import metrics
from rlhf.figures import curves
from rlhf.runs.directory import EXAMPLE, Run
from rlhf.ui import live
from rlhf.ui.headline import headline, margin
from rlhf.words import number


PPO_ROWS, REWARD_ROWS = Run(EXAMPLE / "ppo").metrics(), Run(EXAMPLE / "reward").metrics()
RUNNING, ENDED = {"state": "running"}, {"state": "finished"}


def scored(values):
    """Updates of the example with other scores."""
    return [{**PPO_ROWS[n], metrics.SCORE: value} for n, value in enumerate(values)]


# One number for one thing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 30, 200])
def test_headline_curve_and_path_say_the_same_average(count):
    rows = PPO_ROWS[:count]
    shown = curves.recent(rows, metrics.SCORE)
    figure = curves.ppo_curves(rows)
    label = next(trace for trace in figure.data if trace.meta.get("end") == metrics.SCORE)
    assert label.text[-1].strip() == number(shown, 2)
    assert f"to {number(shown, 2)}" in headline(RUNNING, {"ppo": rows})["text"]


def test_a_growing_curve_ends_in_the_same_average_as_one_that_is_drawn_anew(root):
    example = live.Snapshot(EXAMPLE)
    seen = live.news(example, {})["seen"]
    part = live.news(example, {**seen, "ppo": 150, "ceiling": 150})["parts"]
    figure = live.news(example, {})["parts"]["ppo"]["figure"]
    ends = {trace["meta"]["end"]: trace for trace in figure["data"] if "end" in trace["meta"]}
    assert len(part["ppo"]["points"][metrics.SCORE]) == 50
    for key, end in part["ppo"]["ends"].items():
        assert end == {name: list(ends[key][name]) for name in ("x", "y", "text")}
    path = live.news(example, {})["parts"]["ceiling"]["figure"]["data"][-1]
    assert part["ceiling"]["ends"][metrics.SCORE]["y"] == list(path["y"])


# Nothing is claimed that chance alone could have made ----------------------------------------------------------------


def test_four_updates_are_too_short_to_tell():
    said = headline(ENDED, {"ppo": scored([1.40, 1.5, 1.2, 1.13])})
    assert said["tone"] == "short" and said["text"].startswith("Too short to tell")
    assert headline(RUNNING, {"ppo": PPO_ROWS[:4]})["text"].startswith("Too early to tell")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_point_of_a_curve_is_not_learning(count):
    for rows in ({"reward": REWARD_ROWS[: count + 1]}, {"ppo": PPO_ROWS[:count]}):
        assert headline(RUNNING, rows)["tone"] in ("short", "none")


def test_a_score_that_only_jumps_is_seldom_called_a_change():
    dice, claims = random.Random(0), 0
    for _ in range(200):
        said = headline(ENDED, {"ppo": scored([dice.gauss(1, 0.3) for _ in range(40)])})
        claims += said["tone"] in ("good", "bad")
    assert claims <= 20  # one in twenty, and the luck of the dice


def test_a_trend_does_not_count_as_noise():
    dice = random.Random(1)
    still = [dice.gauss(0, 0.3) for _ in range(100)]
    rising = [value + 0.05 * n for n, value in enumerate(still)]
    assert margin(rising, 8, 8) == pytest.approx(margin(still, 8, 8), rel=0.05)
    said = headline(ENDED, {"ppo": scored(rising)})
    assert said["tone"] == "good" and "95 % interval +" in said["details"]


def test_a_model_that_learned_its_few_pairs_by_heart_has_not_learned():
    """Right on all pairs it trains on, and on 3 of 4 that it does not know."""
    rows = [{"step": n, "accuracy": 1.0, "loss": 0.01} for n in range(20)]
    rows.append({"step": 20, "eval_accuracy": 0.75, "eval_runtime": 0.5, "eval_samples_per_second": 8.0})
    said = headline(ENDED, {"reward": rows})
    assert said["tone"] == "short" and "75 % of 4 held-out pairs" in said["text"]
    rows.append({"step": 20, "eval_accuracy": 0.75, "eval_pairs": 1000})
    assert headline(ENDED, {"reward": rows})["tone"] == "good"


def test_a_run_that_failed_before_it_logged_anything_keeps_nothing_and_says_so():
    failed = {"state": "failed", "message": "The model could not be downloaded."}
    assert "below" not in json.dumps(headline(failed, {}) | headline(failed, {"ppo": []}))
    assert "below" in headline(failed, {"ppo": PPO_ROWS[:1]})["details"]
