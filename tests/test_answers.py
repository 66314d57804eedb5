"""Answers of several models to the same prompts: scored by one function, with an exact KL, in bounded memory."""

import copy

import numpy as np
import pytest
import torch

from rlhf.compare.answers import Answers, AnswerSampler, Contender, compare, kl_and_nll
from rlhf.compare.stats import best_of_n_kl, paired
from rlhf.models import load_reward_model
from rlhf.models.packed import logits_at
from rlhf.models.prompts import PromptReader
from rlhf.models.scoring import RewardScorer


PROMPTS = {"test": ["How do I cook rice?\n", "hello\n", "Who won?\n", "Is honey vegan?\n"], "unseen": ["Why?\n"]}


@pytest.fixture(scope="module")
def sampler(base):
    from rlhf.config import ASSETS

    model, tokenizer = load_reward_model(str(ASSETS / "example"))
    scorer = RewardScorer([model], [tokenizer], [1.0], PromptReader(base[1], room=None))
    return AnswerSampler(scorer, response_length=24, temperature=0.7)


def rows_of(contenders, sampler, prompts=PROMPTS, **settings):
    return [
        row for rows in compare(contenders, sampler, prompts, **{"samples": 3, "seed": 0} | settings) for row in rows
    ]


def test_every_model_answers_every_prompt_as_often(base, sampler):
    model, _ = base
    rows = rows_of(
        [Contender("base", lambda: model), Contender("again", lambda: model)], sampler, gold=lambda prompt, text: 0.5
    )
    assert len(rows) == 2 * 3 * 5
    keys = {(row["split"], row["model"], row["prompt"], row["sample"]) for row in rows}
    assert len(keys) == len(rows) and {row["sample"] for row in rows} == {0, 1, 2}
    assert all(row["gold"] == 0.5 and row["prompt"] == row["prompt"].strip() for row in rows)


@pytest.mark.process
def test_a_model_against_itself_draws_other_numbers_and_is_no_distance_away(base, sampler):
    model, _ = base
    rows = rows_of([Contender("base", lambda: model), Contender("again", lambda: copy.deepcopy(model))], sampler)
    said = {name: [row["response"] for row in rows if row["model"] == name] for name in ("base", "again")}
    assert said["base"] != said["again"]
    assert max(abs(row["kl"]) for row in rows) < 1e-4
    assert rows == rows_of(
        [Contender("base", lambda: model), Contender("again", lambda: copy.deepcopy(model))], sampler
    )


@pytest.mark.process
def test_a_model_against_itself_shows_no_gain(base, sampler):
    from rlhf.data import load_prompts

    model, _ = base
    prompts = {"test": load_prompts("everyday", "test")[:120]}
    rows = rows_of([Contender("base", lambda: model), Contender("again", lambda: model)], sampler, prompts, samples=1)
    one, other = (np.array([row["score"] for row in rows if row["model"] == name]) for name in ("base", "again"))
    result = paired(one, other)
    assert result.gain.low <= 0 <= result.gain.high and result.win_rate.low <= 0.5 <= result.win_rate.high
    assert result.p > 0.01


@pytest.mark.process
def test_the_best_of_several_is_the_one_that_scores_highest(base, sampler):
    model, _ = base
    rows = rows_of([Contender("base", lambda: model), Contender("best-of-8", lambda: model, best_of=8)], sampler)
    plain, best = (np.mean([row["score"] for row in rows if row["model"] == name]) for name in ("base", "best-of-8"))
    assert best > plain + 0.5
    assert {row["kl"] for row in rows if row["model"] == "best-of-8"} == {best_of_n_kl(8)}
    asked = [sampler.scorer.reader.read(prompt) for prompt in PROMPTS["test"]]
    chosen = sampler.best_of(4, model, asked, torch.Generator().manual_seed(1))
    tries = sampler.sample(model, [prompt for prompt in asked for _ in range(4)], torch.Generator().manual_seed(1))
    assert chosen.scores == [max(tries.scores[at : at + 4]) for at in range(0, 16, 4)]
    assert all(row[: len(prompt.ids)] == prompt.ids for row, prompt in zip(chosen.rows, asked, strict=True))


@pytest.mark.parametrize("tokens_at_once", [1, 2, 100])
def test_kl_and_likelihood_are_the_sums_of_each_tokens(tiny_gpt2, tokens_at_once, monkeypatch):
    tables = []

    def watched(model, states, temperature):
        tables.append(len(states))
        return logits_at(model, states, temperature)

    monkeypatch.setattr("rlhf.compare.answers.logits_at", watched)
    monkeypatch.setattr("rlhf.compare.answers.LOGITS_AT_ONCE", tokens_at_once * 40)
    other = copy.deepcopy(tiny_gpt2)
    torch.nn.init.normal_(other.lm_head.weight, std=0.2)
    answers = Answers([[5, 6, 7, 8, 2], [9, 3, 2]], [2, 1], ["", ""], [True, True], [0.0, 0.0])
    kls, nlls = [], []
    for row, start in zip(answers.rows, answers.prompt_lengths, strict=True):
        with torch.no_grad():
            logits = [model(torch.tensor([row])).logits[0][start - 1 : -1] for model in (other, tiny_gpt2)]
        p, q = (torch.log_softmax(of_model / 0.7, dim=-1) for of_model in logits)
        kls.append((p.exp() * (p - q)).sum(dim=1).tolist())
        plain = torch.log_softmax(logits[1], dim=-1)
        nlls.append(-sum(plain[at, token].item() for at, token in enumerate(row[start:])))
    found = kl_and_nll(other, tiny_gpt2, answers, 0.7)
    for of_tokens, expected in zip(found[0], kls, strict=True):
        assert of_tokens == pytest.approx(expected, rel=1e-4) and min(of_tokens) > 0
    assert found[1] == pytest.approx(nlls, rel=1e-4)
    assert max(tables) == min(tokens_at_once, 5)


@pytest.mark.process
def test_rows_come_a_batch_at_a_time(base, sampler):
    model, _ = base
    prompts = {"test": [f"What is {number} plus one?\n" for number in range(150)]}
    sizes = [len(rows) for rows in compare([Contender("base", lambda: model)], sampler, prompts, samples=1, seed=0)]
    assert sizes == [64, 64, 22]
