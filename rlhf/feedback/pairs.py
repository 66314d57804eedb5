"""People's choices as preference pairs for a reward model to learn from."""

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import models
from rlhf.config import BadInput, FeedbackArguments, RewardArguments
from rlhf.data.load import hold_out, pairs_of
from rlhf.data.rows import Unusable, check_same_kind
from rlhf.feedback.agreement import Agreement, agreement
from rlhf.feedback.ask import PROMPTS_AT_ONCE, Asker, answers_to
from rlhf.feedback.probe import JUDGING, Probe, answer_features, comparable, told_by_others
from rlhf.feedback.store import FEWEST, HELD_OUT, Choice, Store
from rlhf.models.prompts import PromptReader, readable


ANSWERS = 4
"""Sampled to each prompt, for the probe to judge."""
MOST_JUDGED = 1_000
"""Pairs of these that the reward model learns from."""
MOST_ERRORS = 0.45
"""Share of the choices that may go against the others; where it is more, there is nothing that people agree on."""
PLAIN = 0.3
"""Margin, in nats, from which the others contradict a choice plainly."""
PROBED = 500
"""Preferences, and ties, that the probe learns from at most; so many are enough without it."""


@dataclass
class Choices:
    """What people chose, as pairs with `prompt`, `chosen`, `rejected`."""

    train: Dataset
    held_out: Dataset
    """Of other prompts."""
    ties: Dataset | None
    """Pairs of which neither answer was preferred, of no prompt that is held out."""
    agreement: Agreement | None


def load_choices(path: str, as_conversations: bool = False, only: Sequence[Choice] | None = None) -> Choices:
    """The choices in a store, or only these of them.

    Raises:
        BadInput: it is no store, or too few of its choices prefer an answer.
    """
    store = Store(path)
    given = store.choices() if only is None else only
    rows = store.preferences(only=given)
    if len(rows) < FEWEST:
        raise BadInput(
            f"{path} holds {len(rows)} choices that prefer an answer, not counting ties and skips; it takes at least "
            f"{FEWEST}.",
            field="feedback",
        )
    train, held_out = hold_out(pairs_of(rows, path, as_conversations), path, HELD_OUT)
    tied = [store.pairs[choice.id] for choice in given if choice.choice == "tie"]
    ties = None
    if tied:
        rows = [{"prompt": pair.prompt, "chosen": pair.a, "rejected": pair.b} for pair in tied]
        ties = pairs_of(rows, path, as_conversations)
        apart = set(map(readable, held_out["prompt"]))
        ties = ties.select(
            [row for row, prompt in enumerate(ties["prompt"]) if readable(prompt) not in apart][:PROBED]
        )
    return Choices(train, held_out, ties, agreement(store.judgements()))


def joined(pairs: Dataset, choices: Dataset) -> Dataset:
    """Pairs of a data set, and people's choices.

    Raises:
        BadInput: these are texts, those conversations.
    """
    try:
        check_same_kind(choices[0]["prompt"], pairs[0]["prompt"])
    except Unusable as error:
        told = f"The choices do not go with dataset_name ({error}); name the data that their questions came from."
        raise BadInput(told, field="dataset_name") from error
    return concatenate_datasets([pairs.select_columns(choices.column_names), choices])


def pairs_to_learn(
    choices: Choices, args: RewardArguments, tell: Callable[[int, int], None] = lambda done, total: None
) -> Dataset:
    """The choices to train on, `args.feedback_epochs` times, and beside them what a probe says of other answers.

    Raises:
        BadInput: see `judged_by_probe`.
    """
    judged, own = None, choices.train
    if args.feedback_prompts:
        judged, own = judged_by_probe(choices, *models.load_policy(args.model_name_or_path), args, tell)
    own = concatenate_datasets([own] * args.feedback_epochs)
    return joined(judged, own) if judged else own


