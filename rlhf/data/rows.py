"""One row of a table as a prompt, or as a prompt with two answers: texts or conversations, whatever form they had.

With `chosen` and `rejected` as whole dialogues, the prompt is what both begin with. TRL's `extract_prompt` compares
texts letter by letter, so that a prompt may end within the first word of an answer; here it ends where the answer
begins.
"""

import ast
import json
import math
import os
import re
from itertools import takewhile

from rlhf.models.prompts import Messages, readable


PAIR_COLUMNS = ("prompt", "chosen", "rejected", "conversations", "system", "history", "margin")
PROMPT_COLUMNS = ("prompt", "messages", "conversations", "system", "history")
_ASSISTANT = "\n\nAssistant:"
"""Before an answer in the transcripts of Anthropic's HH-RLHF."""
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
"""ShareGPT's names of roles, where they differ."""
_MESSAGES_AS_TEXT = re.compile(
    r"""\s*\[?\s*\{\s*(?=["'](role|content|from|value)["']\s*:)"""
    r"""(?=.*["'](role|from)["']\s*:)(?=.*["'](content|value)["']\s*:)""",
    re.DOTALL,
)
"""How a cell of a table begins that holds messages."""


_NUMPY_GAP = re.compile(r"""(["']\})\s+\{(?=["'](?:role|content|from|value)["'])""")
"""Between the messages of an array as NumPy prints it, where a list has a comma."""
_MESSAGE_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a message, in TRL's form and in ShareGPT's."""


class Unusable(Exception):  # noqa: N818  (a row is left out, nothing fails)
    """Why a row is left out, in a few words."""


def checked(value: object, what: str) -> str | Messages:
    """A prompt or an answer: a text, or messages reduced to role and content.

    Raises:
        Unusable: it is empty, or neither a text nor a conversation.
    """
    if isinstance(value, str) and _MESSAGES_AS_TEXT.match(value):
        messages = parsed(value)
        value = messages if _are_messages(messages) else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = "" if math.isnan(value) else str(value)  # a column of a Parquet file whose answers are all digits
    if isinstance(value, dict):
        value = [value]
    value = [_message(message) for message in value] if isinstance(value, list) else value or ""
    if not isinstance(value, str | list):
        raise Unusable("not text")
    text = readable(value) if value else ""
    if not text.strip():
        raise Unusable(f"empty {what}")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise Unusable("half a character")
    return value


def _are_messages(value: object) -> bool:
    messages = value if isinstance(value, list) else [value]
    return all(
        isinstance(message, dict) and any(set(keys) <= message.keys() for keys in _MESSAGE_KEYS)
        for message in messages
    )


def parsed(text: str) -> object:
    """What a cell of a table holds as JSON or as Python prints it, lists or NumPy's arrays."""
    with_commas = _NUMPY_GAP.sub(r"\1, {", text)
    for parse, written in (
        (json.loads, text),
        (ast.literal_eval, text.strip()),
        (ast.literal_eval, with_commas.strip()),
    ):
        try:
            return parse(written)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise Unusable("a conversation as text that cannot be parsed")


def _message(message: object) -> dict[str, str]:
    """Role and content of a message, in TRL's form or in ShareGPT's."""
    if not isinstance(message, dict):
        raise Unusable("not text")
    role, content = message.get("role"), message.get("content")
    if role is None and content is None:
        role, content = message.get("from"), message.get("value")
        role = _ROLES.get(role, role) if isinstance(role, str) else role
    if message.get("tool_calls") or message.get("function_call") or role == "function_call":
        raise Unusable("a tool call, not text")
    if isinstance(content, list):
        content = "".join(map(_part, content))
    if not isinstance(role, str) or not isinstance(content, str):
        raise Unusable("not text")
    return {"role": role, "content": content}


def _part(part: object) -> str:
    """The text of a part of a message's content."""
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        kind = str(part.get("type") or "not text") if isinstance(part, dict) else "not text"
        raise Unusable("not text" if kind in ("text", "not text") else f"{kind.removesuffix('_url')}, not text")
    return text


