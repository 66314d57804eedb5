"""Batched sampling from a causal language model with a key-value cache, with the log-probability of every token.

Rows that have ended leave the batch, equal prompts are read once, and no tensor of the vocabulary's size is kept
between steps. A uniform number is drawn for every row at every step, so that a row's tokens do not depend on which
other rows have ended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rlhf.models.packed import KVCache, hidden_states, logits_at, pack, use_packed_attention


COMPACT_BELOW = 0.75
"""Ended rows are removed, which copies the others, once less than this share of the cached rows is unfinished."""


@dataclass
class Generation:
    """B sampled responses, padded on the right to the longest, T tokens."""

    responses: torch.Tensor
    """(B, T) token ids, up to and including the end token, then zeros."""
    mask: torch.Tensor
    """(B, T) true on sampled tokens, false on padding."""
    logprobs: torch.Tensor
    """(B, T) log-probability of each token in the distribution it was sampled from, softmax(logits / temperature)."""
    ended: torch.Tensor
    """(B,) true where the response ends with an end token, false where it reached the length limit."""
    hidden: torch.Tensor
    """(B, T, d) last hidden state that each token was sampled from; (B, T, 0) without `keep_hidden`."""

    def lists(self) -> list[list[int]]:
        """The responses as B lists of token ids, without padding."""
        lengths = self.mask.sum(dim=1).tolist()
        return [row[:length] for row, length in zip(self.responses.tolist(), lengths, strict=True)]

    @staticmethod
    def join(parts: list["Generation"]) -> "Generation":
        """Concatenate generations, padded to the longest response of all."""
        width = max(part.mask.size(1) for part in parts)

        def column(name: str) -> torch.Tensor:
            tensors = (getattr(part, name) for part in parts)
            return torch.cat([t.new_zeros(len(t), width, *t.shape[2:]).index_copy_(
                1, torch.arange(t.size(1), device=t.device), t) for t in tensors])  # fmt: skip

        ended = torch.cat([part.ended for part in parts])
        return Generation(column("responses"), column("mask"), column("logprobs"), ended, column("hidden"))


def sample_token(logits: torch.Tensor, uniform: torch.Tensor, *, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, V), uniform numbers (B,) -> sampled or most likely tokens (B,), their log-probabilities (B,)."""
    probabilities = torch.softmax(logits, dim=-1)
    if greedy:
        token = probabilities.argmax(dim=-1)
    else:
        # Inverse transform sampling: the first token whose cumulative probability exceeds uniform * total, where the
        # total is 1 only up to rounding. In float32, rare tokens of a large vocabulary would never be drawn.
        # Apple's GPUs have no float64 at all, so for them the CPU adds up.
        exact = torch.device("cpu") if logits.device.type == "mps" else logits.device
        cumulative = probabilities.to(exact).cumsum(dim=-1, dtype=torch.double)
        threshold = uniform.to(exact).double() * cumulative[:, -1]
        token = torch.searchsorted(cumulative, threshold.unsqueeze(1), right=True)
        token = token.squeeze(1).clamp(max=logits.size(1) - 1).to(logits.device)
    return token, probabilities.gather(1, token.unsqueeze(1)).squeeze(1).log()


def _ends(eos_id: int | Sequence[int] | None, device: torch.device) -> torch.Tensor:
    """The E tokens that end a response (E,)."""
    several = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else list(eos_id)
    return torch.tensor(several, dtype=torch.long, device=device)


