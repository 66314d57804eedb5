"""Scores of responses, from one reward model or from several reward functions and models together.

`AnswerScorer` scores answers with any sequence classifier. One made from a language model scores at the last token,
which is found by length; if it pads with its end token, at the token before, where Transformers trains it. With the
policy's tokenizer it reads the very ids that the policy read and sampled: prompt, response and, if the response ended,
the end token that it was trained with. With another tokenizer it reads the text, as the pairs of its training. An
encoder such as DistilBERT reads padded text, as in its training; one whose tokenizer tells two segments apart, such as
BERT, reads prompt and answer as these two.

`RewardSource` is one reward of PPO, a model or a function; `score_responses` calls all of them, `combine` adds up.
`RewardScorer` is what the commands and the chat score answers with: all rewards of a run, added up by their weights.
"""

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import BadInput
from rlhf.models.loading import context_size, load_reward_model
from rlhf.models.packed import (
    batches_by_length,
    hidden_states,
    is_peft,
    pack_to_last,
    plain_model,
    use_packed_attention,
)
from rlhf.models.prompts import Prompt, PromptReader, readable
from rlhf.rewards import blamed


RewardFunc = Callable[..., list[float | None] | list[list[float]]]


@torch.no_grad()
def score_ids(
    reward_model: PreTrainedModel,
    rows: list[list[int]],
    batch_tokens: int = 4096,
    prompt_lengths: list[int] | None = None,
) -> torch.Tensor:
    """Scores (B,) of B sequences of token ids, prompt and response, read about `batch_tokens` tokens at a time.

    With the lengths of the prompts (B,), a prompt that several rows share is read once.
    """
    use_packed_attention(reward_model)
    scores = torch.empty(len(rows))
    config = plain_model(reward_model).config
    if config.pad_token_id == config.eos_token_id:
        rows = [_before_end(row, config.eos_token_id) for row in rows]
    for batch in batches_by_length(rows, batch_tokens, prompt_lengths=prompt_lengths):
        lengths = None if prompt_lengths is None else [prompt_lengths[row] for row in batch]
        states = hidden_states(
            reward_model, *pack_to_last([rows[row] for row in batch], lengths, reward_model.device)
        )  # (b, d)
        scores[batch] = plain_model(reward_model).score(states).squeeze(1).float().cpu()
    return scores


def _before_end(row: list[int], eos_id: int) -> list[int]:
    """A row without its end token: a classifier that pads with it, as GPT-2 does, never reads it in training."""
    end = len(row)
    while end > 1 and row[end - 1] == eos_id:
        end -= 1
    return row[:end]


@torch.no_grad()
def score_padded(
    reward_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str] | list[tuple[str, str]],
    batch_size: int = 64,
) -> torch.Tensor:
    """Scores (B,) that an encoder gives to B texts or pairs of texts, read with its own tokenizer and cut to fit."""
    scores = []
    limits = {"truncation": True, "max_length": min(tokenizer.model_max_length, _readable_tokens(reward_model))}
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], padding=True, return_tensors="pt", **limits)
        scores.append(reward_model(**batch.to(reward_model.device)).logits[:, 0].float().cpu())
    return torch.cat(scores)


