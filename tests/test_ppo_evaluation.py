"""Evaluation on held-out prompts: policy and reference side by side."""

import pytest
import torch
from worlds import EOS, PROMPTS, SIZE, Listener, fours, quick, tokenizer_of, weights

from rlhf.config import BadInput


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_fresh_policy_gains_nothing_over_itself(tmp_path):
    trainer = quick(tmp_path, eval_dataset=list(PROMPTS))
    metrics = trainer.evaluate()
    assert metrics["eval/gain"] == metrics["eval/gain_ci_low"] == metrics["eval/gain_ci_high"] == 0
    assert metrics["eval/score"] == metrics["eval/base_score"]
    assert metrics["eval/win_rate"] == 0.5
    assert metrics["eval/kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("count", [3, 37])
def test_evaluation_uses_every_held_out_prompt(count, tmp_path):
    asked = Listener()
    held_out = [f"t{3 + number % 9} t{3 + number // 9}" for number in range(count)]
    trainer = quick(tmp_path, reward_funcs=asked, eval_dataset=held_out, learning_rate=2e-2)
    trainer.train()
    asked.prompts, asked.ids = [], []
    metrics = trainer.evaluate()
    assert asked.prompts == held_out * 2  # the policy's answers, then the reference's
    own, base = asked.ids[:count], asked.ids[count:]
    assert metrics["eval/score"] == pytest.approx(sum(map(fours, own)) / count, abs=1e-5)
    assert metrics["eval/base_score"] == pytest.approx(sum(map(fours, base)) / count, abs=1e-5)
    assert metrics["eval/gain"] == pytest.approx(metrics["eval/score"] - metrics["eval/base_score"], abs=1e-5)
    assert metrics["eval/gain_ci_low"] <= metrics["eval/gain"] <= metrics["eval/gain_ci_high"]
    wins = [(fours(a) > fours(b)) + 0.5 * (fours(a) == fours(b)) for a, b in zip(own, base, strict=True)]
    assert metrics["eval/win_rate"] == pytest.approx(sum(wins) / count)
    assert metrics["eval/mean_length"] == pytest.approx(sum(map(len, own)) / count, abs=1e-5)
    assert metrics["eval/eos_rate"] == pytest.approx(sum(ids[-1] == EOS for ids in own) / count, abs=1e-5)
    assert metrics["eval/kl"] > 0


def test_evaluation_repeats_itself_and_leaves_training_alone(tmp_path):
    plain = quick(tmp_path / "plain")
    plain.train()
    watched = quick(tmp_path / "watched", eval_dataset=["<bos> t4", "t5"], eval_strategy="steps", eval_steps=1,
                    num_sample_generations=4)  # fmt: skip
    watched.train()
    assert torch.equal(weights(plain), weights(watched))
    lines = [line for line in watched.state.log_history if "eval/score" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert len({line["eval/base_score"] for line in lines}) == 1
    assert watched.evaluate() == watched.evaluate()


def test_evaluation_of_several_sets_by_name(tmp_path):
    sets = {"short": ["<bos>"], "long": [{"prompt": "t3 t4 t5"}, {"prompt": "t6 t7"}]}
    trainer = quick(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    assert {name.split("/")[0] for name in metrics} == {"eval_short", "eval_long"}
    assert {"eval_short/gain", "eval_long/gain", "eval_long/kl"} <= metrics.keys()
    assert len([line for line in trainer.state.log_history if "eval_long/score" in line]) == 3
    other = trainer.evaluate(["t9"], metric_key_prefix="test")
    assert "test/score" in other and "test/gain" in other


def test_evaluation_may_take_several_samples_of_each_prompt(tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, eval_dataset=["<bos>", "t3"], eval_num_samples_per_prompt=6)
    trainer.evaluate()
    assert asked.prompts == (["<bos>"] * 6 + ["t3"] * 6) * 2


def test_evaluation_without_prompts_is_refused(tmp_path):
    with pytest.raises(BadInput, match="eval_dataset"):
        quick(tmp_path).evaluate()


def test_sample_completions(tmp_path, capsys):
    trainer = quick(tmp_path, eval_dataset=["<bos> t4", "t5"], log_completions=True, num_completions_to_print=1)
    made = trainer.generate_completions()
    assert [sample["index"] for sample in made] == [0, 1]
    assert [sample["prompt"] for sample in made] == ["<bos> t4", "t5"]
    assert all(isinstance(sample["score"], float) and isinstance(sample["response"], str) for sample in made)
    assert made == trainer.generate_completions()
    printed = "".join(capsys.readouterr())
    assert "<bos> t4" in printed and "'t5' ->" not in printed
    best = trainer.generate_completions(["t5", {"prompt": "t5"}], greedy=True)
    assert best[0]["response"] == best[1]["response"] and best[0]["score"] == best[1]["score"]
    ids = tokenizer_of(SIZE)("t5", return_tensors="pt").input_ids
    own = trainer.model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, 1:]
    assert best[0]["response"] == tokenizer_of(SIZE).decode(own, skip_special_tokens=True).strip()