def _is_end(tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Which of n tokens (n,) are among the E that end a response."""
    return tokens == ends if len(ends) == 1 else torch.isin(tokens, ends)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    queries: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int | Sequence[int] | None,
    generator: torch.Generator,
    share: tuple[Sequence[int], int] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Sample responses to B prompts step by step; the arguments are those of `generate`.

    Yields:
        at each step, for the n rows that have not ended: their indices (n,), their next tokens (n,), the tokens'
        log-probabilities (n,), and the hidden states they were sampled from (n, d).
    """
    use_packed_attention(model)
    ends = _ends(eos_id, model.device)
    # 1. Read each distinct prompt once, and copy its cache to all rows that share it, such as best-of-n's.
    distinct = {query: number for number, query in enumerate(dict.fromkeys(map(tuple, queries)))}
    ids, _ = pack(list(distinct), model.device)
    rows = KVCache([len(query) for query in distinct], max_new_tokens, model.device)
    hidden = hidden_states(model, ids, rows, rows.starts + rows.lengths - 1)  # at each prompt's last token, (B', d)
    if len(distinct) < len(queries):
        copies = torch.tensor([distinct[tuple(query)] for query in queries], device=model.device)
        rows.keep(copies)
        hidden = hidden[copies]
    in_cache = torch.arange(len(queries), device=model.device)  # the rows whose keys and values are cached
    unfinished = torch.ones_like(in_cache, dtype=torch.bool)
    own_rows, batch_size = share or (slice(None), len(queries))
    for step in range(max_new_tokens):
        # 2. Sample a token for every row in the cache, also for those that have ended but are still there.
        uniform = torch.rand(batch_size, generator=generator)[own_rows].to(model.device)[in_cache]
        token, logprob = sample_token(logits_at(model, hidden, temperature or 1.0), uniform, greedy=temperature == 0)
        yield in_cache[unfinished], token[unfinished], logprob[unfinished], hidden[unfinished]
        # 3. Stop when all have ended; remove those that have once enough of them did.
        unfinished = unfinished & ~_is_end(token, ends)
        count = int(unfinished.sum())
        if count == 0 or step + 1 == max_new_tokens:
            return
        if count < COMPACT_BELOW * len(in_cache):
            kept = unfinished.nonzero().squeeze(1)
            rows.keep(kept)
            in_cache, token, unfinished = in_cache[kept], token[kept], unfinished[kept]
        # 4. Read the new tokens.
        rows.grow()
        hidden = hidden_states(model, token, rows)


def generate(
    model: PreTrainedModel,
    queries: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int | Sequence[int] | None,
    generator: torch.Generator,
    keep_hidden: bool = False,
    share: tuple[Sequence[int], int] | None = None,
) -> Generation:
    """Sample one response to each of B prompts.

    Args:
        queries: B prompts as token ids, of any lengths.
        temperature: logits are divided by it; at 0 decoding is greedy.
        eos_id: the token that ends a response, or several; with None all have `max_new_tokens` tokens.
        generator: a CPU generator; the same state gives the same responses.
        keep_hidden: whether to return the hidden states too.
        share: where several processes share a batch, the numbers of this one's rows and the size of the batch. Random
            numbers are drawn for the whole batch, so that the responses do not depend on the number of processes.
    """
    # Filled step by step, and cut to the longest response at the end
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
    for step, (rows, token, logprob, hidden) in enumerate(steps):
        responses[rows, step], logprobs[rows, step] = token, logprob
        lengths[rows] = step + 1
        if keep_hidden:
            states.append(hidden.new_zeros(batch, hidden.size(1)).index_copy_(0, rows, hidden))
    width = int(lengths.max())
    responses, logprobs = responses[:, :width], logprobs[:, :width]
    mask = torch.arange(width, device=device) < lengths.unsqueeze(1)
    last = responses.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)  # (B,) each response's last token
    ended = _is_end(last, _ends(eos_id, device))
    # T tensors (B, d) -> (B, T, d)
    hidden = torch.stack(states or [logprobs.new_zeros(batch, 0)] * width, dim=1)
    return Generation(responses, mask, logprobs, ended, hidden)


def stream(
    model: PreTrainedModel,
    query: list[int],
    *,
    eos_id: int | Sequence[int] | None,
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Answer one prompt; yields all token ids so far after each token, at last the end token if the answer ends."""
    response: list[int] = []
    for _, token, _, _ in decode(
        model,
        [query],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_id=eos_id,
        generator=torch.Generator().manual_seed(seed),
    ):
        response.append(token.item())
        yield list(response)
