"""Forward passes without padding: all rows of a batch are packed into one sequence, and only attention separates them.

Rows of prompts and responses differ in length; padded to the longest, a third of the work would go into pads. Here a
model reads the b rows of a batch as one packed sequence of N tokens, so that projections, norms and the loss compute
on real tokens only. Attention alone pads the rows to a common width, (b, S), for one call of PyTorch's kernel. It is
registered with Transformers as the attention implementation "packed", which GPT-2, Llama, Qwen and most other families
support. Called in the ordinary way, without `rows`, such a model falls back to PyTorch's SDPA.

Shapes: b rows, S the longest row, N tokens in all rows together, d hidden size, H query heads, H_kv key heads, D size
of a head, V vocabulary.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from rlhf.config import BadInput


NAME = "packed"
"""Of the attention implementation, as Transformers knows it."""
PROBE = 12
"""Tokens of the text by which a model shows that it reads packed what it reads otherwise."""
READS_ALIKE = 0.1
"""Largest difference that is taken for rounding, which is below 0.03 in bfloat16, as a share of the largest output."""


class _Select(torch.autograd.Function):
    """source[index], with gradient[inverse] as the gradient of source.

    The backward pass of plain indexing is a scatter-add, which is slow. It is not needed here: `index` repeats a token
    to fill up a row, and nothing attends to such copies, so that their gradient is zero. Only the first tokens may
    stand in further places that count, `copies`, whose gradients are added.
    """

    @staticmethod
    def forward(
        ctx: object, source: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor, *copies: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse, *copies)
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inverse, *copies = ctx.saved_tensors
        of_source = gradient.index_select(0, inverse)
        for places in copies:
            of_source[: len(places)] += gradient.index_select(0, places)
        return of_source, None, None, *(None for _ in copies)


class PackedRows:
    """Where each of b rows begins and ends in a packed sequence of N tokens, and causal attention within the rows."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.width = max(lengths)
        self.lengths = torch.tensor(lengths, device=device)  # (b,)
        self.starts = self.lengths.cumsum(dim=0) - self.lengths  # (b,)
        column = torch.arange(self.width, device=device)
        inside = column < self.lengths.unsqueeze(1)  # (b, S)
        # (b * S,) the packed token in each cell of the padded rows. A row's last token is repeated as its padding:
        # under a causal mask no real token sees it.
        self.token_of_cell = (self.starts.unsqueeze(1) + column.minimum(self.lengths.unsqueeze(1) - 1)).flatten()
        self.cell_of_token = inside.flatten().nonzero().squeeze(1)  # (N,) the inverse
        self.position_ids = column.expand(inside.shape)[inside]  # (N,) from 0 in each row
        self.copies: list[torch.Tensor] = []  # further cells of tokens that stand in several rows; here none does

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, H, N, D) -> (b, H, S, D)"""
        tokens = _Select.apply(packed[0].transpose(0, 1), self.token_of_cell, self.cell_of_token, *self.copies)
        return tokens.view(-1, self.width, *tokens.shape[1:]).transpose(1, 2)

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """(b, H, S, D) -> (1, N, H, D)"""
        return padded.transpose(1, 2).flatten(0, 1).index_select(0, self.cell_of_token).unsqueeze(0)

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
        query, key, value = self.pad(query), self.pad(key), self.pad(value)
        dtype = value.dtype
        # PyTorch's kernel for CPUs takes more than twice as long to go backward in bfloat16 as in float32.
        widened = dtype == torch.bfloat16 and value.device.type == "cpu"
        if widened:
            query, key, value = query.float(), key.float(), value.float()
        # No padding mask: the padding comes after the real tokens, so the causal mask hides it.
        mask = None
        if window is not None and window < self.width:
            mask = torch.ones(self.width, self.width, dtype=torch.bool, device=query.device).tril().triu(1 - window)
        with torch.autocast("cpu", enabled=False) if widened else nullcontext():
            output = scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=key.size(1) != query.size(1),
            )
        return self.unpad(output.to(dtype) if widened else output)


class PackedPairs(PackedRows):
    """Rows of b pairs of texts, (2b, S): what both texts of a pair begin with, their prompt, lies packed only once.

    Both texts attend to the common beginning and neither to the other's rest, so every state is what it would be if
    the texts were read one by one. The common beginnings come first among the N tokens.

    Args:
        input_ids: the b first texts, then the b second ones, padded on the right (2b, S).
        attention_mask: 1 on their tokens, 0 on the padding (2b, S).
    """

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        rows, self.width = input_ids.shape
        self.lengths = attention_mask.sum(dim=1)  # (2b,)
        column = torch.arange(self.width, device=input_ids.device)
        first, second = input_ids.chunk(2)
        # (b, S) the tokens in common; the last token of either text is always its own, as its state is asked for.
        common = column < torch.minimum(*self.lengths.chunk(2)).unsqueeze(1) - 1
        common = (common & (first == second)).cumprod(dim=1).bool()
        single = attention_mask.bool() & ~common.repeat(2, 1)
        cells = torch.arange(input_ids.numel(), device=input_ids.device).view(rows, self.width)
        self.cell_of_token = torch.cat([cells[: rows // 2][common], cells[single]])  # (N,)
        second_cell = cells[rows // 2 :][common]
        self.copies = [second_cell]
        tokens = torch.arange(len(self.cell_of_token), device=input_ids.device)
        token_of_cell = torch.zeros_like(cells).flatten()
        token_of_cell[self.cell_of_token] = tokens
        token_of_cell[second_cell] = tokens[: len(second_cell)]
        last = self.lengths.unsqueeze(1) - 1
        # As in PackedRows, a row's last token is repeated as its padding.
        self.token_of_cell = token_of_cell.view_as(cells).gather(1, column.minimum(last)).flatten()
        self.last = self.token_of_cell.view_as(cells)[:, -1]  # (2b,) each text's last token
        self.ids = input_ids.flatten()[self.cell_of_token]  # (N,)
        self.position_ids = self.cell_of_token % self.width  # (N,)


class PackedGroups(PackedRows):
    """Rows of which several begin with the same prompt, (b, S): each distinct prompt lies packed only once.

    As in `PackedPairs` every state is what it would be if the rows were read one by one. The prompts come first among
    the N tokens, those of most rows before those of fewer.

    Args:
        rows: b rows of token ids.
        prompts: how many of a row's tokens are its prompt (b,).
    """

    def __init__(self, rows: list[list[int]], prompts: list[int], device: torch.device) -> None:
        self.width = max(map(len, rows))
        answered: dict[tuple[int, ...], list[int]] = {}
        for number, (row, length) in enumerate(zip(rows, prompts, strict=True)):
            answered.setdefault(tuple(row[:length]), []).append(number)
        ids: list[int] = []
        cell_of_token: list[int] = []
        copies: list[list[int]] = [[] for _ in range(max(map(len, answered.values())) - 1)]
        tokens_of_row: list[list[int]] = [[] for _ in rows]
        for prompt, members in sorted(answered.items(), key=lambda entry: -len(entry[1])):
            tokens = range(len(ids), len(ids) + len(prompt))
            for cells, number in zip((cell_of_token, *copies), members, strict=False):
                cells.extend(range(number * self.width, number * self.width + len(prompt)))
                tokens_of_row[number].extend(tokens)
            ids.extend(prompt)
        for number, (row, length) in enumerate(zip(rows, prompts, strict=True)):
            cell_of_token.extend(range(number * self.width + length, number * self.width + len(row)))
            tokens_of_row[number].extend(range(len(ids), len(ids) + len(row) - length))
            ids.extend(row[length:])
        # As in PackedRows, a row's last token is repeated as its padding.
        padded = [tokens + tokens[-1:] * (self.width - len(tokens)) for tokens in tokens_of_row]
        self.ids, self.cell_of_token, self.token_of_cell, *self.copies = (
            torch.tensor(numbers, device=device)
            for numbers in (ids, cell_of_token, [token for row in padded for token in row], *copies)
        )
        self.position_ids = self.cell_of_token % self.width  # (N,)
        self.lengths = torch.tensor(list(map(len, rows)), device=device)  # (b,)
        self.last = self.token_of_cell.view(len(rows), -1)[:, -1]  # (b,) each row's last token

    def responses(self, prompts: list[int]) -> torch.Tensor:
        """Where the states lie that predict the tokens behind the prompts and one more, (n,), in the order of rows.

        The last state of a prompt predicts the first token of several rows, so it is there several times.
        """
        column = torch.arange(self.width, device=self.ids.device)
        first = torch.tensor(prompts, device=self.ids.device).unsqueeze(1) - 1
        return self.token_of_cell.view(-1, self.width)[(column >= first) & (column < self.lengths.unsqueeze(1))]


class KVCache(PackedRows):
    """Rows for generation: prompts in one pass, then one token per row and step, with cached keys and values.

    The cache is padded on the left: all prompts end in the same column, so that a step writes one column.
    """

    def __init__(self, lengths: list[int], new_tokens: int, device: torch.device) -> None:
        super().__init__(lengths, device)
        self.column: int | None = None
        """Column of the cache that the current step writes; None while the prompts are read."""
        column = torch.arange(self.width + new_tokens, device=device)
        padding = (self.width - self.lengths).unsqueeze(1)  # (b, 1)
        # (b, S + new_tokens) added to the attention scores: minus infinity on the padding, zero elsewhere.
        self.bias = torch.zeros(len(lengths), len(column), device=device).masked_fill_(column < padding, -math.inf)
        # (b * S,) the packed token in each cell of the left-padded prompts
        self.token_of_cache = (self.starts.unsqueeze(1) + (column[: self.width] - padding).clamp(min=0)).flatten()
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Layer -> keys and values, (b, H_kv, S + new_tokens, D) each."""

    def grow(self) -> None:
        """Begin the next step, in which the model reads one more token of each row."""
        self.position_ids = self.lengths
        self.lengths = self.lengths + 1
        self.column = self.width if self.column is None else self.column + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows (n,), in this order; a row may be repeated."""
        self.bias, self.lengths = self.bias[rows], self.lengths[rows]
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
        """As `PackedRows.attend` for the prompts; after that, with one token per row, query is (1, H, b, D)."""
        if self.column is None:
            self.cache[layer] = self._new_cache(key), self._new_cache(value)
            return super().attend(layer, query, key, value, scaling, window)
        keys, values = self.cache[layer]
        keys[:, :, self.column], values[:, :, self.column] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        visible = slice(0 if window is None else max(0, self.column + 1 - window), self.column + 1)
        # Grouped queries (Ainslie et al. 2305.13245): the H / H_kv queries that share a key are treated as tokens of
        # one head, (b, H_kv, H / H_kv, D), so that no key is repeated. For so few queries plain products beat a fused
        # kernel.
        grouped = query[0].transpose(0, 1).unflatten(1, (key.size(1), -1))
        scores = (grouped * scaling) @ keys[:, :, visible].transpose(2, 3) + self.bias[:, None, None, visible]
        output = scores.softmax(dim=-1, dtype=torch.float).to(values.dtype) @ values[:, :, visible]
        return output.flatten(1, 2).unsqueeze(0)  # (1, b, H, D)

    def _new_cache(self, packed: torch.Tensor) -> torch.Tensor:
        """Keys or values of the prompts, (1, H_kv, N, D), in a cache with room for the new tokens."""
        rows, columns = self.bias.shape
        cache = packed.new_empty(rows, packed.size(1), columns, packed.size(3))
        prompts = packed[0].transpose(0, 1).index_select(0, self.token_of_cache)
        cache[:, :, : self.width] = prompts.view(rows, self.width, *prompts.shape[1:]).transpose(1, 2)
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
    """What Transformers calls in each layer; it passes on the `rows` that `hidden_states` gave to the model."""
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return rows.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


_POSITIONS: ContextVar[tuple[torch.Tensor, int] | None] = ContextVar("positions", default=None)
"""Set while `hidden_states` runs, in its thread only: the positions (n,) of the states it was asked for, and N."""


def _select_positions(mlp: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    """Before the last MLP: keep of its input (1, N, d) only those positions, (1, n, d)."""
    asked = _POSITIONS.get()
    return None if asked is None else (inputs[0].index_select(1, asked[0]),)


def _restore_positions(mlp: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
    """After the last MLP: its output (1, n, d) at those positions of (1, N, d), and zeros elsewhere."""
    asked = _POSITIONS.get()
    if asked is None:
        return None
    positions, length = asked
    return output.new_zeros(1, length, output.size(-1)).index_copy(1, positions, output)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

_NOT_PLAIN = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of families that rescale or cap logits or attention scores (Gemma 2, Cohere, Granite)."""


