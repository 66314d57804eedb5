"""Where prompts and answers become token ids, and token ids become answers, for everything that trains or scores.

`PromptReader` does it: reward training and DPO read its `pairs`, PPO, comparison and Chat its prompts (`read`), and
the answers to them are scored as `closed` ends them. So a pair begins with the very ids that the policy answers, and
ends with the one end token that the scored answer ends with. `PromptSet` and `PromptStream` are data sets of prompts.
"""

import copy
import inspect
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


@dataclass
class Pair:
    """A prompt with an answer, as token ids."""

    prompt_ids: list[int]
    """As the policy reads it before it answers."""
    ids: list[int]
    """Prompt, answer and one end token."""
    moved: bool
    """Whether the text as a whole would have been cut into other tokens where the prompt ends."""


class TemplateRefused(BadInput):
    """A conversation that the chat template cannot write; the message has the template's own complaint."""


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a model's response: the tokenizer's end token, and those of the generation config.

    A single id that Transformers derived from the model's config says nothing: it may be the architecture's default.

    Raises:
        BadInput: the generation config lists something else than ids.
    """
    config = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    if not isinstance(listed, list):
        listed = [] if getattr(config, "_from_model_config", False) else [listed]
    if not all(isinstance(token, int | None) for token in listed):
        raise BadInput(
            f"The model's generation_config.json says that {listed} ends an answer; it must list token ids."
        )
    return [token for token in dict.fromkeys([tokenizer.eos_token_id, *listed]) if token is not None]


class PromptReader:
    """Turns rows of a data set into prompts that leave room for a response, and answers into ids and back into text.

    A text begins with one begin token where the tokenizer adds any, and a prompt never ends with an end token that the
    tokenizer adds. A space at a prompt's end belongs to the answer, whose first token most vocabularies begin with it.

    Args:
        tokenizer: the policy's; its chat template renders conversations.
        room: the most tokens that a prompt may have; None for no limit.
        chat_template_kwargs: passed to the chat template.
        end_ids: ids that end a response, see `end_ids`; None for the tokenizer's end token alone.

    Raises:
        BadInput: chat_template_kwargs that are not the template's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        room: int | None,
        chat_template_kwargs: dict | None = None,
        end_ids: Sequence[int] | None = None,
    ) -> None:
        self.tokenizer, self.room = tokenizer, room
        self.chat_template_kwargs = chat_template_kwargs or {}
        self._listens = False  # whether the template is known to write what it is given
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.end_ids = own if end_ids is None else list(end_ids)
        ours = self.chat_template_kwargs.keys() & inspect.signature(tokenizer.apply_chat_template).parameters.keys()
        if ours - {"tools", "documents"}:
            raise BadInput(
                f"chat_template_kwargs cannot set {', '.join(sorted(ours))}; it takes what the chat template itself "
                "reads, such as enable_thinking=false."
            )

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
        """A conversation as text, up to the point where the assistant's answer begins.

        Raises:
            TemplateRefused: the template raised an error.
        """
        require_chat_template(self.tokenizer)
        kwargs = {"add_generation_prompt": True, **self.chat_template_kwargs, **kwargs}
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
            if not self._listens:
                other = [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']} x"}]
                if self.tokenizer.apply_chat_template(other, tokenize=False, **kwargs) == text:
                    raise ValueError(f"it leaves out what the {messages[-1]['role']} says")
                self._listens = True
            return text
        except Exception as error:  # a template is a program, and may raise anything
            complaint = " ".join(str(error).split())[:200] or type(error).__name__
            raise TemplateRefused(
                f"The chat template refuses a conversation ({complaint}): {readable(messages)[:60]!r}; change the "
                "conversation, or choose a model whose template takes it."
            ) from error

    def text_of(self, prompt: str | list[dict]) -> str:
        """A text or a conversation as the text that is tokenized."""
        return prompt.removesuffix(" ") if isinstance(prompt, str) else self.render(prompt)

    def encode(self, prompt: str | list[dict]) -> list[int]:
        """Token ids of a text or a conversation, with at most one begin token and before any end token."""
        return self._begun(self._bare([self.text_of(prompt)])[0], isinstance(prompt, str))

    def _bare(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, with nothing added."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    @cached_property
    def _added(self) -> list[int]:
        """What the tokenizer adds before a text."""
        added, [bare] = self.tokenizer("a")["input_ids"], self._bare(["a"])
        return next((added[:i] for i in range(len(added)) if added[i : i + len(bare)] == bare), [])

    def _begun(self, ids: list[int], is_text: bool) -> list[int]:
        """Token ids with the begin token once, whether the tokenizer, the chat template or the text writes it."""
        ids = self._added + ids if is_text else ids
        while len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            ids = ids[1:]
        return ids

    # How an answer ends

    @cached_property
    def _ending(self) -> str:
        """What the chat template writes after the last answer."""
        answer = "\ue000"  # for private use: no template writes it
        try:
            messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
            return self.render(messages, add_generation_prompt=False).rpartition(answer)[2]
        except TemplateRefused:
            return ""

    @cached_property
    def _template_end(self) -> str:
        """The chat template's ending up to its end token; the tokenizer's end token where the template writes none.

        Raises:
            BadInput: the tokenizer has none, which PPO needs whatever the template writes.
        """
        own = self._end
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        for tokens in ([own], special):
            ends = [self._ending.index(token) + len(token) for token in tokens if token and token in self._ending]
            if ends:
                return self._ending[: min(ends)]
        return own

    @property
    def _end(self) -> str:
        """The tokenizer's end token.

        Raises:
            BadInput: it has none.
        """
        if self.tokenizer.eos_token is None:
            raise BadInput(
                "The tokenizer has no end token, by which a model learns where an answer ends; set its eos_token, or "
                "choose another model."
            )
        return self.tokenizer.eos_token

    def closed(self, prompt: Prompt, answer: list[int]) -> list[int]:
        """A policy's answer as a reward model reads it: whichever token ended it, it ends as the `pairs` do."""
        if not answer or answer[-1] not in self.end_ids:
            return answer
        end = self._end if isinstance(prompt.raw, str) else self._template_end
        return [*answer[:-1], self._bare([end])[0][-1]]

    # Pairs, and answers as text

    def pair(self, prompt: str | list[dict], answer: str | list[dict], *, ended: bool = True) -> Pair:
        """A prompt with an answer to it, see `pairs`; without the end token if the answer was cut off.

        Raises:
            TemplateRefused: the chat template cannot write it.
        """
        return self._pairs([self._written(prompt, answer, ended)])[0]

    def pairs(
        self, prompts: Sequence[str | list[dict]], answers: Sequence[str | list[dict]]
    ) -> list[Pair | TemplateRefused]:
        """Prompts with an answer to each, as token ids; why, for those that the chat template cannot write.

        Whatever a chat template writes beside the prompt, the answer and its end, such as an empty thought or a line
        break, is left out: the policy is not asked with it.

        Raises:
            BadInput: conversations without a chat template, or a tokenizer without an end token.
        """
        written: list[tuple[bool, str, str] | TemplateRefused] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            try:
                written.append(self._written(prompt, answer))
            except TemplateRefused as refusal:
                written.append(refusal)
        pairs = iter(self._pairs([texts for texts in written if isinstance(texts, tuple)]))
        return [next(pairs) if isinstance(texts, tuple) else texts for texts in written]

    def _pairs(self, written: list[tuple[bool, str, str]]) -> list[Pair]:
        """(is a text, prompt, answer with its end) -> ids: those of both together, where they begin as the prompt."""
        starts = self._bare([prompt for _, prompt, _ in written])
        wholes = self._bare([prompt + answer for _, prompt, answer in written])
        moved = [start != whole[: len(start)] for start, whole in zip(starts, wholes, strict=True)]
        apart = iter(self._bare([answer for (*_, answer), cut in zip(written, moved, strict=True) if cut]))
        pairs = []
        for (is_text, *_), start, whole, cut in zip(written, starts, wholes, moved, strict=True):
            answer = next(apart) if cut else whole[len(start) :]
            prompt = self._begun(start, is_text)
            pairs.append(Pair(prompt, prompt + answer, cut))
        return pairs

    def _written(
        self, prompt: str | list[dict], answer: str | list[dict], ended: bool = True
    ) -> tuple[bool, str, str]:
        """Whether it is a text, the prompt, and the answer as it follows the prompt, with its end."""
        start = self.text_of(prompt)
        if isinstance(prompt, str):
            said = prompt[len(start) :] + answer
            return True, start, said.removesuffix(self._end) + self._end if ended else said
        body = self.render([*prompt, *answer], add_generation_prompt=False).removesuffix(self._ending)
        said = body[len(start) :] if body.startswith(start) else None
        content = answer[0].get("content") if len(answer) == 1 and not answer[0].get("tool_calls") else None
        if isinstance(content, str) and (said is None or said.split() != content.split()):
            said = content if body.endswith(content) else content.strip()
        if said is None:
            raise TemplateRefused(
                "The chat template writes a conversation with its answer in another way than before the answer: "
                f"{readable(prompt)[:60]!r}; choose a model whose template does not."
            )
        return False, start, said.removesuffix(self._template_end) + self._template_end if ended else said

    def text(self, answer: list[int]) -> str:
        """A policy's answer as text, without its end token and without a character that is only half written."""
        ids = answer[:-1] if answer and answer[-1] in self.end_ids else answer
        return self.tokenizer.decode(ids, skip_special_tokens=True).replace("\N{REPLACEMENT CHARACTER}", "")


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

    The commands do this for every model that they load; the template is saved with the model. That texts are read
    without a template is said where there is one.
    """
    if not prompts:
        return
    if isinstance(prompts[0], str):
        if _without_template(tokenizer, prompts[0]):
            warnings.warn(
                "The prompts are texts, and are read without the chat template that the model has; with "
                "as_conversations each is what a user says.",
                stacklevel=2,
            )
    elif tokenizer.chat_template is None:
        adds_bos = tokenizer.bos_token_id in tokenizer("")["input_ids"]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_CHAT_TEMPLATE


def _without_template(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokenizer's chat template, if it has one, would write this text in another way."""
    # A text that holds such tokens was written with a template before.
    if not tokenizer.chat_template or any(token in text for token in tokenizer.all_special_tokens):
        return False
    said = [{"role": "user", "content": text.strip()}]
    with suppress(Exception):  # a template is a program, and may raise anything
        written = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return written.removeprefix(tokenizer.bos_token or "") != text
    return False


def question_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    room: int,
    history: Sequence[dict] = (),
    chat_template_kwargs: dict | None = None,
    system: str = "",
) -> Prompt:
    """A person's question as a prompt of at most `room` tokens, after the earlier messages of the chat.

    With a chat template, the question is the last message of a conversation, which may begin with a system prompt, and
    whose oldest turns are dropped until it fits; without one, it stands alone. Text that spells a special token is
    removed, so that nobody can end a turn by typing it.

    Raises:
        BadInput: the question is empty, too long by itself, or refused by the chat template.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]

    def plain(text: str) -> str:
        for token in special:
            text = text.replace(token, " ")
        return text.strip()

    question = plain(question)
    if not question:
        raise BadInput("Please write a question first.")
    reader = PromptReader(tokenizer, None, chat_template_kwargs)
    before = [{**message, "content": plain(message["content"])} for message in history]
    told = [{"role": "system", "content": plain(system)}] if plain(system) else []
    for first in range(0, len(before) + 1, 2):
        messages = [*told, *before[first:], {"role": "user", "content": question}]
        raw = messages if tokenizer.chat_template else question
        ids = reader.encode(raw)
        if len(ids) <= room:
            return Prompt(raw, ids, {})
    most = len(question) * room // len(ids)
    raise BadInput(
        f"The question has {len(question):,} characters; this model reads about {most:,} at most. Please shorten it."
    )


def report_refused(refused: dict[int, TemplateRefused], rows: int) -> None:
    """Warn of rows of a data set, by index, that were left out because the chat template refuses them.

    Raises:
        BadInput: it refuses all of them.
    """
    if refused:
        row, why = next(iter(refused.items()))
        if len(refused) == rows:
            raise BadInput(f"None of the {rows} rows can be used, and row {row + 1} cannot: {why}")
        warnings.warn(
            f"{len(refused)} of {rows} rows were left out, the first of them row {row + 1}: {why}", stacklevel=3
        )


def fitting(prompts: Sequence[str | list[dict]], reader: PromptReader) -> list[Prompt]:
    """Read the prompts that leave room for a response; warnings count the others, and those no template can write.

    Raises:
        BadInput: no prompt does.
    """
    unlimited = copy.copy(reader)
    unlimited.room = None
    read, refused = [], {}
    for row, prompt in enumerate(prompts):
        try:
            read.append(unlimited.read(prompt))
        except TemplateRefused as refusal:
            refused[row] = refusal
    report_refused(refused, len(prompts))
    fits = [prompt for prompt in read if len(prompt.ids) <= reader.room]
    if read and not fits:
        shortest = min(len(prompt.ids) for prompt in read)
        raise BadInput(
            f"Even the shortest prompt, {shortest} tokens, leaves no room for the response, which leaves "
            f"{max(reader.room, 0)}; shorten response_length or the prompts."
        )
    if len(fits) < len(read):
        warnings.warn(
            f"{len(read) - len(fits)} of {len(prompts)} prompts were left out: with more than {reader.room} tokens "
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
