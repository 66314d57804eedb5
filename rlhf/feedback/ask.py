"""What people are asked: two answers to one prompt that differ as much as possible.

Of pairs taken blindly nine in ten say nothing about a rare taste; so several answers are sampled to each prompt, and
the two that have the fewest words in common are shown. Once people have made some choices, a probe of these says for
every other pair which answers are worth asking about.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import EVERYDAY, FeedbackArguments
from rlhf.data.load import load_prompts
from rlhf.everyday import subject_of
from rlhf.feedback.probe import ASKING, Features, Probe, answer_features, comparable
from rlhf.feedback.store import FIRST_CHOICES, Choice, Pair, Store
from rlhf.models import context_size
from rlhf.models.generate import generate
from rlhf.models.prompts import Prompt, PromptReader, end_ids, fitting, give_chat_template, readable


ANSWERS = 8
"""Answers sampled to each prompt."""
PROMPTS_AT_ONCE = 16
REMEMBERED = 400
"""The latest choices, which the probe learns from: it learns anew for each batch of pairs."""
SCREENED = 4
"""Prompts that then have their turn for each pair that is asked."""


def spread(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """The prompts in random order; in the embedded world each topic comes once before any comes twice."""
    prompts = random.Random(seed).sample(prompts, len(prompts))
    seen: Counter[object] = Counter()
    turn = {}
    for number, prompt in enumerate(prompts):
        topic = subject_of(readable(prompt.raw))
        seen[topic] += topic is not None
        turn[number] = seen[topic]
    return [prompts[number] for number in sorted(turn, key=turn.get)]


def unlike(a: str, b: str) -> float:
    """How far two texts differ: 1 minus the share of their words that both have (Jaccard)."""
    ours, theirs = set(a.lower().split()), set(b.lower().split())
    return 1 - len(ours & theirs) / max(1, len(ours | theirs))


def best_pairs(worth: Iterable[tuple[float, int, int]], most: int) -> list[tuple[int, int]]:
    """Of pairs (worth, i, j) of a prompt's answers the `most` that are worth most; no answer comes more than twice."""
    found: list[tuple[int, int]] = []
    times: Counter[int] = Counter()
    for _, i, j in sorted(worth, key=lambda pair: -pair[0]):
        if len(found) < most and max(times[i], times[j]) < 2:
            found.append((i, j))
            times.update((i, j))
    return found


