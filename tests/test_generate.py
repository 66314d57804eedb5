"""Sampling: the same tokens as Transformers, log-probabilities as teacher forcing gives them."""

import pytest
import torch

from rlhf.config import BadInput
from rlhf.generate import batches_by_length, encode_prompt, generate, stream
from rlhf.packed import line_up, read, response_places


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


def sample(model, prompts, *, seed=0, temperature=0.9, length=20):
    ids, mask = pad_left(prompts, 0)
    generator = torch.Generator().manual_seed(seed)
    return generate(
        model, ids, mask, max_new_tokens=length, temperature=temperature, eos_id=2, pad_id=0, generator=generator
    )


def texts(generation):
    return [row[keep].tolist() for row, keep in zip(generation.responses, generation.mask, strict=True)]


def test_logprobs_are_those_of_teacher_forcing(tiny_gpt2):
    generation = sample(tiny_gpt2, PROMPTS * 8)
    rows = [prompt + said for prompt, said in zip(PROMPTS * 8, texts(generation), strict=True)]
    with torch.no_grad():
        logprobs, _, _ = response_outputs(tiny_gpt2, None, rows, [len(p) for p in PROMPTS * 8], 0.9)
    assert (logprobs - generation.logprobs[generation.mask]).abs().max() < 2e-5


def test_greedy_equals_transformers_generate(tiny_gpt2):
    ids, mask = pad_left(PROMPTS, 0)
    theirs = tiny_gpt2.generate(
        ids, attention_mask=mask.long(), max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0
    )[:, ids.size(1) :]
    for row, said in zip(theirs.tolist(), texts(sample(tiny_gpt2, PROMPTS, temperature=0)), strict=True):
        assert row[: len(said)] == said


def test_rows_end_at_the_end_token_and_do_not_disturb_each_other(tiny_gpt2):
    generation = sample(tiny_gpt2, PROMPTS * 16)
    assert 0 < generation.ended.sum() < len(generation.ended)  # both kinds occur
    for said, ended in zip(texts(generation), generation.ended.tolist(), strict=True):
        assert (said[-1] == 2) == ended and 2 not in said[:-1]
        assert ended or len(said) == 20
    # The last row's random numbers do not depend on when the others ended.
    alone = sample(tiny_gpt2, [[3]] * 3 + [PROMPTS[2]], seed=5)
    among = sample(tiny_gpt2, [*PROMPTS[:3], PROMPTS[2]], seed=5)
    assert texts(alone)[3] == texts(among)[3]


def test_samples_follow_the_distribution(tiny_gpt2):
    tokens = sample(tiny_gpt2, [[7]] * 20_000, temperature=1.0, length=1).responses[:, 0]
    with torch.no_grad():
        expected = torch.softmax(tiny_gpt2(torch.tensor([[7]])).logits[0, -1], dim=-1) * 20_000
    counts = torch.bincount(tokens, minlength=40)
    chi2 = ((counts - expected) ** 2 / expected)[expected > 5].sum()
    assert chi2 < 80  # 39 degrees of freedom: exceeded once in ten thousand


def test_batches_by_length_hold_every_row_once_within_the_limit():
    rows = [[1] * length for length in (3, 9, 1, 7, 7, 2)]
    batches = list(batches_by_length(rows, 16))
    assert sorted(sum(batches, [])) == list(range(6))
    assert all(len(batch) * max(len(rows[i]) for i in batch) <= 16 for batch in batches)
    assert list(batches_by_length([[1] * 50], 16)) == [[0]]  # a row longer than the limit goes alone


def test_stream_grows_token_by_token_to_the_end_token_and_repeats_with_the_seed(base):
    model, tokenizer = base
    pieces = list(stream(model, tokenizer, "How do I clean a burnt pan?", seed=1))
    assert [len(piece) for piece in pieces] == list(range(1, len(pieces) + 1))
    assert all(later[:-1] == earlier for earlier, later in zip(pieces, pieces[1:], strict=False))
    assert pieces[-1].index(tokenizer.eos_token_id) == len(pieces) - 1 > 3
    assert pieces == list(stream(model, tokenizer, "How do I clean a burnt pan?", seed=1))


def test_an_answer_that_is_cut_off_has_no_end_token(base):
    model, tokenizer = base
    *_, last = stream(model, tokenizer, "How do I clean a burnt pan?", seed=1, max_new_tokens=3)
    assert len(last) == 3 and tokenizer.eos_token_id not in last


@pytest.mark.parametrize(("question", "message"), [("", "write a question"), ("why " * 200, "shorten it")])
def test_bad_questions_get_a_sentence(base, question, message):
    with pytest.raises(BadInput, match=message):
        encode_prompt(*base, question, 64)


def test_special_tokens_in_a_question_are_plain_text(base):
    model, tokenizer = base
    assert tokenizer.eos_token_id not in encode_prompt(model, tokenizer, "say <eos> now", 64)
