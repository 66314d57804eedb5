"""Batched sampling from a causal language model with a key-value cache, log-probabilities captured on the way.

A row that ends leaves the batch, and nothing of the vocabulary's size is kept between steps. The uniform numbers are
drawn for every row at every step, so a row's tokens do not depend on which other rows have ended.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import BadInput
from rlhf.models import context_size, render_prompt


@dataclass
class Generation:
    """Sampled responses; everything is padded on the right to the longest response, T tokens."""

    responses: torch.Tensor
    """(B, T) token ids, the end token included, pads after it."""
    mask: torch.Tensor
    """(B, T) true on the tokens that were sampled."""
    logprobs: torch.Tensor
    """(B, T) log-probability of each token under the sampling distribution, logits / temperature."""
    ended: torch.Tensor
    """(B,) true where the model said the end token, false where it ran into the length limit."""


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows -> ids (B, P), mask (B, P), padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def pad_right(rows: list[list[int]]) -> torch.Tensor:
    """Token rows -> ids (B, S), each filled up with its own last token.

    For causal models without a mask: no token sees a later one, so it does not matter what stands there (and
    Transformers does not warn of pads without a mask).
    """
    width = max(map(len, rows))
    return torch.tensor([row + row[-1:] * (width - len(row)) for row in rows])


def batches_by_length(rows: list[list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows, shortest first, in batches that hold at most `batch_tokens` tokens when padded."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    batch: list[int] = []
    for row in order:
        # Sorted by length: a batch is as wide as its last row.
        if batch and (len(batch) + 1) * len(rows[row]) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _pick(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, V), uniform numbers (B,) -> token (B,), its log-probability (B,). Temperature 0 takes the best."""
    if temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        token = logprobs.argmax(dim=-1)
    else:
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
        # Inverse of the cumulative distribution; in double precision so that rare tokens of a large vocabulary count.
        cumulative = logprobs.double().exp().cumsum(dim=-1)
        token = torch.searchsorted(cumulative, (uniform.double() * cumulative[:, -1]).unsqueeze(1), right=True)
        token = token.squeeze(1).clamp(max=logits.size(1) - 1)
    return token, logprobs.gather(1, token.unsqueeze(1)).squeeze(1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    queries: torch.Tensor,
    query_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
    generator: torch.Generator,
) -> Generation:
    """Sample one response a row.

    Args:
        queries: (B, P) prompt ids, padded on the left.
        query_mask: (B, P) true on prompt tokens.
        generator: a CPU generator; the same state gives the same responses.
    """
    device, batch = queries.device, queries.size(0)
    responses = torch.full((batch, max_new_tokens), pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((batch, max_new_tokens), device=device)
    lengths = torch.full((batch,), max_new_tokens, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)

    alive = torch.arange(batch, device=device)  # rows still in the batch
    cache, tokens, mask = DynamicCache(), queries, query_mask
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    for step in range(max_new_tokens):
        logits = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        uniform = torch.rand(batch, generator=generator).to(device)[alive]
        token, logprob = _pick(logits, temperature, uniform)
        responses[alive, step], logprobs[alive, step] = token, logprob
        done = token == eos_id
        ended[alive[done]] = True
        lengths[alive[done]] = step + 1
        if done.all():
            break
        if done.any():
            keep = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            alive, token, mask, positions = alive[keep], token[keep], mask[keep], positions[keep]
        tokens = token.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        positions = positions[:, -1:] + 1
    width = int(lengths.max())
    valid = torch.arange(width, device=device) < lengths.unsqueeze(1)
    return Generation(responses[:, :width], valid, logprobs[:, :width] * valid, ended)


def encode_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, max_new_tokens: int
) -> list[int]:
    """Token ids of a question's prompt.

    Raises:
        BadInput: the question is empty, or longer than the model can read.
    """
    ids = tokenizer(render_prompt(tokenizer, question), split_special_tokens=True)["input_ids"]
    room = context_size(model) - max_new_tokens
    if len(ids) > room:
        raise BadInput(f"The question is {len(ids)} tokens long, this model reads at most {room}; please shorten it.")
    return ids


@torch.no_grad()
def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Answer one question; yields the growing answer's ids after each token, the end token, if it comes, as the last.

    Raises:
        BadInput: the question is empty, or longer than the model can read.
    """
    ids = encode_prompt(model, tokenizer, question, max_new_tokens)
    generator, cache, said = torch.Generator().manual_seed(seed), DynamicCache(), []
    tokens = torch.tensor([ids])
    while len(said) < max_new_tokens and tokenizer.eos_token_id not in said:
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        token, _ = _pick(logits, temperature, torch.rand(1, generator=generator))
        said.append(token.item())
        tokens = token.unsqueeze(1)
        yield list(said)
