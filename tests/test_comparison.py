"""`scores.csv` and `summary.json`: what is written is read back, what is concluded is what the rows hold."""

import json

import numpy as np
import pytest

from rlhf.compare import stats
from rlhf.compare.table import COLUMNS, Writer, cautions, over_seeds, read_rows, summarize
from rlhf.config import BadInput


def rows(models, prompts=40, samples=2, gold=True, seed=0):
    """Made-up answers: models is {name: (shift of the score, shift of gold, shift of the length)}."""
    rng = np.random.default_rng(seed)
    for name, (score, of_gold, longer) in models.items():
        for prompt in range(prompts):
            for sample in range(samples):
                noise = rng.normal(size=2)
                yield {
                    "prompt": f"question {prompt}", "split": "test", "model": name, "sample": sample,
                    "response": f"word {prompt} and {name}", "score": prompt / 10 + score + 0.3 * noise[0],
                    "gold": 0.5 + of_gold + 0.05 * noise[1] if gold else None, "kl": 0.0 if name == "base" else 4.0,
                    "tokens": 8 + longer + sample, "ended": sample == 0, "base_nll": 3.0,
                }  # fmt: skip


def found_for(*shifts, **settings):
    given = rows({"base": (0, 0, 0), "ppo": shifts}, **settings)
    numbers = ({**row, "ended": float(row["ended"])} for row in given)
    return summarize(numbers, "base")["test"]


def test_rows_are_read_as_they_were_written_and_no_spreadsheet_runs_them(tmp_path):
    given = list(rows({"base": (0, 0, 0)}, prompts=3, gold=False))
    given[0]["prompt"], given[1]["response"], given[2]["response"] = "=1+1", '-5 \n"degrees", I\'d say', "'quoted'"
    given[3]["response"], given[4]["response"], given[5]["response"] = "-1.5", "'=1", "\r@x"
    with Writer(tmp_path / "scores.csv") as file:
        file.write(given)
    written = (tmp_path / "scores.csv").read_bytes().decode()
    assert written.splitlines()[0] == ",".join(COLUMNS)
    assert "'=1+1" in written and "'\r@x" in written and ",-1.5," in written
    read = list(read_rows(tmp_path / "scores.csv"))
    for one, other in zip(read, given, strict=True):
        assert one["prompt"] == other["prompt"] and one["response"] == other["response"]
        assert one["score"] == pytest.approx(other["score"]) and one["gold"] is None
        assert one["ended"] == float(other["ended"]) and one["sample"] == str(other["sample"])


def test_a_models_answers_in_numbers():
    base = found_for(1.0, 0.1, 0)["models"]["base"]
    assert (base["prompts"], base["samples"], base["eos_rate"]) == (40, 2, 0.5)
    assert base["mean_length"] == 8.5 and base["kl"] == {"value": 0, "ci_low": 0, "ci_high": 0}
    assert base["base_perplexity"] == pytest.approx(np.exp(3 / 8.5))
    assert base["unique"] == 0.5  # both samples of a prompt say the same
    assert base["distinct_2"] == pytest.approx((2 * 40 + 1) / (3 * 80))  # "and base" is in all of them


def test_the_gain_is_that_of_each_prompt():
    against = found_for(1.0, 0.1, 0)["against_base"]["ppo"]
    given = list(rows({"base": (0, 0, 0), "ppo": (1.0, 0.1, 0)}))
    base, ppo = (
        np.array([r["score"] for r in given if r["model"] == name]).reshape(40, 2) for name in ("base", "ppo")
    )
    expected = stats.paired(base, ppo)
    assert against["score"]["gain"] == expected.gain.as_dict() and against["score"]["p"] == expected.p
    assert against["gold"]["gain"]["value"] == pytest.approx(0.1, abs=0.03)
    json.dumps(against)


def test_a_model_is_held_against_the_best_of_n_as_well():
    models = {"base": (0, 0, 0), "ppo": (1.0, 0.2, 0), "best-of-4": (0.5, 0.3, 0)}
    given = list(rows(models))
    found = summarize(given, "base")["test"]["against_base"]
    wins = {key: interval["value"] for key, interval in found["ppo"]["best_of"]["best-of-4"].items()}
    assert wins["score"] > 0.5 > wins["gold"] and found["best-of-4"]["best_of"] == {}


def test_without_a_gold_scorer_there_is_no_gold():
    found = found_for(1.0, 0.0, 0, gold=False)
    assert found["against_base"]["ppo"]["gold"] is None and found["models"]["ppo"]["gold_mean"] is None


def test_models_that_answered_other_prompts_are_not_paired():
    given = list(rows({"base": (0, 0, 0), "ppo": (1.0, 0.1, 0)}))
    for row in given:
        row["prompt"] = row["prompt"] + " again" if row["model"] == "ppo" else row["prompt"]
    with pytest.raises(BadInput, match="ppo and base did not answer the same prompts"):
        summarize(given, "base")


def test_trainings_with_other_seeds_are_joined_by_students_t():
    names = ["ppo", "ppo-seed-1", "ppo-seed-2"]
    gains = zip(names, (1.0, 1.5, 0.8), strict=True)
    against = {name: found_for(score, 0.1, 0)["against_base"]["ppo"] for name, score in gains}
    found, each = over_seeds(against, names), [against[name]["score"]["gain"]["value"] for name in names]
    assert found["models"] == names and found["score"]["value"] == pytest.approx(np.mean(each))
    assert found["score"]["ci_low"] < min(each) and found["score"]["ci_high"] > max(each)  # three say little
    interval = stats.across([1.0, 2.0, 3.0])  # two degrees of freedom: 4.303 standard errors of 1 / sqrt(3)
    assert (interval.value, interval.low) == (pytest.approx(2), pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3))


@pytest.mark.parametrize(
    ("shifts", "settings", "warned"),
    [
        ((1.0, 0.1, 0), {}, None),
        ((0.0, 0.0, 0), {}, "includes zero"),
        ((1.0, -0.2, 0), {}, "gold score fell"),
        ((1.0, 0.1, 0), {"prompts": 8}, "8 prompts are too few"),
    ],
)
def test_a_reader_is_warned_where_the_numbers_would_fool(shifts, settings, warned):
    against = found_for(*shifts, **settings)["against_base"]["ppo"]
    told = cautions(against, "ppo", {"told_from_chance": True})
    assert (told == []) if warned is None else any(warned in caution for caution in told)


def test_a_gain_that_is_all_length_is_said_to_be():
    given = []
    rng = np.random.default_rng(1)
    for name, longer in (("base", 0), ("ppo", 6)):
        for row in rows({name: (0, 0, 0)}, prompts=200, samples=1):
            tokens = int(8 + longer + rng.integers(-6, 7))
            score = 0.3 * tokens + 0.01 * rng.normal()
            given.append({**row, "tokens": tokens, "score": score, "ended": 1.0})
    told = cautions(summarize(given, "base")["test"]["against_base"]["ppo"], "ppo", None)
    assert any("explained by length" in caution for caution in told)


def test_scores_of_a_reward_model_at_chance_mean_nothing():
    against = found_for(1.0, 0.1, 0)["against_base"]["ppo"]
    assert "not better than chance" in cautions(against, "ppo", {"told_from_chance": False})[0]
