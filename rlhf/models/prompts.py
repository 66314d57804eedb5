"""Prompts for training: texts, conversations or token ids, from a data set or a stream, as token ids in batches."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.config import BadInput


Messages = list[dict[str, str]]
"""A conversation: messages with `role` and `content`."""
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if message.role == 'user' %}{{ 'Human: ' }}{% endif %}"
    "{% if message.role == 'assistant' %}{{ 'Assistant: ' }}{% endif %}"
    "{{ message.content }}{% if loop.last and message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""The dialogue format of HH-RLHF. The end token comes only at the very end, where a response ends."""
TOKEN_COLUMNS = ("prompt", "input_ids", "attention_mask")


def readable(prompt: str | Messages) -> str:
    """A text or a conversation for a person to read; a single message without its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


@dataclass
class Prompt:
    """A prompt as it stands in the data and as the policy reads it."""

    raw: str | list[dict]
    """A text, or the messages of a conversation."""
    ids: list[int]
    columns: dict[str, object]
    """The other columns of its row, for reward functions."""


class PromptReader:
    """Turns rows of a data set into prompts that leave room for a response.

    Args:
        tokenizer: the policy's; its chat template renders conversations.
        room: the most tokens that a prompt may have; None for no limit.
        chat_template_kwargs: passed to the chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, room: int | None, chat_template_kwargs: dict | None = None
    ) -> None:
        self.tokenizer, self.room = tokenizer, room
        self.chat_template_kwargs = chat_template_kwargs or {}

    def read(self, row: str | list[dict] | dict | Prompt) -> Prompt:
        """Read a row: a text, a conversation, or a dict with `prompt` or `input_ids`; a prompt is taken as it is.

        Raises:
            BadInput: neither `prompt` nor `input_ids`, a conversation without a chat template, an empty prompt, or
                one that leaves no room for the response.
        """
        if isinstance(row, Prompt):
            return row
        row = {"prompt": row} if isinstance(row, str | list) else row
        if not isinstance(row, Mapping):
            raise BadInput(
                "A row of prompts must be a text, a conversation or a dict with `prompt` or `input_ids`, not "
                f"{row!r:.60}."
            )
        raw = row.get("prompt")
        if isinstance(raw, str) or (isinstance(raw, list) and raw and isinstance(raw[0], dict)):
            ids = self.encode(raw)
        elif row.get("input_ids") is not None:
            # Pads are told by the attention mask, never by their id: the pad token may be the end token.
            mask = row.get("attention_mask")
            mask = itertools.repeat(1) if mask is None else mask
            ids = [int(token) for token, real in zip(row["input_ids"], mask) if real]  # noqa: B905
            raw = self.tokenizer.decode(ids, skip_special_tokens=True)
        else:
            raise BadInput(
                "Prompts need a column `prompt` (texts or conversations) or `input_ids`; this row has "
                f"{', '.join(row) or 'no columns'}."
            )
        if not ids:
            raise BadInput(f"A prompt is empty: {str(raw)[:60]!r}; remove its row.")
        if self.room is not None and len(ids) > self.room:
            raise BadInput(
                f"A prompt of {len(ids)} tokens leaves no room for the response, which leaves {max(self.room, 0)}: "
                f"{str(raw)[:60]!r}; shorten response_length or the prompts."
            )
        return Prompt(raw, ids, {name: value for name, value in row.items() if name not in TOKEN_COLUMNS})

    def render(self, messages: list[dict], **kwargs: object) -> str:
        """A conversation as text, up to the point where the assistant's answer begins."""
        require_chat_template(self.tokenizer)
        kwargs = {"add_generation_prompt": True, **self.chat_template_kwargs, **kwargs}
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)

    def encode(self, prompt: str | list[dict]) -> list[int]:
        """Token ids of a text or a conversation."""
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        return self.tokenizer(self.render(prompt), add_special_tokens=False)["input_ids"]


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer can read conversations.

    Raises:
        BadInput: it has no chat template.
    """
    if tokenizer.chat_template is None:
        raise BadInput(
            "The prompts are conversations, but the tokenizer has no chat template; give texts, or a tokenizer of an "
            "instruction-tuned model, or set tokenizer.chat_template."
        )


def give_chat_template(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | list[dict]]) -> None:
    """If the prompts are conversations, give `PLAIN_CHAT_TEMPLATE` to a tokenizer without a template, such as GPT-2's.

    The commands do this for every model that they load; the template is saved with the model.
    """
    if tokenizer.chat_template is not None or not prompts or isinstance(prompts[0], str):
        return
    adds_bos = tokenizer.bos_token_id in tokenizer("")["input_ids"]
    tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_CHAT_TEMPLATE


def question_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, room: int, history: Sequence[dict] = ()
) -> Prompt:
    """A person's question as a prompt of at most `room` tokens, after the earlier messages of the chat.

    With a chat template, the question is the last message of a conversation, whose oldest turns are dropped until it
    fits; without one, it stands alone. Text that spells a special token is removed, so that nobody can end a turn by
    typing it.

    Raises:
        BadInput: the question is empty, or too long by itself.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]

    def plain(text: str) -> str:
        for token in special:
            text = text.replace(token, " ")
        return text.strip()

    question = plain(question)
    if not question:
        raise BadInput("Please write a question first.")
    reader = PromptReader(tokenizer, None)
    before = [{**message, "content": plain(message["content"])} for message in history]
    for first in range(0, len(before) + 1, 2):
        messages = [*before[first:], {"role": "user", "content": question}]
        raw = messages if tokenizer.chat_template else question
        ids = reader.encode(raw)
        if len(ids) <= room:
            return Prompt(raw, ids, {})
    most = len(question) * room // len(ids)
    raise BadInput(
        f"The question has {len(question):,} characters; this model reads about {most:,} at most. Please shorten it."
    )


