"""Prompts as a trainer takes them: texts, conversations or token ids, from a data set or a stream, batch by batch."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.config import BadInput


Messages = list[dict[str, str]]
"""A conversation: a role and a content each."""
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if message.role == 'user' %}{{ 'Human: ' }}{% endif %}"
    "{% if message.role == 'assistant' %}{{ 'Assistant: ' }}{% endif %}"
    "{{ message.content }}{% if loop.last and message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""Conversations as the transcripts of HH-RLHF; the end token stands at the very end only, where a response ends."""
TOKEN_COLUMNS = ("prompt", "input_ids", "attention_mask")


def readable(given: str | Messages) -> str:
    """A text or a conversation as a person reads it; the only message of a conversation stands for itself."""
    if isinstance(given, str):
        return given
    if len(given) == 1:
        return given[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in given)


@dataclass
class Prompt:
    """One prompt, as it was given and as the policy reads it."""

    given: str | list[dict]
    """A text, or the messages of a conversation."""
    ids: list[int]
    columns: dict[str, object]
    """What else stood in its row."""


class PromptReader:
    """Turns rows of a data set into prompts that leave room for a response.

    Args:
        tokenizer: the policy's; its chat template renders conversations.
        room: tokens a prompt may have; None sets no limit.
        chat_template_kwargs: handed to the chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, room: int | None, chat_template_kwargs: dict | None = None
    ) -> None:
        self.tokenizer, self.room = tokenizer, room
        self.chat_template_kwargs = chat_template_kwargs or {}

    def read(self, row: str | list[dict] | dict) -> Prompt:
        """One row -> its prompt.

        Raises:
            BadInput: neither `prompt` nor `input_ids`, a conversation without a chat template, an empty prompt, or
                one that leaves no room.
        """
        row = {"prompt": row} if isinstance(row, str | list) else row
        if not isinstance(row, Mapping):
            raise BadInput(
                "A row of prompts must be a text, a conversation or a dict with `prompt` or `input_ids`, not "
                f"{row!r:.60}."
            )
        given = row.get("prompt")
        if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], dict)):
            ids = self.encode(given)
        elif row.get("input_ids") is not None:
            # Masked by the mask that came with it, never by a token's value: a pad may well be the end token.
            mask = row.get("attention_mask")
            mask = itertools.repeat(1) if mask is None else mask
            ids = [int(token) for token, real in zip(row["input_ids"], mask) if real]  # noqa: B905
            given = self.tokenizer.decode(ids, skip_special_tokens=True)
        else:
            raise BadInput(
                "Prompts need a column `prompt` (texts or conversations) or `input_ids`; this row has "
                f"{', '.join(row) or 'no columns'}."
            )
        if not ids:
            raise BadInput(f"A prompt is empty: {str(given)[:60]!r}; remove its row.")
        if self.room is not None and len(ids) > self.room:
            raise BadInput(
                f"A prompt of {len(ids)} tokens leaves no room for the response, which leaves {max(self.room, 0)}: "
                f"{str(given)[:60]!r}; shorten response_length or the prompts."
            )
        return Prompt(given, ids, {name: value for name, value in row.items() if name not in TOKEN_COLUMNS})

    def render(self, messages: list[dict], **kwargs: object) -> str:
        """A conversation as text, up to where the assistant begins to speak."""
        require_chat_template(self.tokenizer)
        kwargs = {"add_generation_prompt": True, **self.chat_template_kwargs, **kwargs}
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)

    def encode(self, given: str | list[dict]) -> list[int]:
        """A text or a conversation as the policy reads it."""
        if isinstance(given, str):
            return self.tokenizer(given)["input_ids"]
        return self.tokenizer(self.render(given), add_special_tokens=False)["input_ids"]


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
    """Let a tokenizer without a chat template, such as GPT-2's, read conversations as plain dialogues, if it must.

    The commands do this for every model they load, and the template is saved with the model.
    """
    if tokenizer.chat_template is not None or not prompts or isinstance(prompts[0], str):
        return
    begins = tokenizer("")["input_ids"]
    tokenizer.chat_template = ("{{ bos_token }}" if tokenizer.bos_token_id in begins else "") + PLAIN_CHAT_TEMPLATE


def question_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, room: int, history: Sequence[dict] = ()
) -> Prompt:
    """A person's question as the policy reads it, after what was said before.

    Where the tokenizer has a chat template, the question is the last message of a conversation, whose oldest question
    and answer give way where there is no room for them; elsewhere it stands alone. What looks like a special token is
    taken out: nobody ends a turn by writing so.

    Raises:
        BadInput: the question is empty, or longer than the room.
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
        given = messages if tokenizer.chat_template else question
        ids = reader.encode(given)
        if len(ids) <= room:
            return Prompt(given, ids, {})
    raise BadInput(f"The question is {len(ids)} tokens long, this model reads at most {room}; please shorten it.")