def as_conversation(text: str | Messages, role: str = "user") -> Messages:
    """A text as a message of this role, a transcript as of HH-RLHF as its turns, a conversation as it is."""
    if not isinstance(text, str):
        return text
    before, *turns = _TURN.split(text)
    if turns and not before.strip():
        said = [(_SPEAKERS[who], words.strip()) for who, words in zip(turns[::2], turns[1::2], strict=True)]
        return [{"role": role, "content": words} for role, words in said if words]  # the last is still to be said
    return [{"role": role, "content": text.strip()}]


def check_same_kind(*values: str | Messages) -> None:
    """Raise `Unusable` if some are texts and others are conversations."""
    if len(set(map(type, values))) > 1:
        raise Unusable("text beside a conversation")


def _up_to_user(messages: Messages) -> Messages:
    """A conversation up to the last message of the user, which an assistant would answer."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return messages[: users[-1] + 1] if users else []


def _shared_prompt(chosen: str | Messages, rejected: str | Messages) -> str | Messages:
    """The prompt that two dialogues begin with, up to where the answers begin."""
    if isinstance(chosen, list):
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        return _up_to_user([message for message, _ in shared])
    shared = os.path.commonprefix([chosen, rejected])
    turn = shared.rfind(_ASSISTANT)
    if turn >= 0:
        return shared[: turn + len(_ASSISTANT)]
    if any(side[len(shared) :][:1].isalnum() for side in (chosen, rejected)):
        shared = re.sub(r"\w+$", "", shared)  # the answers' first words share their first letters
    return shared.removesuffix(" ")


def _context(row: dict) -> Messages | None:
    """The messages before the prompt, from columns `system` and `history`; None if the data have neither."""
    if "system" not in row and "history" not in row:
        return None
    system, history = row.get("system") or "", row.get("history") or []
    if not isinstance(system, str):
        raise Unusable("system not text")
    if isinstance(history, str):
        history = parsed(history)
    if not isinstance(history, list):
        raise Unusable("history not a list")
    before = [{"role": "system", "content": system}] if system.strip() else []
    for turn in history:
        if isinstance(turn, dict):
            before.append(_message(turn))
        elif isinstance(turn, list | tuple) and len(turn) == 2:
            sides = zip(("user", "assistant"), turn, strict=True)
            before += [_message({"role": role, "content": content}) for role, content in sides]
        else:
            raise Unusable("history not questions with answers")
    return before


def _as_messages(value: str | Messages, role: str) -> Messages:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def pair_of(row: dict) -> dict[str, object]:
    """One row of preferences, with an explicit prompt.

    Raises:
        Unusable: it is incomplete, or holds no preference.
    """
    chosen, rejected = (checked(row.get(side), "answer") for side in ("chosen", "rejected"))
    check_same_kind(chosen, rejected)
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    prompt = row.get("prompt", row.get("conversations"))
    whole = isinstance(chosen, list) and chosen[0]["role"] != "assistant"
    # As in TRL, a prompt that is a text beside whole dialogues only repeats their beginning.
    if ("prompt" not in row and "conversations" not in row) or (whole and not isinstance(prompt, list)):
        prompt = _shared_prompt(chosen, rejected)
        if not prompt:
            raise Unusable("no common prompt")
        chosen, rejected = (checked(side[len(prompt) :], "answer") for side in (chosen, rejected))
    prompt = checked(prompt, "prompt")
    before = _context(row)
    if before is not None or isinstance(prompt, list) or isinstance(chosen, list):
        prompt = [*(before or ()), *_as_messages(prompt, "user")]
        chosen, rejected = (_as_messages(side, "assistant") for side in (chosen, rejected))
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return pair | {"margin": _margin(row["margin"])} if "margin" in row else pair


def _margin(value: object) -> float:
    """By how much the chosen answer should score higher at least."""
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise Unusable("margin is no number")
    return margin


def prompt_of(row: dict) -> dict[str, str | Messages]:
    """One row of prompts, or of conversations in a column `messages` or `conversations`.

    Raises:
        Unusable: there is nothing to answer.
    """
    if "prompt" in row:
        prompt = checked(row["prompt"], "prompt")
    else:
        prompt = checked(row.get("messages", row.get("conversations")), "conversation")
        if isinstance(prompt, str):
            raise Unusable("not a conversation")
        prompt = checked(_up_to_user(prompt), "prompt")
    before = _context(row)
    return {"prompt": prompt if before is None else [*before, *_as_messages(prompt, "user")]}
