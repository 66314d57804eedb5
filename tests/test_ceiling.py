"""The best possible score at every KL: exact where all answers can be listed, honest about few of them elsewhere."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from html import escape

import numpy as np
import pytest
import torch
from test_ppo_exact import bandit, log_probabilities, tree
from worlds import BOS, small_gpt2, tokenizer_of

from rlhf.compare import answers
from rlhf.compare.answers import AnswerSampler
from rlhf.compare.ceiling import Ceiling, estimate, measure_ceiling, tilt
from rlhf.compare.table import read_rows
from rlhf.config import CompareArguments
from rlhf.models.prompts import PromptReader
from rlhf.runs.directory import EXAMPLE, Run
from rlhf.runs.files import write_json
from rlhf.ui import live, scores
from rlhf.words import share
from rlhf.write.card import model_card
from rlhf.write.report import write_report


@dataclass
class Lookup:
    """Scores the answers of a world by its table."""

    scores: dict
    reader: PromptReader

    def each(self, prompts, answers, ended):
        return torch.tensor([self.scores[tuple(answer)] for answer in answers]), {}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("world", [bandit(), bandit(temperature=0.5), tree()], ids=["bandit", "tempered", "tree"])
def test_where_every_answer_is_known_it_is_the_tilts_value_and_kl(world):
    model, scores = small_gpt2(world.letters, **world.model), world.scores.double()
    reader = PromptReader(tokenizer_of(world.letters), room=None)
    table = Lookup(dict(zip(world.responses, scores.tolist(), strict=True)), reader)
    prompts = [reader.read({"input_ids": [BOS]})] * 4
    sampler = AnswerSampler(table, world.length, world.temperature)
    found = measure_ceiling(model, sampler, prompts, samples=8000)
    reference = log_probabilities(model, world)
    for beta in (2.0, 1.0, 0.5, 0.3):
        log_z = torch.logsumexp(reference + scores / beta, dim=0)  # the closed form: KL = E[r] / beta - log Z
        best = (reference + scores / beta - log_z).exp()
        kl = ((best * scores).sum() / beta - log_z).item()
        gain = (best * scores).sum() - (reference.exp() * scores).sum()
        assert found.at("score", kl).value == pytest.approx(gain.item(), abs=0.01), beta


def made_up(prompts=60, samples=64, seed=0):
    """Scores that are normal with standard deviation 2, and a gold score that follows them with noise."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(prompts, 1)) + 2 * rng.normal(size=(prompts, samples))
    return scores, 0.5 + 0.1 * scores + 0.2 * rng.normal(size=scores.shape)


