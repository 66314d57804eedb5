"""Sampling and reading without padding: the same tokens and numbers as Transformers, in every family."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlhf.config import BadInput
from rlhf.models.generate import Generation, generate, sample_token, stream
from rlhf.models.packed import batches_by_length, hidden_states, logits_at, pack, pack_responses, use_packed_attention
from rlhf.models.prompts import question_prompt


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
FAMILIES = ("gpt2", "llama", "qwen2", "mistral")


def model_of(family, tiny_gpt2):
    """Two layers of a family with random weights large enough that its choices differ."""
    if family == "gpt2":
        return tiny_gpt2
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
        "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    }[family]
    torch.manual_seed(0)
    # Rotary positions, two heads that share a key, and for Mistral a window shorter than the text.
    window = {"sliding_window": 4} if family == "mistral" else {}
    return model(
        config(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1,
            eos_token_id=2, pad_token_id=0, **window,
        )
    ).eval()  # fmt: skip


def sample(model, prompts, *, seed=0, temperature=0.9, length=20):
    return generate(
        model,
        prompts,
        max_new_tokens=length,
        temperature=temperature,
        eos_id=2,
        generator=torch.Generator().manual_seed(seed),
        keep_hidden=True,
    )


def alone(model, row):
    """Logits of one row, by Transformers alone."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.tensor([row]), use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_line_of_rows_is_read_as_each_row_alone(family, tiny_gpt2):
    model = model_of(family, tiny_gpt2)
    rows = [[3, *prompt, 4, 17, 30, 5] for prompt in PROMPTS]
    expected = torch.cat([alone(model, row) for row in rows])
    use_packed_attention(model)
    ids, positions = pack(rows, model.device)
    found = model.get_output_embeddings()(hidden_states(model, ids, positions))
    assert (found - expected).abs().max() < 1e-4
    # Their gradients too: what stands in for pads gets none and gives none.
    found.logsumexp(dim=-1).sum().backward()
    packed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.set_attn_implementation("eager")
    for row in rows:
        model(torch.tensor([row]), use_cache=False).logits.logsumexp(dim=-1).sum().backward()
    for parameter, gradient in zip(model.parameters(), packed, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_at_some_places_are_those_of_a_whole_read_and_the_last_mlp_reads_no_others(family, tiny_gpt2):
    model = copy.deepcopy(model_of(family, tiny_gpt2))
    use_packed_attention(model)
    rows = [[3, *prompt, 4, 17, 30, 5] for prompt in PROMPTS]
    ids, lined_up, positions, _ = pack_responses(rows, [1 + len(prompt) for prompt in PROMPTS], model.device)
    lengths = []
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    for mlp in mlps:
        mlp.register_forward_hook(lambda mlp, inputs, output: lengths.append(inputs[0].size(1)))
    whole = hidden_states(model, ids, lined_up)[positions]
    whole.logsumexp(dim=-1).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    some = hidden_states(model, ids, lined_up, positions)
    some.logsumexp(dim=-1).sum().backward()
    assert lengths == [len(ids), len(ids), len(ids), len(positions)] and len(positions) == 4 * len(rows) < len(ids)
    assert (some - whole).abs().max() < 1e-5
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        if gradient is not None:  # the head's
            assert torch.allclose(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


def test_reads_of_one_model_in_two_threads_do_not_meet(tiny_gpt2):
    """Two visitors talk to one model: what one wants of its line is nothing to the other."""
    use_packed_attention(tiny_gpt2)
    rows = [[3, *prompt, 4, 17, 30, 5] for prompt in PROMPTS]
    ids, lined_up, positions, _ = pack_responses(rows, [1 + len(prompt) for prompt in PROMPTS], tiny_gpt2.device)
    whole = hidden_states(tiny_gpt2, ids, lined_up)

    def reads(wanted):
        for _ in range(200):
            found = hidden_states(tiny_gpt2, ids, lined_up, wanted)
            assert torch.allclose(found, whole if wanted is None else whole[wanted], atol=1e-5)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(reads, (positions, None)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_divided_by_the_temperature_in_full_precision(tiny_gpt2, bias, dtype):
    model = copy.deepcopy(tiny_gpt2).to(dtype)
    model.lm_head = torch.nn.Linear(model.config.n_embd, 50, bias=bias, dtype=dtype)
    states = torch.randn(7, model.config.n_embd, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = logits_at(model, states, 0.5)
    assert found.dtype == torch.float32 and torch.equal(found, model.lm_head(states).float() * 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_teacher_forcing(family, tiny_gpt2):
    model = model_of(family, tiny_gpt2)
    prompts = PROMPTS * 8
    generation = sample(model, prompts)
    assert not generation.ended.all() and generation.ended.any()
    for prompt, said, logprobs in zip(prompts, generation.lists(), generation.logprobs, strict=True):
        forced = torch.log_softmax(alone(model, prompt + said)[len(prompt) - 1 : -1] / 0.9, dim=-1)
        expected = forced.gather(1, torch.tensor(said).unsqueeze(1)).squeeze(1)
        assert (expected - logprobs[: len(said)]).abs().max() < 2e-5


def test_the_hidden_states_kept_are_those_each_token_came_from(tiny_gpt2):
    generation = sample(tiny_gpt2, PROMPTS * 4)
    rows = [prompt + said for prompt, said in zip(PROMPTS * 4, generation.lists(), strict=True)]
    prompt_lengths = [len(prompt) for prompt in PROMPTS * 4]
    ids, lined_up, positions, targets = pack_responses(rows, prompt_lengths, tiny_gpt2.device)
    assert torch.equal(targets, generation.responses[generation.mask])
    with torch.no_grad():
        states = hidden_states(tiny_gpt2, ids, lined_up, positions)
    assert (states - generation.hidden[generation.mask]).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_generate(family, tiny_gpt2):
    model = model_of(family, tiny_gpt2)
    answers = sample(model, PROMPTS, temperature=0).lists()
    model.set_attn_implementation("sdpa")
    for prompt, said in zip(PROMPTS, answers, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        assert theirs[0, len(prompt) :].tolist() == said


def test_a_model_with_packed_attention_works_in_transformers_as_before(tiny_gpt2):
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def written():
        return tiny_gpt2.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0
        )

    before = written()
    use_packed_attention(tiny_gpt2)
    assert torch.equal(written(), before)


def test_a_family_whose_logits_are_capped_is_refused(tiny_gpt2):
    with pytest.raises(BadInput, match="Gemma2ForCausalLM cannot be read without padding"):
        use_packed_attention(model_of("gemma2", tiny_gpt2))


def test_equal_prompts_are_read_once_and_answered_each(tiny_gpt2):
    sizes = []
    use_packed_attention(tiny_gpt2)
    tiny_gpt2.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    generation = sample(tiny_gpt2, [[5, 6, 7]] * 16)
    assert sizes[0] == 3 and len({tuple(said) for said in generation.lists()}) > 1


def test_generations_join_into_one(tiny_gpt2):
    parts = [sample(tiny_gpt2, PROMPTS, seed=seed, length=length) for seed, length in ((0, 4), (1, 9))]
    whole = Generation.join(parts)
    assert whole.lists() == parts[0].lists() + parts[1].lists()
    assert whole.hidden.shape == (8, whole.mask.size(1), 32)
    assert torch.equal(whole.logprobs[whole.mask], torch.cat([part.logprobs[part.mask] for part in parts]))


def test_rows_end_at_the_end_token_and_do_not_disturb_each_other(tiny_gpt2):
    generation = sample(tiny_gpt2, PROMPTS * 16)
    assert 0 < generation.ended.sum() < len(generation.ended)  # both kinds occur
    for said, ended in zip(generation.lists(), generation.ended.tolist(), strict=True):
        assert (said[-1] == 2) == ended and 2 not in said[:-1]
        assert ended or len(said) == 20
    # The last row's random numbers do not depend on when the others ended.
    by_itself = sample(tiny_gpt2, [[3]] * 3 + [PROMPTS[2]], seed=5)
    among = sample(tiny_gpt2, [*PROMPTS[:3], PROMPTS[2]], seed=5)
    assert by_itself.lists()[3] == among.lists()[3]


def test_samples_follow_the_distribution(tiny_gpt2):
    tokens = sample(tiny_gpt2, [[7]] * 20_000, temperature=1.0, length=1).responses[:, 0]
    with torch.no_grad():
        expected = torch.softmax(tiny_gpt2(torch.tensor([[7]])).logits[0, -1], dim=-1) * 20_000
    counts = torch.bincount(tokens, minlength=40)
    chi2 = ((counts - expected) ** 2 / expected)[expected > 5].sum()
    assert chi2 < 80  # 39 degrees of freedom: exceeded once in ten thousand


def test_batches_by_length_hold_every_row_once_within_the_limits():
    rows = [[1] * length for length in (3, 9, 1, 7, 7, 2)]
    batches = list(batches_by_length(rows, 16))
    assert sorted(sum(batches, [])) == list(range(6))
    tokens = [sum(len(rows[i]) for i in batch) for batch in batches]
    assert len(batches) == 2 and max(tokens) <= 16 + 9 / 2  # even shares, a row is not cut
    assert max(len(batch) for batch in batches_by_length(rows, 16, 2)) == 2
    assert list(batches_by_length([[1] * 50], 16)) == [[0]]  # a row longer than the limit goes alone


def answers(base, **settings):
    model, tokenizer = base
    prompt = question_prompt(tokenizer, "How do I clean a burnt pan?", 64)
    return list(stream(model, prompt.ids, eos_id=tokenizer.eos_token_id, seed=1, **settings))


def test_stream_grows_token_by_token_to_the_end_token_and_repeats_with_the_seed(base):
    pieces = answers(base)
    assert [len(piece) for piece in pieces] == list(range(1, len(pieces) + 1))
    assert all(later[:-1] == earlier for earlier, later in zip(pieces, pieces[1:], strict=False))
    assert pieces[-1].index(base[1].eos_token_id) == len(pieces) - 1 > 3
    assert pieces == answers(base)


def test_an_answer_that_is_cut_off_has_no_end_token(base):
    *_, last = answers(base, max_new_tokens=3)
    assert len(last) == 3 and base[1].eos_token_id not in last


@pytest.mark.parametrize(
    ("question", "message"), [("", "write a question"), ("<eos>", "write a question"), ("why " * 200, "shorten it")]
)
def test_bad_questions_get_a_sentence(base, question, message):
    with pytest.raises(BadInput, match=message):
        question_prompt(base[1], question, 64)


def test_special_tokens_in_a_question_are_taken_out(base):
    tokenizer = base[1]
    for question in ("say <eos> now", "say <e<eos>os> now"):
        ids = question_prompt(tokenizer, question, 64).ids
        assert tokenizer.eos_token_id not in ids and ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_the_oldest_turns_of_a_conversation_give_way(base):
    tokenizer = base[1]
    history = [{"role": role, "content": f"{role} {turn}"} for turn in range(9) for role in ("user", "assistant")]
    whole = question_prompt(tokenizer, "And now?", 1000, history)
    assert whole.raw == [*history, {"role": "user", "content": "And now?"}]
    some = question_prompt(tokenizer, "And now?", 40, history)
    assert len(some.ids) <= 40 and some.raw == whole.raw[-len(some.raw) :]
    assert some.raw[0]["role"] == "user"
    assert question_prompt(tokenizer, "And now?", 8, history).raw == whole.raw[-1:]


class OnApple(torch.Tensor):
    """A tensor that says it is on an Apple GPU, computes on the CPU, and refuses float64 as PyTorch does there."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="mps")

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = kwargs.get("device") == torch.device("cpu")
        inner = torch.utils._pytree.tree_map_only(cls, lambda tensor: tensor.inner, (args, kwargs))
        found = function(*inner[0], **inner[1])
        if leaves:
            return found
        if found.dtype == torch.double:
            raise TypeError("the MPS framework doesn't support float64")
        return cls(found)


class Returns(TorchFunctionMode):
    """Inside, a tensor of the CPU may be sent to such a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to and args[1:] == (torch.device("mps"),) and not isinstance(args[0], OnApple):
            return OnApple(args[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("greedy", [False, True])
def test_apples_gpus_sample_the_tokens_that_the_cpu_samples(greedy):
    """B37: they have no float64."""
    torch.manual_seed(0)
    logits, uniform = torch.randn(64, 500) * 3, torch.rand(64)
    with Returns():
        token, logprob = sample_token(OnApple(logits), OnApple(uniform), greedy=greedy)
    assert (token.device.type, logprob.device.type) == ("mps", "mps")
    expected = sample_token(logits, uniform, greedy=greedy)
    assert torch.equal(token.inner, expected[0]) and torch.equal(logprob.inner, expected[1])
    with pytest.raises(TypeError, match="float64"):
        OnApple(logits).double()
