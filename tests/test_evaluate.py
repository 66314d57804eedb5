"""The comparison: statistics that can fail, KL that is exact, a table that a spreadsheet can open."""

import csv

import numpy as np
import pytest
import torch

from rlhf.evaluate import (
    Answers,
    answer_prompts,
    bootstrap,
    distinct_2,
    paired,
    sequence_kl,
    summarize,
    table,
    write_csv,
)


def test_bootstrap_interval_covers_a_known_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        _, low, high = bootstrap(rng.normal(0.3, 1.0, 100))
        covered += low <= 0.3 <= high
    assert 51 <= covered <= 60  # 95 % of 60 is 57


def test_paired_statistics_by_hand():
    gain, wins = paired(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0, 5.0]))
    assert gain["mean"] == pytest.approx(0.5) and wins["value"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert gain["ci_low"] < 0 < gain["ci_high"]
    _, rounded = paired(np.ones(4), np.ones(4) + 1e-6)
    assert rounded["value"] == 0.5  # the same answers, scored in other batches
    same, even = paired(np.ones(5), np.ones(5))
    assert (same["mean"], same["ci_low"], same["ci_high"]) == (0, 0, 0) and even["value"] == 0.5


def test_distinct_2_counts_word_pairs():
    assert distinct_2(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct_2([]) == 0


def test_a_model_against_itself_shows_nothing(base):
    model, tokenizer = base
    prompts = ["How do I cook rice?\n", "hello\n", "Who won?\n"]
    first, second = (
        answer_prompts(model, tokenizer, prompts, max_new_tokens=30, temperature=0.7, seed=4) for _ in range(2)
    )
    assert first.texts == second.texts
    assert sequence_kl(model, model, first, 0.7) == pytest.approx([0, 0, 0], abs=1e-4)
    assert [len(row) - n for row, n in zip(first.rows, first.prompt_lengths, strict=True)] == first.tokens()


def test_kl_is_the_sum_of_each_tokens_exact_kl(tiny_gpt2):
    import copy

    other = copy.deepcopy(tiny_gpt2)
    torch.nn.init.normal_(other.lm_head.weight, std=0.2)
    answers = Answers([[5, 6, 7, 8, 2], [9, 3, 2]], [2, 1], ["", ""], [True, True])
    expected = []
    for row, start in zip(answers.rows, answers.prompt_lengths, strict=True):
        with torch.no_grad():
            p, q = (
                torch.log_softmax(model(torch.tensor([row])).logits[0] / 0.7, dim=-1) for model in (other, tiny_gpt2)
            )
        expected.append((p.exp() * (p - q)).sum(dim=-1)[start - 1 : len(row) - 1].sum().item())
    assert sequence_kl(other, tiny_gpt2, answers, 0.7) == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0


def test_summary_and_csv(tmp_path):
    prompts = ["=1+1", "two", "three"]
    answers = Answers([[1, 2]] * 3, [1] * 3, ["a b", "b c", "c d"], [True, True, False])
    rows = []
    for split in ("test", "unseen"):
        for model, shift in (("base", 0.0), ("ppo", 1.0)):
            scores = torch.tensor([0.1, 0.2, 0.3]) + shift
            rows += table(
                model, split, prompts, answers, scores, [0.5 * shift] * 3, lambda p, r, s=shift: 0.2 + 0.5 * s
            )
    summary = summarize(rows, 9.0, 9.0)
    assert summary["gain"]["mean"] == pytest.approx(1.0) and summary["win_rate"]["value"] == 1
    assert summary["gold_gain"]["mean"] == pytest.approx(0.5) and summary["kl"]["mean"] == 0.5
    assert summary["unseen_topics"]["gold_gain"]["mean"] == pytest.approx(0.5)
    assert summary["base"]["eos_rate"] == pytest.approx(2 / 3) and summary["base"]["n"] == 3
    write_csv(tmp_path / "scores.csv", rows)
    read = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert len(read) == 12 and read[0]["prompt"] == "'=1+1"  # no spreadsheet runs it
