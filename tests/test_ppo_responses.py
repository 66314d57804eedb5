"""Responses and their scores: how one ends, what it is charged for, and the unit that scores are measured in."""

import math

import pytest
import torch
from worlds import (
    EOS,
    PROMPTS,
    SIZE,
    Listener,
    flat,
    fours,
    quick,
    rearrange,
    small_gpt2,
    undecided,
    updates_of,
    weights,
    weights_after,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_responses_that_were_cut_off_teach_nothing_where_they_are_masked(tmp_path):
    """Whatever they score, the weights come out the same."""
    found = []
    for worth in (0.0, 50.0):

        def score(ids, worth=worth):
            return fours(ids) if ids[-1] == EOS else worth

        trainer = quick(tmp_path, mask_truncated_completions=True, score=score, total_episodes=16)
        found.append(weights_after(trainer))
        assert 0 < updates_of(trainer)[0]["val/num_eos_tokens"] < 16
    assert torch.equal(*found)
    assert not torch.equal(found[0], weights(quick(tmp_path)))


def test_an_update_of_nothing_but_cut_off_responses_leaves_the_weights_alone(tmp_path, monkeypatch):
    def cut_off(generation):
        generation.ended[:] = False
        return generation

    rearrange(monkeypatch, cut_off)
    trainer = quick(tmp_path, mask_truncated_completions=True)
    before = weights(trainer)
    assert torch.equal(weights_after(trainer), before)
    assert all(math.isfinite(value) for line in updates_of(trainer) for value in line.values())


def test_the_penalty_for_not_ending_goes_by_how_a_response_finished(tmp_path):
    """With another stop token, the tokenizer's end token within a response is a token like any other."""
    asked = Listener()
    trainer = quick(
        tmp_path, reward_funcs=asked, missing_eos_penalty=3.0, stop_token_id=4, total_episodes=16, response_length=8
    )
    trainer.train()
    cut = [ids for ids in asked.ids if ids[-1] != 4]
    assert 0 < len(cut) < 16
    assert any(EOS in ids[:-1] for ids in asked.ids)  # it ended nothing
    assert all(4 not in ids[:-1] for ids in asked.ids)
    line = updates_of(trainer)[0]
    raw = sum(map(fours, asked.ids)) / 16
    assert line["objective/eos_penalty"] == pytest.approx(3.0 * len(cut) / 16)
    assert line["objective/scores_raw"] == pytest.approx(raw, abs=1e-5)
    assert line["objective/scores"] == pytest.approx(raw - 3.0 * len(cut) / 16, abs=1e-5)
    assert line["val/num_eos_tokens"] == 16 - len(cut)
    assert line["completions/clipped_ratio"] == pytest.approx(len(cut) / 16)


def test_a_response_that_ends_with_its_last_token_is_not_charged(tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, missing_eos_penalty=1.0, response_length=1, total_episodes=64)
    trainer.train()
    ended = [sum(ids == [EOS] for ids in asked.ids[16 * i : 16 * i + 16]) for i in range(4)]
    assert sum(ended) > 0
    for count, line in zip(ended, updates_of(trainer), strict=True):
        assert line["val/num_eos_tokens"] == count
        assert line["objective/eos_penalty"] == pytest.approx(1 - count / 16)


@pytest.mark.parametrize("word", ["none", None])
def test_without_a_stop_token_all_responses_have_full_length(word, tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, stop_token=word)
    trainer.train()
    assert {len(ids) for ids in asked.ids} == {5}
    assert any(EOS in ids for ids in asked.ids)
    assert all(line["completions/min_length"] == 5 for line in updates_of(trainer))


def test_by_default_the_end_token_ends_a_response(tmp_path):
    asked = Listener()
    quick(tmp_path, reward_funcs=asked).train()
    assert any(ids[-1] == EOS for ids in asked.ids)
    assert not any(EOS in ids[:-1] for ids in asked.ids)


def test_each_prompt_is_answered_as_often_as_asked_for(tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, train_dataset=PROMPTS[:4], num_generations=4, total_episodes=32)
    trainer.train()
    for update in (asked.prompts[:16], asked.prompts[16:]):
        assert {prompt: update.count(prompt) for prompt in PROMPTS[:4]} == dict.fromkeys(PROMPTS[:4], 4)
    assert len({tuple(ids) for ids in asked.ids[:16]}) > 8
    assert trainer.state.epoch == 2


def test_scores_are_clipped_after_they_are_measured(tmp_path):
    trainer = quick(tmp_path, score=lambda ids: 10.0 if ids[0] < 6 else 0.5, reward_clip_range=2.0, total_episodes=16)
    trainer.train()
    line = updates_of(trainer)[0]
    share = (line["objective/scores_raw"] - 0.5) / 9.5
    assert 0 < share < 1
    assert line["objective/scores_clipped"] == pytest.approx(share, abs=1e-5)
    assert line["objective/scores"] == pytest.approx(2.0 * share + 0.5 * (1 - share), abs=1e-5)


def test_scores_may_be_measured_in_the_references_standard_deviations(tmp_path):
    asked = Listener(lambda ids: 100.0 + 20.0 * fours(ids))
    trainer = quick(tmp_path, reward_funcs=asked, reward_normalization="reference")
    trainer.train()
    raw = torch.tensor([asked.score(tuple(ids)) for ids in asked.ids]).view(4, 16)
    mean, spread = raw[0].mean().item(), raw[0].std().item()
    for update, line in zip(raw, updates_of(trainer), strict=True):
        assert line["objective/scores"] == pytest.approx((update.mean().item() - mean) / spread, abs=1e-4)
        assert line["objective/scores_raw"] == pytest.approx(update.mean().item(), abs=1e-3)


def test_scores_may_be_measured_in_standard_deviations_of_all_so_far(tmp_path):
    asked = Listener(lambda ids: 100.0 + 20.0 * fours(ids))
    trainer = quick(tmp_path, reward_funcs=asked, reward_normalization="running")
    trainer.train()
    raw = torch.tensor([asked.score(tuple(ids)) for ids in asked.ids]).view(4, 16)
    for number, line in enumerate(updates_of(trainer)):
        seen = raw[: number + 1]
        expected = (raw[number].mean() - seen.mean()) / seen.std()
        assert line["objective/scores"] == pytest.approx(expected.item(), abs=1e-4)


def test_scores_that_never_differ_are_no_reason_to_divide_by_zero(tmp_path):
    for kind in ("reference", "running"):
        trainer = quick(tmp_path, score=lambda ids: 1.0, reward_normalization=kind)
        trainer.train()
        assert all(math.isfinite(value) for line in updates_of(trainer) for value in line.values())
        assert torch.isfinite(weights(trainer)).all()


def test_an_entropy_bonus_keeps_the_choices_open(tmp_path):
    settings = {"score": lambda ids: 0.0, "kl_coef": 0.0, "learning_rate": 1e-2, "response_length": 2}
    with_bonus, without = (
        quick(tmp_path, small_gpt2(SIZE, n_positions=16), entropy_coef=coefficient, total_episodes=160, **settings)
        for coefficient in (0.5, 0.0)
    )
    with_bonus.train()
    without.train()
    assert updates_of(with_bonus)[-1]["policy/entropy_avg"] > updates_of(without)[-1]["policy/entropy_avg"] + 0.3


def test_a_reference_that_is_given_stays_as_it_is_and_sets_the_kl(tmp_path):
    reference = undecided(seed=7)
    before = flat(reference)
    trainer = quick(tmp_path, ref_model=reference)
    trainer.train()
    assert updates_of(trainer)[0]["objective/kl_exact"] > 0.01
    assert torch.equal(flat(reference), before)


def test_prompts_may_be_answered_a_few_at_a_time(tmp_path):
    trainer = quick(tmp_path, local_rollout_forward_batch_size=5, num_ppo_epochs=1)
    trainer.train()
    assert all(line["val/ratio"] == pytest.approx(1.0, abs=1e-5) for line in updates_of(trainer))