def _readable_tokens(encoder: PreTrainedModel) -> int:
    """The most tokens an encoder reads. RoBERTa's positions are counted from after that of its pad token."""
    padding = [
        module.padding_idx
        for name, module in encoder.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return context_size(encoder) - (padding[0] + 1 if padding else 0)


def scores_at_last_token(classifier: PreTrainedModel) -> bool:
    """Whether a sequence classifier is made from a causal language model, rather than from an encoder."""
    return hasattr(plain_model(classifier), "score")


class AnswerScorer:
    """Scores a policy's answers with a reward model.

    Args:
        model: a sequence classifier with one score.
        tokenizer: its tokenizer; None for the policy's.
        reader: the policy's prompts and tokenizer.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, reader: PromptReader
    ) -> None:
        self.model, self.tokenizer, self.reader = model, tokenizer or reader.tokenizer, reader
        self.same_tokenizer = tokenizer is None or tokenizer.get_vocab() == reader.tokenizer.get_vocab()
        self.at_last_token = scores_at_last_token(model)
        if self.at_last_token:
            use_packed_attention(model)

    def __call__(self, prompts: list[Prompt], answers: list[list[int]], ended: list[bool]) -> torch.Tensor:
        """Scores (B,) of B answers, given as the policy's token ids, with the end token where they ended."""
        # A policy with more rows in its embedding than it has tokens may sample what no text stands for.
        known = self.model.get_input_embeddings().weight.size(0)
        if self.same_tokenizer and self.at_last_token and max(map(max, answers)) < known:
            rows = [
                prompt.ids + self.reader.closed(prompt, answer)
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            return score_ids(self.model, rows, prompt_lengths=[len(prompt.ids) for prompt in prompts])
        texts = list(map(self.reader.text, answers))
        if not self.at_last_token:
            as_text = self._as_segments if "token_type_ids" in self.tokenizer.model_input_names else self._as_text
            return score_padded(self.model, self.tokenizer, list(map(as_text, prompts, texts)))
        longest = context_size(plain_model(self.model))
        return score_ids(self.model, [ids[-longest:] for ids in map(self._as_ids, prompts, texts, ended)])

    def _as_ids(self, prompt: Prompt, text: str, ended: bool) -> list[int]:
        """Prompt and answer as the classifier's training reads them; the end token only if the answer ended."""
        judge = PromptReader(self.tokenizer, None, self.reader.chat_template_kwargs)
        if isinstance(prompt.raw, str) or self.tokenizer.chat_template is None:
            return judge.pair(self.reader.text_of(prompt.raw), text, ended=ended).ids
        return judge.pair(prompt.raw, [{"role": "assistant", "content": text}], ended=ended).ids

    def _as_text(self, prompt: Prompt, text: str) -> str:
        return self.reader.text_of(prompt.raw) + text

    def _as_segments(self, prompt: Prompt, text: str) -> tuple[str, str]:
        return readable(prompt.raw).strip(), text.strip()


class RewardSource:
    """One reward of PPO: a sequence classifier or a function.

    Args:
        source: a classifier with one score, or `f(prompts, completions, completion_ids, **columns)`, which returns one
            number per completion (None for no opinion) or a list of one number per token.
        processing_class: a classifier's tokenizer; None for the policy's.
        reader: the policy's prompts and tokenizer.
        policy_vocab: rows of the policy's embedding.

    Raises:
        BadInput: neither of the two, or a classifier with several scores or another vocabulary.
    """

    def __init__(
        self,
        source: PreTrainedModel | RewardFunc,
        processing_class: PreTrainedTokenizerBase | None,
        reader: PromptReader,
        policy_vocab: int,
    ) -> None:
        self.source, self.reader = source, reader
        self.is_model = isinstance(source, PreTrainedModel) or is_peft(source)
        if not self.is_model:
            if isinstance(source, nn.Module) or not callable(source):
                raise BadInput(
                    f"A reward must be a Transformers sequence classifier or a function, not {type(source).__name__}; "
                    "wrap it in a function f(prompts, completions, completion_ids) that returns a list of numbers."
                )
            self.name = getattr(source, "__name__", type(source).__name__)
            self.accepts = inspect.signature(source).parameters
            written = inspect.unwrap(source.func if isinstance(source, partial) else source)
            code = getattr(written, "__code__", None) or getattr(type(written).__call__, "__code__", None)
            self.file = code.co_filename if code else ""  # what is written in C has none
            return
        config = plain_model(source).config
        self.name = str(config._name_or_path or type(plain_model(source)).__name__).rstrip("/").split("/")[-1]
        source.eval().requires_grad_(False)
        if config.num_labels != 1 or not type(plain_model(source)).__name__.endswith("ForSequenceClassification"):
            raise BadInput(
                f"The reward model {self.name} is a {type(plain_model(source)).__name__} with {config.num_labels} "
                "outputs; PPO needs a sequence classifier with num_labels=1."
            )
        self.scorer = AnswerScorer(source, processing_class, reader)
        if not self.scorer.at_last_token and processing_class is None:
            raise BadInput(
                f"The reward model {self.name} is an encoder: give its own tokenizer as reward_processing_classes."
            )
        self.same_tokenizer = self.scorer.same_tokenizer and self.scorer.at_last_token
        vocab = source.get_input_embeddings().weight.size(0)
        if self.same_tokenizer and vocab < min(policy_vocab, len(reader.tokenizer)):
            raise BadInput(
                f"The reward model {self.name} knows {vocab} tokens and the policy {policy_vocab}: they do not share "
                "a tokenizer; give the reward model's own as reward_processing_classes."
            )

    def __call__(
        self, prompts: list[Prompt], answers: list[list[int]], ended: list[bool], **extra: object
    ) -> list[float | None] | list[list[float]]:
        """Scores of B answers, one per answer or one per token.

        Raises:
            BadInput: a function fails, or gives the wrong number of scores, something that is no number, or one that
                is not finite.
        """
        if self.is_model:
            scores = self.scorer(prompts, answers, ended)
            if not scores.isfinite().all():
                row = int(scores.isfinite().int().argmin())
                raise BadInput(
                    f"The reward model {self.name} gave {scores[row]:g} for completion {row}; a score must be a "
                    "finite number: choose another reward model, or train it again with a lower learning_rate."
                )
            return scores.tolist()
        completions = list(map(self.reader.text, answers))
        columns = {name: [prompt.columns.get(name) for prompt in prompts] for name in prompts[0].columns}
        # A function gets those of these arguments that its signature names, or all if it has **kwargs.
        arguments = {
            "prompts": [prompt.raw for prompt in prompts],
            "completions": [
                [{"role": "assistant", "content": text}] if isinstance(prompt.raw, list) else text
                for prompt, text in zip(prompts, completions, strict=True)
            ],
            "completion_ids": answers,
            **columns,
            **extra,
        }
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.accepts.values())
        arguments = {name: value for name, value in arguments.items() if takes_all or name in self.accepts}
        try:
            scores = self.source(**arguments)
            if inspect.iscoroutine(scores):
                scores = asyncio.run_coroutine_threadsafe(scores, _event_loop()).result()
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(f"The reward function {self.name} failed: {blamed(error, self.file)}.") from error
        return self._checked(scores, answers)

    def _checked(self, scores: object, answers: list[list[int]]) -> list:
        """What a function returned, as a list of floats and None, or of lists of floats."""
        try:
            scores = [_as_floats(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"The reward function {self.name} must return a list with a number for each completion, None for no "
                f"opinion, or one number per token; it returned {type(scores).__name__}: {str(scores)[:60]}."
            ) from error
        if len(scores) != len(answers):
            raise BadInput(
                f"The reward function {self.name} returned {len(scores)} scores for {len(answers)} completions; it "
                "must return one for each."
            )
        for row, (score, answer) in enumerate(zip(scores, answers, strict=True)):
            per_token = isinstance(score, list)
            if per_token and len(score) != len(answer):
                raise BadInput(
                    f"The reward function {self.name} returned {len(score)} rewards for the {len(answer)} tokens of "
                    f"completion {row}; it must return one for each."
                )
            for number in score if per_token else [score]:
                if number is not None and not math.isfinite(number):
                    raise BadInput(
                        f"The reward function {self.name} returned {number} for completion {row}; a score must be a "
                        "finite number, or None for no opinion."
                    )
        return scores


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Where async reward functions run: a notebook's thread has a loop of its own, which is busy running the training.

    Always the same one, since what they keep from call to call, such as a connection, belongs to a loop.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _as_floats(score: object) -> float | None | list[float]:
    """A number, tensor, array, sequence of numbers or None as a float, a list of floats, or None."""
    score = score.tolist() if hasattr(score, "tolist") else score
    if score is None:
        return None
    if isinstance(score, Sequence) and not isinstance(score, str):
        return [float(number) for number in score]
    return float(score)


def rewards_of(sources: object, tokenizers: object, reader: PromptReader, policy_vocab: int) -> list[RewardSource]:
    """The rewards of PPO: `sources` is a function, a model, a model's name, or a list of these.

    Two rewards of the same name are told apart by a number.

    Raises:
        BadInput: there is none, or not as many tokenizers; and see `RewardSource`.
    """
    if sources is None or sources == []:
        raise BadInput("PPOTrainer needs a reward: give reward_funcs (functions or models) or reward_model.")
    sources = sources if isinstance(sources, list) else [sources]
    tokenizers = tokenizers if isinstance(tokenizers, list) else [tokenizers] * len(sources)
    if len(tokenizers) != len(sources):
        raise BadInput(f"There are {len(sources)} rewards and {len(tokenizers)} reward_processing_classes.")
    rewards: list[RewardSource] = []
    for source, tokenizer in zip(sources, tokenizers, strict=True):
        if isinstance(source, str):
            source, its_tokenizer = load_reward_model(source, trained=True)
            tokenizer = tokenizer or its_tokenizer
        reward = RewardSource(source, tokenizer, reader, policy_vocab)
        taken, name, number = {other.name for other in rewards}, reward.name, 1
        while reward.name in taken:
            number += 1
            reward.name = f"{name}-{number}"
        rewards.append(reward)
    return rewards


@dataclass
class RewardScores:
    """The scores of B answers, and what reward functions logged besides."""

    by_reward: dict[str, list[float | None] | list[list[float]]]
    """Name of a reward -> its B scores, each a number, None, or one number per token."""
    logged: dict[str, float]
    """Metrics, by `log_metric`."""
    columns: dict[str, list]
    """Columns for the table of samples, by `log_extra`."""


def score_responses(
    rewards: list[RewardSource], prompts: list[Prompt], answers: list[list[int]], ended: list[bool], state: object
) -> RewardScores:
    """Score B answers with every reward; functions may also take `trainer_state`, `log_metric` and `log_extra`."""
    scores = RewardScores({}, {}, {})
    extra = {
        "trainer_state": state,
        "log_metric": lambda name, value: scores.logged.update({name: float(value)}),
        "log_extra": lambda column, values: scores.columns.update({column: list(values)}),
    }
    for reward in rewards:
        scores.by_reward[reward.name] = reward(prompts, answers, ended, **extra)
    return scores


def combine(scores: RewardScores, weights: Sequence[float], mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of all rewards -> a score per response (B,), and the same spread over its tokens (B, T).

    A score of a whole response belongs to its last token. None counts as zero.
    """
    by_token, rows = torch.zeros(mask.shape), torch.arange(len(mask))
    last = mask.sum(dim=1).cpu() - 1
    for of_reward, weight in zip(scores.by_reward.values(), weights, strict=True):
        whole = torch.tensor([0.0 if score is None or isinstance(score, list) else score for score in of_reward])
        by_token[rows, last] += weight * whole
        for row, score in enumerate(of_reward):
            if isinstance(score, list):
                by_token[row, : len(score)] += weight * torch.tensor(score)
    return by_token.sum(dim=1).to(mask.device), by_token.to(mask.device)


class RewardScorer:
    """Scores answers with several rewards, as PPO does: the weighted sum of what they give.

    Args:
        sources: reward models and functions, see `RewardSource`.
        tokenizers: of each the tokenizer, None for a function.
        weights: of each.
        reader: the policy's prompts and tokenizer.
    """

    def __init__(
        self,
        sources: Sequence[PreTrainedModel | RewardFunc],
        tokenizers: Sequence[PreTrainedTokenizerBase | None],
        weights: Sequence[float],
        reader: PromptReader,
    ) -> None:
        self.rewards = rewards_of(list(sources), list(tokenizers), reader, len(reader.tokenizer))
        self.weights, self.reader = weights, reader
        self.parts = [reward.name for reward in self.rewards] if len(self.rewards) > 1 else []
        """What adds up to a score, by name; empty where that is one reward."""

    def each(
        self, prompts: list[Prompt], answers: list[list[int]], ended: list[bool]
    ) -> tuple[torch.Tensor, dict[str, list[float | None]]]:
        """Scores (B,) of B answers, and what each reward gave them, by its name; None for no opinion."""
        scores = score_responses(self.rewards, prompts, answers, ended, None)
        lengths = torch.tensor([len(answer) for answer in answers])
        total, _ = combine(scores, self.weights, torch.arange(int(lengths.max())) < lengths.unsqueeze(1))
        by_reward = {
            name: [sum(score) if isinstance(score, list) else score for score in given]
            for name, given in scores.by_reward.items()
        }
        return total, by_reward

    def __call__(self, prompts: list[Prompt], answers: list[list[int]], ended: list[bool]) -> torch.Tensor:
        """Scores (B,) of B answers."""
        return self.each(prompts, answers, ended)[0]