def judged_by_probe(
    choices: Choices,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: RewardArguments,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Dataset, Dataset]:
    """Pairs of answers that nobody has judged; in each, a probe of the choices prefers `chosen`, see `probe`.

    The second data set are the choices to train on, without those that a probe of the others contradicts. People err,
    and a reward model learns their errors by heart.

    Args:
        model: the language model that answers, to `args.feedback_prompts` prompts.
        tell: is told now and then how many of how many prompts have been answered.

    Raises:
        BadInput: the prompts cannot be read, or no two answers to one of them differ and end.
    """
    names = ("dataset_name", "prompt_column", "chosen_column", "rejected_column", "as_conversations", "seed")
    same = {name: getattr(args, name) for name in (*names, "chat_template_kwargs")}
    settings = FeedbackArguments(store=args.feedback, model_name_or_path=args.model_name_or_path, **same)
    asker = Asker(model, copy.deepcopy(tokenizer), settings)
    prompts = asker.prompts[: args.feedback_prompts]
    lengths = {"response_length": settings.response_length, "temperature": settings.temperature}
    sampled = []
    for answers in answers_to(model, asker.reader, prompts, ANSWERS, **lengths, seed=args.seed):
        if len(sampled) % PROMPTS_AT_ONCE == 0:
            tell(len(sampled), len(prompts))
        sampled.append(answers)
    tell(len(prompts), len(prompts))

    # 1. All answers as features: the judged pairs' two sides, and those that were sampled.
    preferred = choices.train.select(range(min(PROBED, len(choices.train))))
    judged = preferred if choices.ties is None else concatenate_datasets([preferred, choices.ties])
    answers = [(prompt.raw, text) for prompt, texts in zip(prompts, sampled, strict=True) for text in texts]
    if not any(len(set(texts)) > 1 for texts in sampled):
        raise BadInput(
            f"{args.model_name_or_path} gives no two different answers that end; set feedback_prompts to 0, to learn "
            "from the choices themselves only.",
            field="feedback_prompts",
        )
    reader = PromptReader(asker.reader.tokenizer, None, args.chat_template_kwargs)
    chosen, rejected, others = comparable(
        answer_features(model, reader, judged["prompt"], judged["chosen"]),
        answer_features(model, reader, judged["prompt"], judged["rejected"]),
        answer_features(model, reader, *zip(*answers, strict=True)),
    )

    # 2. Each choice is held against what the others say of it; one that they plainly contradict is left out. Where
    # there are many, these are no errors: people disagree, or their taste is nothing that a linear model can express.
    differences, shares = chosen - rejected, torch.ones(len(judged))
    shares[len(preferred) :] = 0.5  # a tie is half a preference
    margins = told_by_others(differences, shares, JUDGING)[: len(preferred)]
    believed = torch.ones(len(judged), dtype=torch.bool)
    if (margins < 0).sum() <= MOST_ERRORS * len(preferred):
        believed[: len(preferred)] = margins > -PLAIN
    weights = Probe.sparse(differences[believed], shares[believed], JUDGING)

    # 3. It judges the answers to each prompt. What hardly differs in its eyes says nothing: for most pairs of answers
    # that is so where a taste is rare.
    worth = others @ weights
    pairs, start = [], 0
    for prompt, texts in zip(prompts, sampled, strict=True):
        ranked = sorted(range(len(texts)), key=lambda row: worth[start + row].item())
        for low, high in itertools.combinations(ranked, 2):
            margin = (worth[start + high] - worth[start + low]).item()
            if texts[low] != texts[high]:
                pairs.append((margin, {"prompt": prompt.raw, "chosen": texts[high], "rejected": texts[low]}))
        start += len(texts)
    plain = torch.tensor([margin for margin, _ in pairs]).quantile(0.98) / 2
    pairs = [pair for margin, pair in pairs if margin >= plain]
    pairs = random.Random(args.seed).sample(pairs, min(MOST_JUDGED, len(pairs)))
    errors = {*(~believed).nonzero()[:, 0].tolist()}
    kept = choices.train.select([row for row in range(len(choices.train)) if row not in errors])
    return pairs_of(pairs, "answers"), kept