def test_a_large_model_gives_fewer_answers_at_once(base, monkeypatch):
    """256 answers of gpt2 would hold 2 GB of keys and values, more than its training."""
    model, tokenizer = base
    batches = []

    class Counting:
        reader = PromptReader(tokenizer, room=None)

        def each(self, prompts, responses, ended):
            batches.append(len(prompts))
            return torch.zeros(len(prompts)), {}

    asked = [Counting.reader.read(text) for text in ("How?", "How do I wash a pan?")]
    sampler = AnswerSampler(Counting(), response_length=8, temperature=0.7)
    cache = model(torch.zeros(1, max(len(prompt.ids) for prompt in asked) + 8, dtype=torch.long)).past_key_values
    one = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    for room, expected in ((10 * one, [10] * 12), (one // 2, [1] * 120), (10**9, [120])):
        monkeypatch.setattr(answers, "CACHE_AT_ONCE", room)
        batches.clear()
        assert sum(len(scores) for scores, _ in sampler.sample_each(model, asked, 60, gold=None, seed=0)) == 120
        assert batches == expected


def test_normal_scores_gain_the_square_root_of_twice_the_kl():
    # The tilt of a normal distribution is the normal moved by s^2 / beta, at a KL of (s / beta)^2 / 2.
    found = estimate(*made_up(samples=1500))
    for kl in (0.1, 0.5, 1.0, 2.0):
        assert found.at("score", kl).value == pytest.approx(2 * np.sqrt(2 * kl), rel=0.02)
        assert found.at("gold", kl).value == pytest.approx(0.2 * np.sqrt(2 * kl), rel=0.06)


def test_the_curve_begins_at_the_base_rises_and_ends_where_few_answers_are_left():
    scores, gold = made_up()
    found = estimate(scores, gold)
    assert (found.prompts, found.samples) == scores.shape
    assert found.base_score == pytest.approx(scores.mean()) and found.base_gold == pytest.approx(gold.mean())
    assert found.kl[0] == found.score.value[0] == 0 and found.ess[0] == pytest.approx(64)
    assert (np.diff(found.score.value) > 0).all() and found.ess[-1] >= 2
    assert found.kl[-1] < np.log(64)
    assert found.at("score", 99).value == found.score.value[-1]
    low, high = np.array(found.score.ci_low), np.array(found.score.ci_high)
    assert (low <= found.score.value).all() and (found.score.value <= high).all()


def test_few_answers_show_too_low_a_ceiling_and_what_they_miss_is_added():
    scores, _ = made_up(samples=1024)
    many, few = estimate(scores), estimate(scores[:, :32])
    kl = few.kl[-1]
    seen = few.score.value[-1] - few.score.doubling[-1]
    missing = many.at("score", kl).value - seen
    assert missing > 0.2
    assert abs(missing - few.score.doubling[-1]) < missing / 2
    assert few.settled_kl < kl < many.settled_kl
    assert np.interp(kl, many.kl, many.score.doubling) < few.score.doubling[-1] / 4


def test_best_of_n_lies_below_the_ceiling():
    scores, _ = made_up(prompts=100, samples=512)
    found = estimate(scores)
    for n in (2, 4, 16):
        gain = scores.reshape(100, -1, n).max(axis=2).mean() - scores.mean()
        best = found.at("score", np.log(n) - (n - 1) / n).value
        assert 0.9 * best < gain < best


def test_a_share_has_the_uncertainty_of_both_gains_and_knows_where_a_bound_makes_it_one():
    found = estimate(*made_up(samples=256))
    best = found.at("score", 1.0)
    gain = {"value": best.value / 2, "ci_low": best.value / 2 - 0.1, "ci_high": best.value / 2 + 0.2}
    half = found.share("score", gain, 1.0)
    assert half["value"] == pytest.approx(0.5) and half["bound"] == ""
    assert 0.5 - half["ci_low"] > 0.1 / best.value and half["ci_high"] - 0.5 > 0.2 / best.value
    assert found.share("score", gain, 1.0, at_most=True)["bound"] == "at least"
    assert found.share("score", gain, found.kl[-1] + 1)["bound"] == "at most"
    assert found.share("score", gain, 0.0) is None
    assert estimate(made_up()[0]).share("gold", gain, 1.0) is None


def test_it_is_read_as_it_was_written():
    found = estimate(*made_up(samples=32))
    assert Ceiling.read(json.loads(json.dumps(asdict(found), allow_nan=False))) == found


def test_equal_scores_leave_nothing_to_gain():
    found = estimate(np.ones((4, 16)))
    assert found.score.value == pytest.approx([0.0] * len(found.kl)) and found.kl[-1] == pytest.approx(0)
    assert found.share("score", {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0}, 1.0) is None
    json.dumps(asdict(found), allow_nan=False)


def test_tilting_reaches_the_best_answer_of_each_prompt():
    scores = np.array([[0.0, 1.0, 3.0], [2.0, 2.0, 5.0]])
    hard = tilt(scores, None, np.array([0.0, 1e3]))
    assert hard.score[:, 0] == pytest.approx([0, 0]) and hard.kl[:, 0] == pytest.approx([0, 0])
    assert hard.score[:, 1] == pytest.approx([3 - 4 / 3, 2]) and hard.kl[:, 1] == pytest.approx(np.log([3, 3]))
    assert hard.ess[:, 1] == pytest.approx([1, 1])


# ---------------------------------------------------------------------------------------------------------------------
# Where it is found and shown


@pytest.fixture
def demo(root):
    """A copy of the example, as a demo that has measured the ceiling would have left it."""
    left_out = shutil.ignore_patterns("*.safetensors", "samples.jsonl", "compare")
    run = Run(shutil.copytree(EXAMPLE, root / "demo-20260101-000000-abcd", ignore=left_out))
    found = estimate(*made_up(samples=128))
    write_json(run.path / "ppo" / "ceiling.json", asdict(found))
    summary, sweep = run.summary(), run.sweep()
    test = summary["splits"]["test"]
    for name, against in test["against_base"].items():
        kl = test["models"][name]["kl"]["value"]
        against["share"] = {kind: found.share(kind, against[kind]["gain"], kl) for kind in ("score", "gold")}
        test["models"][name]["kl_by_position"] = [4.0, 2.2]
    for point in sweep["points"]:
        kl = point["kl"]["value"]
        point["share"] = {kind: found.share(kind, point[kind], kl) for kind in ("score", "gold")}
    write_json(run.path / "summary.json", summary)
    write_json(run.path / "sweep" / "sweep.json", sweep | {"ceiling": asdict(found)})
    return run


def without_shares(summary):
    """As a comparison leaves it that has measured no ceiling."""
    for of_split in summary["splits"].values():
        for against in of_split["against_base"].values():
            against.pop("share", None)
    return summary


def test_a_run_finds_it_in_its_stages_and_in_the_run_that_holds_it(demo):
    content = json.loads((demo.path / "ppo" / "ceiling.json").read_text())
    assert demo.ceiling() == content and Run(demo.path / "reward").ceiling() == content
    (demo.path / "ppo" / "ceiling.json").unlink()
    assert demo.ceiling() == {} and Run(demo.path / "reward").ceiling() == {}


def test_a_comparison_takes_only_one_of_the_same_models_and_answers(demo):
    from rlhf.commands.ceiling import known_ceiling

    reward_path = demo.reward_model_path()
    assert known_ceiling([demo], CompareArguments(), reward_path) == Ceiling.read(demo.ceiling())
    for other in ({"temperature": 1.0}, {"response_length": 9}, {"prompts_file": "x"}, {"ceiling_samples": 500}):
        assert known_ceiling([demo], CompareArguments(**other), reward_path) is None
    assert known_ceiling([demo], CompareArguments(base_model_name_or_path="gpt2"), reward_path) is None
    assert known_ceiling([demo], CompareArguments(), str(EXAMPLE)) is None
    assert known_ceiling([demo], CompareArguments(ceiling_samples=0), reward_path) is None


def test_the_live_view_draws_the_way_below_it_and_then_only_new_dots(demo):
    first = live.poll({"run": demo.id})
    part = first["parts"]["ceiling"]
    ppo = Run(demo.path / "ppo")
    assert part["rows"] == len(ppo.metrics()) and "figure" in part
    ppo.log({**ppo.metrics()[-1], "objective/kl": 2.5, "objective/scores_raw": 3.0})
    second = live.poll({"run": demo.id, "seen": first["seen"]})["parts"]["ceiling"]
    assert second["points"] == {"objective/kl": [2.5], "objective/scores_raw": [3.0]} and "figure" not in second
    (demo.path / "ppo" / "ceiling.json").unlink()
    assert "ceiling" not in live.poll({"run": demo.id})["parts"]


def test_the_scores_say_the_share_and_how_answers_begin(demo):
    questions = scores.read_questions(demo.path / "scores.csv", "test", "score", "ppo")
    summary = demo.summary()
    table = scores.averages(questions, "score", "test", "ppo", summary)
    possible = share(summary["splits"]["test"]["against_base"]["ppo"]["share"]["score"])
    assert "Share of the largest possible gain at that KL" in table and possible in table
    assert "Share" not in scores.averages(questions, "score", "test", "ppo", without_shares(summary))
    of_ppo = [row["response"] for row in read_rows(demo.path / "scores.csv")
              if (row["split"], row["model"]) == ("test", "ppo")]  # fmt: skip
    (opening, count), *_ = Counter(" ".join(text.split()[:3]) for text in of_ppo).most_common(1)
    assert escape(f"{opening} …") in scores.openings(questions, "ppo")
    assert f">{round(100 * count / len(of_ppo))} %</td>" in scores.openings(questions, "ppo")


@pytest.mark.process
def test_report_and_card_say_the_share_and_do_without(demo, tmp_path):
    text = write_report(demo.path, tmp_path / "REPORT.md", demo.path / "sweep", demo.path / "methods").read_text()
    possible = share(demo.summary()["splits"]["test"]["against_base"]["ppo"]["share"]["score"])
    assert f"| share of the largest gain in score that any policy could have at this KL | {possible} |" in text
    assert "from 128 answers of the base model to each of 60 test prompts" in text and "at most 0.6 |" in text
    assert f"share of the largest possible gain in score at that KL | {possible} |" in model_card(
        demo.path / "ppo" / "model"
    )
    write_json(demo.path / "summary.json", without_shares(demo.summary()))
    assert "possible" not in model_card(demo.path / "ppo" / "model")
