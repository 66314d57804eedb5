"""Forward passes without padding: the tokens of all rows lie in one line, and only attention knows where a row begins.

A batch of prompts and responses is ragged; padded to its longest row, a third of the work would be on pads. Here a
model reads the b rows of a batch as one line of N tokens, so that projections, norms and the loss see real tokens
only. Attention puts the line back into rows of like width, (b, S), for one call of PyTorch's kernel. It is registered
with Transformers as an attention of its own, which GPT-2, Llama, Qwen and most other families take by name; called in
any other way, a model with this attention works as always.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.config import BadInput


NAME = "packed"


class _Take(torch.autograd.Function):
    """source[index], where the gradient of source is gradient[inverse]: an index that repeats only what has none.

    The plain gradient of indexing adds up over the index, which is slow and here adds nothing but zeros.
    """

    @staticmethod
    def forward(ctx: object, source: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class PackedRows:
    """Where b rows of these lengths lie in a line of N tokens, one after another."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.width = max(lengths)
        self.lengths = torch.tensor(lengths, device=device)
        self.starts = self.lengths.cumsum(dim=0) - self.lengths
        place = torch.arange(self.width, device=device)
        inside = place < self.lengths.unsqueeze(1)
        # (b * S,) the token of each place; behind a row's end its last token stands in. No token sees a later one.
        self.from_line = (self.starts.unsqueeze(1) + place.minimum(self.lengths.unsqueeze(1) - 1)).flatten()
        self.to_line = inside.flatten().nonzero().squeeze(1)  # (N,) the place of each token
        self.position_ids = place.expand(inside.shape)[inside]  # (N,) counted from the row's start

    def grid(self, line: torch.Tensor) -> torch.Tensor:
        """(1, H, N, D) -> (b, H, S, D)"""
        tokens = _Take.apply(line[0].transpose(0, 1), self.from_line, self.to_line)
        return tokens.view(-1, self.width, *tokens.shape[1:]).transpose(1, 2)

    def line(self, grid: torch.Tensor) -> torch.Tensor:
        """(b, H, S, D) -> (1, N, H, D)"""
        return grid.transpose(1, 2).flatten(0, 1).index_select(0, self.to_line).unsqueeze(0)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Causal attention within each row: query (1, H, N, D), key and value (1, H_kv, N, D) -> (1, N, H, D)."""
        query, key, value = self.grid(query), self.grid(key), self.grid(value)
        near = None
        if window is not None and window < self.width:
            near = torch.ones(self.width, self.width, dtype=torch.bool, device=query.device).tril().triu(1 - window)
        found = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=near,
            is_causal=near is None,
            scale=scaling,
            enable_gqa=key.size(1) != query.size(1),
        )
        return self.line(found)


class KVCache(PackedRows):
    """Rows that are read once and then go on by one token each: keeps the keys and values of what was read.

    All rows end at the same column of the cache, so that a step writes one column.
    """

    def __init__(self, lengths: list[int], new_tokens: int, device: torch.device) -> None:
        super().__init__(lengths, device)
        self.column: int | None = None
        """Column of the token that each row goes on with; None while the rows are read."""
        column = torch.arange(self.width + new_tokens, device=device)
        empty = (self.width - self.lengths).unsqueeze(1)
        # (b, columns) minus infinity before a row's first token: added to its scores, it leaves no weight there.
        self.unfilled = torch.zeros(len(lengths), len(column), device=device).masked_fill_(column < empty, -math.inf)
        self.to_cache = (self.starts.unsqueeze(1) + (column[: self.width] - empty).clamp(min=0)).flatten()
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values of each layer, (b, H_kv, columns, D) each."""

    def grow(self) -> None:
        """From here on the line holds one token a row: the next one."""
        self.position_ids = self.lengths
        self.lengths = self.lengths + 1
        self.column = self.width if self.column is None else self.column + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, in this order; a row may be taken more than once."""
        self.unfilled, self.lengths = self.unfilled[rows], self.lengths[rows]
        self.cache = {
            layer: (keys.index_select(0, rows), values.index_select(0, rows))
            for layer, (keys, values) in self.cache.items()
        }

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `PackedRows.attend`; once the rows grow, query (1, H, b, D) is one token a row."""
        if self.column is None:
            self.cache[layer] = self._store(key), self._store(value)
            return super().attend(layer, query, key, value, scaling, window)
        keys, values = self.cache[layer]
        keys[:, :, self.column], values[:, :, self.column] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        seen = slice(0 if window is None else max(0, self.column + 1 - window), self.column + 1)
        # The H / H_kv queries that share a key go in as if they were tokens: nothing is repeated. For so few queries
        # a row, plain products are faster than a fused kernel.
        grouped = query[0].transpose(0, 1).unflatten(1, (key.size(1), -1))
        scores = (grouped * scaling) @ keys[:, :, seen].transpose(2, 3) + self.unfilled[:, None, None, seen]
        found = scores.softmax(dim=-1, dtype=torch.float).to(values.dtype) @ values[:, :, seen]
        return found.flatten(1, 2).unsqueeze(0)

    def _store(self, line: torch.Tensor) -> torch.Tensor:
        """(1, H, N, D) -> a cache (b, H, columns, D) that holds it."""
        rows, columns = self.unfilled.shape
        cache = line.new_empty(rows, line.size(1), columns, line.size(3))
        read = line[0].transpose(0, 1).index_select(0, self.to_cache)
        cache[:, :, : self.width] = read.view(rows, self.width, *read.shape[1:]).transpose(1, 2)
        return cache


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    rows: PackedRows | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """What Transformers calls in each layer; `rows` travels there from `hidden_states`."""
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return rows.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