def is_peft(model: nn.Module) -> bool:
    """Whether a model is wrapped by PEFT, which need not be installed for the answer."""
    return hasattr(model, "get_base_model")


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The Transformers model inside a PEFT wrapper, with its adapters; any other model itself."""
    return model.get_base_model() if is_peft(model) else model


def use_packed_attention(model: PreTrainedModel) -> None:
    """Set up a model, PEFT or not, for `hidden_states`: packed attention, and hooks around its last MLP.

    Raises:
        BadInput: an architecture that mixes tokens by more than plain attention, or transforms its logits.
    """
    inner = plain_model(model)
    config = inner.config
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    unusual = [name for name in _NOT_PLAIN if getattr(config, name, None) not in (None, 1, 1.0)]
    new = not layers and not unusual and config._attn_implementation != NAME
    if new:
        as_it_reads = _outputs(inner)
        inner.set_attn_implementation(NAME)
    if layers or unusual or config._attn_implementation != NAME:
        raise BadInput(
            f"{type(inner).__name__} cannot be read without padding ({', '.join([*layers, *unusual]) or 'attention'} "
            "of its own); take a model of the GPT-2, Llama, Qwen, SmolLM, Mistral, Pythia or OPT families."
        )
    last_mlp = [module for name, module in inner.base_model.named_modules() if name.endswith(".mlp")][-1:]
    for mlp in last_mlp:  # OPT, for one, has no module of that name
        if _select_positions not in mlp._forward_pre_hooks.values():  # a deep copy of a model has them already
            mlp.register_forward_pre_hook(_select_positions)
            mlp.register_forward_hook(_restore_positions)
    if new and all(own.isfinite().all() for own in as_it_reads):  # where a model has diverged, its training says so
        off = max(
            (ours - own).abs().max() / own.abs().max() for ours, own in zip(_outputs(inner), as_it_reads, strict=True)
        )
        if not off < READS_ALIKE:
            raise BadInput(
                f"{type(inner).__name__} cannot be read without padding: read so, it gives other numbers, off by "
                f"{off:.0%}; take a model of the GPT-2, Llama, Qwen, SmolLM, Mistral, Pythia or OPT families."
            )


@torch.no_grad()
def _outputs(model: PreTrainedModel) -> list[torch.Tensor]:
    """What a model makes of two short rows, packed if it has been set up for that: logits, or last hidden states."""
    size = model.get_input_embeddings().weight.size(0)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROBE
    rows = [[(7 * number + 3) % size for number in range(min(length, longest))] for length in (PROBE, PROBE // 2)]
    head, modes = model.get_output_embeddings(), [(module, module.training) for module in model.modules()]
    model.eval()  # without dropout
    try:
        if model.config._attn_implementation == NAME:
            ids, places = pack(rows, model.device)
            states = hidden_states(model, ids, places)
            packed = states if head is None else logits_at(model, states, 1.0)
            return list(packed.split(list(map(len, rows))))
        reads = model.base_model if head is None else model
        outputs = [reads(input_ids=torch.tensor([row], device=model.device), use_cache=False) for row in rows]
        return [(output.last_hidden_state if head is None else output.logits)[0].float() for output in outputs]
    finally:
        for module, mode in modes:
            module.training = mode


def hidden_states(
    model: PreTrainedModel, ids: torch.Tensor, rows: PackedRows, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Last hidden states (N, d) of the packed tokens `ids` (N,), or only those at `positions` (n,), (n, d).

    `use_packed_attention` must have been called on the model. With `positions`, the last layer's MLP, more than half
    of that layer's work, reads n tokens instead of N: its output is used nowhere else.
    """
    trunk = plain_model(model).base_model
    # Transformers passes a 4-D mask through; without one it would build a mask, which packed attention ignores.
    unused_mask = torch.empty(1, 1, 1, 1, device=ids.device)
    # Gradient checkpointing runs the layers again in the backward pass, when the context variable is no longer set.
    recomputes = trunk.training and any(getattr(module, "gradient_checkpointing", False) for module in trunk.modules())
    # The MLP reads a state once, however often it is asked for.
    asked = positions.unique() if isinstance(rows, PackedGroups) and positions is not None else positions
    token = _POSITIONS.set(None if positions is None or recomputes else (asked, len(ids)))
    try:
        states = trunk(
            input_ids=ids.unsqueeze(0),
            position_ids=rows.position_ids.unsqueeze(0),
            attention_mask=unused_mask,
            use_cache=False,
            rows=rows,
        ).last_hidden_state[0]
    finally:
        _POSITIONS.reset(token)
    return states if positions is None else states.index_select(0, positions)


