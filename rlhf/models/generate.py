"""Batched sampling from a causal language model with a key-value cache, log-probabilities captured on the way.

Rows that have ended leave the batch, equal prompts are read once, and nothing of the vocabulary's size is kept between
steps. The uniform numbers are drawn for every row at every step, so a row's tokens do not depend on which other rows
have ended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rlhf.models.packed import KVCache, hidden_states, logits_at, pack, use_packed_attention


COMPACT_BELOW = 0.75
"""Ended rows are taken out of the cache when fewer than this share of its rows go on: taking out copies the rest."""


@dataclass
class Generation:
    """Sampled responses; everything is padded on the right to the longest response, T tokens."""

    responses: torch.Tensor
    """(B, T) token ids, the end token included, zeros after it."""
    mask: torch.Tensor
    """(B, T) true on the tokens that were sampled."""
    logprobs: torch.Tensor
    """(B, T) log-probability of each token under the sampling distribution, logits / temperature."""
    ended: torch.Tensor
    """(B,) true where the model said the end token, false where it ran into the length limit."""
    hidden: torch.Tensor
    """(B, T, d) the last hidden state that each token was sampled from, or (B, T, 0) if it was not asked for."""

    def lists(self) -> list[list[int]]:
        """The responses as B lists of ids."""
        lengths = self.mask.sum(dim=1).tolist()
        return [row[:length] for row, length in zip(self.responses.tolist(), lengths, strict=True)]

    @staticmethod
    def join(parts: list["Generation"]) -> "Generation":
        """Several generations as one, padded to the longest."""
        width = max(part.mask.size(1) for part in parts)

        def column(name: str) -> torch.Tensor:
            tensors = (getattr(part, name) for part in parts)
            return torch.cat([t.new_zeros(len(t), width, *t.shape[2:]).index_copy_(
                1, torch.arange(t.size(1), device=t.device), t) for t in tensors])  # fmt: skip

        ended = torch.cat([part.ended for part in parts])
        return Generation(column("responses"), column("mask"), column("logprobs"), ended, column("hidden"))


def sample_token(logits: torch.Tensor, uniform: torch.Tensor, *, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, V), uniform numbers (B,) -> token (B,), the sampled one or the best, its log-probability (B,)."""
    probabilities = torch.softmax(logits, dim=-1)
    if greedy:
        token = probabilities.argmax(dim=-1)
    else:
        # Inverse of the cumulative distribution; in double precision so that rare tokens of a large vocabulary count.
        cumulative = probabilities.cumsum(dim=-1, dtype=torch.double)
        token = torch.searchsorted(cumulative, (uniform.double() * cumulative[:, -1]).unsqueeze(1), right=True)
        token = token.squeeze(1).clamp(max=logits.size(1) - 1)
    return token, probabilities.gather(1, token.unsqueeze(1)).squeeze(1).log()


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    queries: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int | None,
    generator: torch.Generator,
    share: tuple[Sequence[int], int] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Continue B prompts by a token at a time; see `generate`.

    Yields, for the n rows that go on: which they are (n,), their next token (n,), its log-probability (n,), and the
    hidden state it was sampled from (n, d).
    """
    use_packed_attention(model)
    distinct = {query: number for number, query in enumerate(dict.fromkeys(map(tuple, queries)))}
    ids, _ = pack(list(distinct), model.device)
    rows = KVCache([len(query) for query in distinct], max_new_tokens, model.device)
    hidden = hidden_states(model, ids, rows, rows.starts + rows.lengths - 1)
    if len(distinct) < len(queries):
        copies = torch.tensor([distinct[tuple(query)] for query in queries], device=model.device)
        rows.keep(copies)
        hidden = hidden[copies]
    alive = torch.arange(len(queries), device=model.device)
    unfinished = torch.ones_like(alive, dtype=torch.bool)
    rows_drawn, drawn = share or (slice(None), len(queries))
    for step in range(max_new_tokens):
        uniform = torch.rand(drawn, generator=generator)[rows_drawn].to(model.device)[alive]
        token, logprob = sample_token(logits_at(model, hidden, temperature or 1.0), uniform, greedy=temperature == 0)
        yield alive[unfinished], token[unfinished], logprob[unfinished], hidden[unfinished]
        unfinished = unfinished & (token != (-1 if eos_id is None else eos_id))
        count = int(unfinished.sum())
        if count == 0 or step + 1 == max_new_tokens:
            return
        if count < COMPACT_BELOW * len(alive):
            kept = unfinished.nonzero().squeeze(1)
            rows.keep(kept)
            alive, token, unfinished = alive[kept], token[kept], unfinished[kept]
        rows.grow()
        hidden = hidden_states(model, token, rows)


def generate(
    model: PreTrainedModel,
    queries: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int | None,
    generator: torch.Generator,
    keep_hidden: bool = False,
    share: tuple[Sequence[int], int] | None = None,
) -> Generation:
    """Sample one response a row.

    Args:
        queries: B prompts as token ids; their lengths may differ, equal ones are read once.
        temperature: logits are divided by it; 0 takes the most likely token.
        eos_id: the token that ends a response; None never ends one before `max_new_tokens`.
        generator: a CPU generator; the same state gives the same responses.
        keep_hidden: return the hidden states too.
        share: which rows of a batch the queries are, and how many rows it has: random numbers are drawn for all of
            it, so that a row's tokens do not depend on how many processes share the batch.
    """
    batch, device = len(queries), model.device
    responses = torch.zeros((batch, max_new_tokens), dtype=torch.long, device=device)
    logprobs = torch.zeros((batch, max_new_tokens), device=device)
    lengths = torch.zeros(batch, dtype=torch.long, device=device)
    states = []
    steps = decode(
        model,
        queries,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_id=eos_id,
        generator=generator,
        share=share,
    )
    for step, (alive, token, logprob, hidden) in enumerate(steps):
        responses[alive, step], logprobs[alive, step] = token, logprob
        lengths[alive] = step + 1
        if keep_hidden:
            states.append(hidden.new_zeros(batch, hidden.size(1)).index_copy_(0, alive, hidden))
    width = int(lengths.max())
    responses, logprobs = responses[:, :width], logprobs[:, :width]
    mask = torch.arange(width, device=device) < lengths.unsqueeze(1)
    last = responses.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
    ended = last == (-1 if eos_id is None else eos_id)
    return Generation(
        responses, mask, logprobs, ended, torch.stack(states or [logprobs.new_zeros(batch, 0)] * width, 1)
    )


def stream(
    model: PreTrainedModel,
    query: list[int],
    *,
    eos_id: int | None,
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Answer one prompt; yields the growing answer's ids after each token, the end token, if it comes, as the last."""
    said: list[int] = []
    for _, token, _, _ in decode(
        model,
        [query],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_id=eos_id,
        generator=torch.Generator().manual_seed(seed),
    ):
        said.append(token.item())
        yield list(said)