def fitting(prompts: Sequence[str | list[dict]], reader: PromptReader) -> list[str | list[dict]]:
    """The prompts that leave room for a response; a warning says how many do not.

    Raises:
        BadInput: none does.
    """
    lengths = [len(reader.encode(prompt)) for prompt in prompts]
    fits = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= reader.room]
    if prompts and not fits:
        raise BadInput(
            f"Even the shortest prompt, {min(lengths)} tokens, leaves no room for the response, which leaves "
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
    """The prompts of a data set, read and checked at once; batches are permutations of all, one after another."""

    def __init__(self, rows: Sequence[str | dict], reader: PromptReader) -> None:
        self.prompts = [reader.read(row) for row in rows]
        if not self.prompts:
            raise BadInput("There are no prompts: the data set is empty.")

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, first: int, size: int, seed: int) -> list[Prompt]:
        """Prompts number `first` to `first + size` of the training's order, which `seed` decides."""
        count = len(self.prompts)
        order = {}
        for turn in range(first // count, (first + size - 1) // count + 1):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
            order[turn] = torch.randperm(count, generator=generator).tolist()
        return [self.prompts[order[place // count][place % count]] for place in range(first, first + size)]


class PromptStream:
    """The prompts of an iterable data set, in its own order, from its start again when it ends."""

    def __init__(self, rows: Iterable[str | dict], reader: PromptReader) -> None:
        self.rows, self.reader = rows, reader
        self.place = 0
        self.source = self._repeat()

    def _repeat(self) -> Iterator[str | dict]:
        for turn in itertools.count():
            empty = True
            for row in self.rows:
                empty = False
                yield row
            if empty and turn == 0:
                raise BadInput("There are no prompts: the data set is empty.")
            if empty:
                raise BadInput(
                    "The prompts ran out: a generator is read only once; give a data set, or fewer updates."
                )

    def batch(self, first: int, size: int, seed: int) -> list[Prompt]:
        """The next prompts; a resumed run skips those before `first`. The order is the stream's: `seed` is unused."""
        if first < self.place:  # a checkpoint of an earlier update
            self.place, self.source = 0, self._repeat()
        for _ in itertools.islice(self.source, first - self.place):
            pass
        self.place = first + size
        return [self.reader.read(row) for row in itertools.islice(self.source, size)]


def prompts_of(rows: Sequence | Iterable, reader: PromptReader) -> PromptSet | PromptStream:
    """The prompts of a data set of known length, or of one that can be iterated over only."""
    return PromptSet(rows, reader) if hasattr(rows, "__len__") else PromptStream(rows, reader)


def held_out_prompts(rows: Sequence | dict | None, reader: PromptReader) -> dict[str, list[Prompt]]:
    """Prompts of each evaluation set by its name, "" if there is but one."""
    if rows is None:
        return {}
    sets = rows if isinstance(rows, dict) else {"": rows}
    return {name: PromptSet(rows, reader).prompts for name, rows in sets.items()}