def fitting(prompts: Sequence[str | list[dict]], reader: PromptReader) -> list[Prompt]:
    """Read the prompts that leave room for a response; a warning counts the others.

    Raises:
        BadInput: no prompt does.
    """
    unlimited = PromptReader(reader.tokenizer, None, reader.chat_template_kwargs)
    read = [unlimited.read(prompt) for prompt in prompts]
    fits = [prompt for prompt in read if len(prompt.ids) <= reader.room]
    if prompts and not fits:
        shortest = min(len(prompt.ids) for prompt in read)
        raise BadInput(
            f"Even the shortest prompt, {shortest} tokens, leaves no room for the response, which leaves "
            f"{max(reader.room, 0)}; shorten response_length or the prompts."
        )
    if len(fits) < len(prompts):
        warnings.warn(
            f"{len(prompts) - len(fits)} of {len(prompts)} prompts were left out: with more than {reader.room} tokens "
            "they leave no room for a response.",
            stacklevel=2,
        )
    return fits


class PromptSet:
    """The prompts of a data set, all read and checked at construction. Each epoch has its own order."""

    def __init__(self, rows: Sequence[str | dict], reader: PromptReader) -> None:
        self.prompts = [reader.read(row) for row in rows]
        if not self.prompts:
            raise BadInput("There are no prompts: the data set is empty.")

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, first: int, size: int, seed: int) -> list[Prompt]:
        """Prompts `first` to `first + size` of the training's order, one permutation per epoch, drawn from `seed`."""
        count = len(self.prompts)
        order = {}
        for epoch in range(first // count, (first + size - 1) // count + 1):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order[epoch] = torch.randperm(count, generator=generator).tolist()
        return [self.prompts[order[index // count][index % count]] for index in range(first, first + size)]


class PromptStream:
    """The prompts of an iterable data set, in its own order, over and over."""

    def __init__(self, rows: Iterable[str | dict], reader: PromptReader) -> None:
        self.rows, self.reader = rows, reader
        self.next_index = 0
        self.iterator = self._repeat()

    def _repeat(self) -> Iterator[str | dict]:
        for epoch in itertools.count():
            empty = True
            for row in self.rows:
                empty = False
                yield row
            if empty and epoch == 0:
                raise BadInput("There are no prompts: the data set is empty.")
            if empty:
                raise BadInput(
                    "The prompts ran out: a generator is read only once; give a data set, or fewer updates."
                )

    def batch(self, first: int, size: int, seed: int) -> list[Prompt]:
        """The next prompts; a resumed run skips those before `first`. `seed` is unused: the order is the stream's."""
        if first < self.next_index:  # resumed from an earlier update
            self.next_index, self.iterator = 0, self._repeat()
        for _ in itertools.islice(self.iterator, first - self.next_index):
            pass
        self.next_index = first + size
        return [self.reader.read(row) for row in itertools.islice(self.iterator, size)]


def prompts_of(rows: Sequence | Iterable, reader: PromptReader) -> PromptSet | PromptStream:
    """The prompts of a data set with a length, or of one that can only be iterated over."""
    return PromptSet(rows, reader) if hasattr(rows, "__len__") else PromptStream(rows, reader)


def held_out_prompts(rows: Sequence | dict | None, reader: PromptReader) -> dict[str, list[Prompt]]:
    """Name of each evaluation set -> its prompts; the name is "" if there is only one."""
    if rows is None:
        return {}
    sets = rows if isinstance(rows, dict) else {"": rows}
    return {name: PromptSet(rows, reader).prompts for name, rows in sets.items()}