_WANTED: ContextVar[tuple[torch.Tensor, int] | None] = ContextVar("wanted", default=None)
"""While `hidden_states` runs, in its thread alone: positions (n,) of the states that are wanted, and out of how many."""


def _take_wanted(mlp: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    """Before the last MLP: of its input (1, N, d) the positions that are wanted, (1, n, d)."""
    wanted = _WANTED.get()
    return None if wanted is None else (inputs[0].index_select(1, wanted[0]),)


def _put_back(mlp: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
    """After the last MLP: its output (1, n, d) at those positions of (1, N, d), and nothing elsewhere."""
    wanted = _WANTED.get()
    if wanted is None:
        return None
    return output.new_zeros(1, wanted[1], output.size(-1)).index_copy(1, wanted[0], output)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

_NOT_PLAIN = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of families whose logits or attention are more than products (Gemma 2, Cohere, Granite)."""


def is_peft(model: nn.Module) -> bool:
    """Whether a model is wrapped by PEFT, whose package need not be there to ask."""
    return hasattr(model, "get_base_model")


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The Transformers model inside a PEFT wrapper, its adapters within; any other model as it is."""
    return model.get_base_model() if is_peft(model) else model


def use_packed_attention(model: PreTrainedModel) -> None:
    """Give a model, PEFT or not, the attention that `hidden_states` needs; everything else about it stays as it was.

    Raises:
        BadInput: the model's architecture does more between tokens, or on the logits, than attention does.
    """
    inner = plain_model(model)
    config = inner.config
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    unusual = [name for name in _NOT_PLAIN if getattr(config, name, None) not in (None, 1, 1.0)]
    if not layers and not unusual and config._attn_implementation != NAME:
        inner.set_attn_implementation(NAME)
    if layers or unusual or config._attn_implementation != NAME:
        raise BadInput(
            f"{type(inner).__name__} cannot be read without padding ({', '.join([*layers, *unusual]) or 'attention'} "
            "of its own); take a model of the GPT-2, Llama, Qwen, SmolLM, Mistral, Pythia or OPT families."
        )
    last_mlp = [module for name, module in inner.base_model.named_modules() if name.endswith(".mlp")][-1:]
    for mlp in last_mlp:  # of those that have one; a copy of a model has the hooks already
        if _take_wanted not in mlp._forward_pre_hooks.values():
            mlp.register_forward_pre_hook(_take_wanted)
            mlp.register_forward_hook(_put_back)


def hidden_states(
    model: PreTrainedModel, ids: torch.Tensor, rows: PackedRows, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Last hidden states (N, d) of a line of tokens, ids (N,), or those (n, d) at some positions of it (n,).

    The model has been given to `use_packed_attention`. Where only n states are wanted, the last layer's MLP, more than
    half of that layer's work, reads n tokens instead of N: nobody uses its output at the others.
    """
    trunk = plain_model(model).base_model
    # A mask of four dimensions is taken as it is, which keeps Transformers from building one that nobody reads.
    unread = torch.empty(1, 1, 1, 1, device=ids.device)
    # Activations that are recomputed in the backward pass would be so for all N tokens.
    recomputes = trunk.training and any(getattr(module, "gradient_checkpointing", False) for module in trunk.modules())
    before = _WANTED.set(None if positions is None or recomputes else (positions, len(ids)))
    try:
        states = trunk(
            input_ids=ids.unsqueeze(0),
            position_ids=rows.position_ids.unsqueeze(0),
            attention_mask=unread,
            use_cache=False,
            rows=rows,
        ).last_hidden_state[0]
    finally:
        _WANTED.reset(before)
    return states if positions is None else states.index_select(0, positions)


def logits_at(model: PreTrainedModel, states: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits over temperature (n, V), in full precision, from last hidden states (n, d)."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is None:  # the division is of fewer numbers before the projection than after it
        return head(states / temperature).float()
    return head(states).float() / temperature


def pack(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, PackedRows]:
    """Token rows -> their ids as one line (N,), and where they lie."""
    ids = torch.tensor([token for row in rows for token in row], device=device)
    return ids, PackedRows([len(row) for row in rows], device)


def pack_responses(
    rows: list[list[int]], prompt_lengths: list[int], device: torch.device
) -> tuple[torch.Tensor, PackedRows, torch.Tensor, torch.Tensor]:
    """Rows of prompt and response as one line, each without its last token, which predicts nothing.

    Returns ids (N,), where the rows lie, and for the n response tokens the positions of the states that predict them
    and the tokens themselves, (n,) each.
    """
    ids, packed = pack([row[:-1] for row in rows], device)
    prompts = torch.tensor(prompt_lengths, device=device).repeat_interleave(packed.lengths)
    positions = (packed.position_ids >= prompts - 1).nonzero().squeeze(1)
    targets = [token for row, length in zip(rows, prompt_lengths, strict=True) for token in row[length:]]
    return ids, packed, positions, torch.tensor(targets, device=device)


def batches_by_length(rows: list[list[int]], batch_tokens: int, batch_rows: int | None = None) -> Iterator[list[int]]:
    """Indices of rows, shortest first, in batches of about `batch_tokens` tokens and at most `batch_rows` rows.

    The tokens are dealt out evenly, so that the last batch is not a crumb.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    total = sum(map(len, rows))
    share = total / -(-total // batch_tokens)
    batch: list[int] = []
    tokens = 0
    for row in order:
        if batch and (tokens + len(rows[row]) / 2 > share or len(batch) == batch_rows):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(rows[row])
    yield batch


def like_length_batches(lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Indices of texts that are in random order, `size` at a time, each batch with texts of like length: less padding.

    Sorted by length within a stretch of forty batches, so that batches are of mixed make, and then shuffled; a batch
    that is not full comes last.
    """
    for start in range(0, len(lengths), 40 * size):
        stretch = sorted(range(start, min(start + 40 * size, len(lengths))), key=lambda row: lengths[row])
        cut = [stretch[first : first + size] for first in range(0, len(stretch), size)]
        rng.shuffle(cut)
        yield from sorted(cut, key=len, reverse=True)