@contextmanager
def reading_pairs(classifier: PreTrainedModel) -> Iterator[None]:
    """Inside, a sequence classifier reads the padded batches of TRL's RewardTrainer packed, with the same scores.

    Its `forward` itself is replaced, so that DistributedDataParallel, autocast and PEFT stay around it.

    Raises:
        BadInput: see `use_packed_attention`.
    """
    use_packed_attention(classifier)
    inner = plain_model(classifier)

    def forward(
        input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: object
    ) -> SequenceClassifierOutputWithPast:
        pairs = PackedPairs(input_ids, attention_mask)
        states = hidden_states(inner, pairs.ids, pairs, pairs.last)  # (2b, d)
        return SequenceClassifierOutputWithPast(logits=inner.score(states))

    inner.forward = forward
    try:
        yield
    finally:
        del inner.forward


def logits_at(model: PreTrainedModel, states: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits divided by the temperature, (n, V) in float32, from last hidden states (n, d)."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is None:  # the head is linear, so divide the d numbers before it, not the V after
        return head(states / temperature).float()
    return head(states).float() / temperature


def pack(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, PackedRows]:
    """b rows of token ids -> the packed ids (N,), and where the rows lie in them."""
    ids = torch.tensor([token for row in rows for token in row], device=device)
    return ids, PackedRows([len(row) for row in rows], device)


def pack_responses(
    rows: list[list[int]], prompt_lengths: list[int], device: torch.device
) -> tuple[torch.Tensor, PackedRows, torch.Tensor, torch.Tensor]:
    """Pack rows of prompt and response, each without its last token, from which nothing is predicted.

    A prompt that several rows share is packed once.

    Returns:
        ids (N,), where the rows lie, and for the n response tokens the positions of the states that predict them and
        the tokens themselves, (n,) each, in the order of the rows.
    """
    targets = [token for row, length in zip(rows, prompt_lengths, strict=True) for token in row[length:]]
    rows = [row[:-1] for row in rows]
    if _share_prompts(rows, prompt_lengths):
        packed = PackedGroups(rows, prompt_lengths, device)
        ids, positions = packed.ids, packed.responses(prompt_lengths)
    else:
        ids, packed = pack(rows, device)
        prompts = torch.tensor(prompt_lengths, device=device).repeat_interleave(packed.lengths)
        positions = (packed.position_ids >= prompts - 1).nonzero().squeeze(1)  # the state before a token predicts it
    return ids, packed, positions, torch.tensor(targets, device=device)


def pack_to_last(
    rows: list[list[int]], prompt_lengths: list[int] | None, device: torch.device
) -> tuple[torch.Tensor, PackedRows, torch.Tensor]:
    """Pack rows for their last states only: the ids (N,), where the rows lie, and each row's last token (b,).

    A prompt that several rows share is packed once, if the prompts' lengths are given.
    """
    if prompt_lengths is not None and _share_prompts(rows, prompt_lengths):
        packed = PackedGroups(rows, prompt_lengths, device)
        return packed.ids, packed, packed.last
    ids, packed = pack(rows, device)
    return ids, packed, packed.starts + packed.lengths - 1


def _share_prompts(rows: list[list[int]], prompt_lengths: list[int]) -> bool:
    """Whether some rows begin with the same prompt."""
    return len({tuple(row[:length]) for row, length in zip(rows, prompt_lengths, strict=True)}) < len(rows)


def batches_by_length(
    rows: list[list[int]],
    batch_tokens: int,
    batch_rows: int | None = None,
    prompt_lengths: list[int] | None = None,
) -> Iterator[list[int]]:
    """Indices of rows, shortest first, in batches of about `batch_tokens` tokens and at most `batch_rows` rows.

    The batches are of about equal size, so that no small one is left at the end. With `prompt_lengths`, rows of one
    prompt stay together, and its tokens count once.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    tokens_of = list(map(len, rows))
    if prompt_lengths is not None:
        prompts = [tuple(row[:length]) for row, length in zip(rows, prompt_lengths, strict=True)]
        place = {prompts[row]: number for number, row in enumerate(order)}  # that of a prompt's longest row
        order.sort(key=lambda row: place[prompts[row]])
        for before, row in pairwise(order):
            if prompts[before] == prompts[row]:
                tokens_of[row] -= prompt_lengths[row]
    total = sum(tokens_of)
    share = total / -(-total // batch_tokens)
    batch: list[int] = []
    tokens = 0
    for row in order:
        if batch and (tokens + tokens_of[row] / 2 > share or len(batch) == batch_rows):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += tokens_of[row]
    yield batch


def shuffled_batches_by_length(lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Indices of shuffled texts in batches of `size`, each of similar lengths to save padding, in random order.

    Texts are sorted by length only within windows of forty batches, so that batches differ from epoch to epoch; a
    batch that is not full comes last in its window.
    """
    for start in range(0, len(lengths), 40 * size):
        window = sorted(range(start, min(start + 40 * size, len(lengths))), key=lambda row: lengths[row])
        batches = [window[first : first + size] for first in range(0, len(window), size)]
        rng.shuffle(batches)
        yield from sorted(batches, key=len, reverse=True)