def answers_to(
    model: PreTrainedModel,
    reader: PromptReader,
    prompts: Sequence[Prompt],
    count: int,
    *,
    response_length: int,
    temperature: float,
    seed: int,
) -> Iterator[list[str]]:
    """For each prompt `count` sampled answers that have ended, or fewer; a batch of prompts at a time."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = [prompt for prompt in prompts[start : start + PROMPTS_AT_ONCE] for _ in range(count)]
        generation = generate(
            model,
            [prompt.ids for prompt in part],
            max_new_tokens=response_length,
            temperature=temperature,
            eos_id=reader.end_ids,
            generator=generator,
        )
        texts = [reader.text(ids).strip() for ids in generation.lists()]
        ended = generation.ended.tolist()
        for row in range(0, len(part), count):
            yield [
                text for text, whole in zip(texts[row : row + count], ended[row : row + count], strict=True) if whole
            ]


def add_pairs(
    store: Store,
    models: dict[str, PreTrainedModel],
    reader: PromptReader,
    prompts: Sequence[Prompt],
    *,
    response_length: int,
    temperature: float,
    seed: int,
    each: int = 1,
) -> list[Pair]:
    """Sample answers to the prompts and add a pair for each; a prompt to which no two answers differ gives none.

    Of one model these are the two answers that differ most, or `each` such pairs, the first ones of all prompts first;
    two models answer once each, so that what people choose says how often they prefer one model.
    """
    dice, rows = random.Random(seed), []
    sampled = [
        answers_to(
            model,
            reader,
            prompts,
            ANSWERS if len(models) == 1 else 1,
            response_length=response_length,
            temperature=temperature,
            seed=seed + number,
        )
        for number, model in enumerate(models.values())
    ]
    names = list(models)
    for prompt, *answers in zip(prompts, *sampled, strict=True):
        if len(models) > 1:
            pairs = itertools.product(*answers)
        else:
            texts = list(dict.fromkeys(answers[0]))
            places = itertools.combinations(range(len(texts)), 2)
            worth = ((unlike(texts[i], texts[j]), i, j) for i, j in places)
            pairs = ((texts[i], texts[j]) for i, j in best_pairs(worth, each))
        for turn, (one, other) in enumerate(pairs):
            if one != other:
                sides = [(one, names[0]), (other, names[-1])]
                dice.shuffle(sides)
                (a, of_a), (b, of_b) = sides
                rows.append((turn, (prompt.raw, readable(prompt.raw).strip(), a, b, (of_a, of_b))))
    return store.add(row for _, row in sorted(rows, key=lambda row: row[0]))


class Asker:
    """Adds pairs of one model's answers to a store; the prompts of a data set take turns.

    Raises:
        BadInput: the data cannot be read, or no prompt leaves room for an answer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: FeedbackArguments) -> None:
        prompts = load_prompts(
            args.dataset_name,
            "reward" if args.dataset_name == EVERYDAY else "ppo",
            args.prompt_column,
            args.prompt_words,
            (args.chosen_column, args.rejected_column),
            args.as_conversations,
        )
        give_chat_template(tokenizer, prompts)
        room = context_size(model) - args.response_length
        room = room if args.max_prompt_length is None else min(room, args.max_prompt_length)
        self.reader = PromptReader(tokenizer, room, args.chat_template_kwargs, end_ids(model, tokenizer))
        self.prompts = spread(list(fitting(prompts, self.reader)), args.seed)
        self.model, self.args = model, args
        self.models = {"base": model}
        """Who answers, by name: the model itself, or two others, once each."""
        self.turn: int | None = None
        """How many prompts have had their turn."""
        self._read: dict[tuple[str, str], tuple] = {}
        """Features of the judged answers, by the id of their pair and their side."""

    def add(self, store: Store, count: int, each: int = 1) -> list[Pair]:
        """Put the next `count` prompts to the model; one to which no two answers differ adds no pair.

        Once there are choices to learn from, every other pair is one that tells most, for which more prompts have
        their turn. The rest are still taken blindly: what tells most lies at the edge of what the model answers, and
        from such pairs alone a reward model does not learn to judge the usual ones.

        Args:
            each: pairs that a prompt may give. Several are taken blindly: what tells most costs thirty answers a pair,
                and what many people choose within a minute is enough to learn from.
        """
        judged: list[Choice] = []
        if len(self.models) == 1 and each == 1:
            judged = [choice for choice in store.choices() if choice.choice != "skip"][-REMEMBERED:]
        blindly = len(judged) < FIRST_CHOICES
        blind = count if blindly else count // 2
        start = len(store.pairs) if self.turn is None else self.turn
        self.turn = start + blind + SCREENED * (count - blind)
        prompts = [self.prompts[number % len(self.prompts)] for number in range(start, self.turn)]
        lengths = {"response_length": self.args.response_length, "temperature": self.args.temperature}
        seed = self.args.seed * 1_000_003 + start
        made = add_pairs(store, self.models, self.reader, prompts[:blind], **lengths, seed=seed, each=each)
        if blindly:
            return made
        sampled = list(answers_to(self.model, self.reader, prompts[blind:], ANSWERS, **lengths, seed=seed + 1))
        dice, rows = random.Random(seed), []
        for prompt, both in self._most_telling(store, judged, prompts[blind:], sampled)[: count - blind]:
            a, b = dice.sample(both, 2)
            rows.append((prompt.raw, readable(prompt.raw).strip(), a, b, ("base", "base")))
        telling = store.add(rows)
        made = [pair for both in itertools.zip_longest(telling, made) for pair in both if pair]
        store.order = [*(pair.id for pair in made), *store.order]
        return made

    def _most_telling(
        self, store: Store, judged: list[Choice], prompts: list[Prompt], sampled: list[list[str]]
    ) -> list[tuple[Prompt, tuple[str, str]]]:
        """Of each prompt's answers the two of which the choices so far say most, or least; the widest apart first.

        That is the largest sum of a margin and its standard deviation: what is liked comes up again beside what is
        not, and so does what nobody has judged (an upper confidence bound, as in bandits).
        """
        pairs = [store.pairs[choice.id] for choice in judged]
        preferred = torch.tensor([{"a": 1.0, "b": 0.0, "tie": 0.5}[choice.choice] for choice in judged])
        answers = [(prompt.raw, text) for prompt, texts in zip(prompts, sampled, strict=True) for text in texts]
        if not answers:
            return []
        # What people have judged is read once, not again for each batch.
        sides = {(pair.id, side): (pair.prompt, getattr(pair, side)) for pair in pairs for side in "ab"}
        new = [key for key in sides if key not in self._read]
        found = answer_features(self.model, self.reader, *zip(*map(sides.get, new), *answers, strict=True))
        rows = list(found.rows())
        self._read = {key: row for key, row in self._read.items() if key in sides}
        self._read |= zip(new, rows[: len(new)], strict=True)
        others = Features.of(rows[len(new) :])
        a, b = (Features.of(self._read[pair.id, side] for pair in pairs) for side in "ab")
        first, second, others = comparable(a, b, others)
        probe = Probe.fit(first - second, preferred, ASKING)
        telling, start = [], 0
        for prompt, texts in zip(prompts, sampled, strict=True):
            both = [(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if texts[i] != texts[j]]
            if both:
                difference = torch.stack([others[start + i] - others[start + j] for i, j in both])
                worth = (difference @ probe.weights).abs() + probe.doubt(difference)
                i, j = both[int(worth.argmax())]
                telling.append((worth.max().item(), prompt, (texts[i], texts[j])))
            start += len(texts)
        return [found[1:] for found in sorted(telling, key=lambda found: -found[0])]
