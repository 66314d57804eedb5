"""Scores of responses: from a reward model, for its training, for PPO, for the comparison and for the page; and from
functions and models together, as PPO takes them.

A reward model with the policy's tokenizer reads the very ids the policy read and wrote: prompt, response and the end
token if it was said. The score is taken at the last of them, found by length and never by looking for a pad token's
value. A model with another tokenizer reads the text.
"""

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import BadInput
from rlhf.generate import batches_by_length
from rlhf.packed import line_up, plain_model, read, use_packed_attention
from rlhf.prompts import Prompt, PromptReader


RewardFunc = Callable[..., list[float | None] | list[list[float]]]


@torch.no_grad()
def score_ids(reward_model: PreTrainedModel, rows: list[list[int]], batch_tokens: int = 4096) -> torch.Tensor:
    """Score whole sequences (prompt + response), a list of B id lists -> (B,), about `batch_tokens` at a time."""
    use_packed_attention(reward_model)
    scores = torch.empty(len(rows))
    for chosen in batches_by_length(rows, batch_tokens):
        ids, places = line_up([rows[row] for row in chosen], reward_model.device)
        hidden = read(reward_model, ids, places)
        last = hidden[places.starts + places.lengths - 1]
        scores[chosen] = plain_model(reward_model).score(last).squeeze(1).float().cpu()
    return scores


def score_texts(
    reward_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str]
) -> list[float]:
    """Scores of finished responses given as text; the end token is added as in the reward model's training."""
    texts = [prompt + response + tokenizer.eos_token for prompt, response in zip(prompts, responses, strict=True)]
    return score_ids(reward_model, tokenizer(texts)["input_ids"]).tolist()


@torch.no_grad()
def score_padded(
    reward_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int = 64
) -> torch.Tensor:
    """Scores (B,) of texts from any sequence classifier, read with its own tokenizer."""
    scores = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
        scores.append(reward_model(**batch.to(reward_model.device)).logits[:, 0].float().cpu())
    return torch.cat(scores)


class Reward:
    """One source of scores for PPO: a sequence classifier or a function.

    Args:
        source: a classifier with one score, or `f(prompts, completions, completion_ids, **columns)`, which returns one
            number a completion (None where it has no opinion) or one number a token.
        processing_class: a classifier's tokenizer; the policy's if not given.
        reader: the policy's prompts and tokenizer.
        policy_vocab: rows of the policy's embedding.

    Raises:
        BadInput: neither of the two, a classifier with several scores, or one of another vocabulary.
    """

    def __init__(
        self,
        source: PreTrainedModel | RewardFunc,
        processing_class: PreTrainedTokenizerBase | None,
        reader: PromptReader,
        policy_vocab: int,
    ) -> None:
        self.source, self.reader, self.tokenizer = source, reader, processing_class or reader.tokenizer
        self.is_model = isinstance(source, PreTrainedModel) or hasattr(source, "peft_config")
        if not self.is_model:
            if isinstance(source, nn.Module) or not callable(source):
                raise BadInput(
                    f"A reward must be a Transformers sequence classifier or a function, not {type(source).__name__}; "
                    "wrap it in a function f(prompts, completions, completion_ids) that returns a list of numbers."
                )
            self.name = getattr(source, "__name__", type(source).__name__)
            self.accepts = inspect.signature(source).parameters
            return
        config = plain_model(source).config
        self.name = str(config._name_or_path or type(plain_model(source)).__name__).rstrip("/").split("/")[-1]
        source.eval().requires_grad_(False)
        if config.num_labels != 1 or not type(plain_model(source)).__name__.endswith("ForSequenceClassification"):
            raise BadInput(
                f"The reward model {self.name} is a {type(plain_model(source)).__name__} with {config.num_labels} "
                "outputs; PPO needs a sequence classifier with num_labels=1."
            )
        self.same_tokenizer = processing_class is None or processing_class.get_vocab() == reader.tokenizer.get_vocab()
        vocab = source.get_input_embeddings().weight.size(0)
        if self.same_tokenizer and vocab < min(policy_vocab, len(reader.tokenizer)):
            raise BadInput(
                f"The reward model {self.name} knows {vocab} tokens and the policy {policy_vocab}: they do not share "
                "a tokenizer; give the reward model's own as reward_processing_classes."
            )

    def __call__(
        self, prompts: list[Prompt], answers: list[list[int]], ended: list[bool], **extra: object
    ) -> list[float | None] | list[list[float]]:
        """Scores of B answers, one each or one a token.

        Raises:
            BadInput: the wrong number of scores, something that is no number, or NaN.
        """
        if self.is_model:
            return self._judge(prompts, answers, ended).tolist()
        completions = self.reader.tokenizer.batch_decode(answers, skip_special_tokens=True)
        columns = {name: [prompt.columns.get(name) for prompt in prompts] for name in prompts[0].columns}
        offered = {
            "prompts": [prompt.given for prompt in prompts],
            "completions": [
                [{"role": "assistant", "content": text}] if isinstance(prompt.given, list) else text
                for prompt, text in zip(prompts, completions, strict=True)
            ],
            "completion_ids": answers,
            **columns,
            **extra,
        }
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.accepts.values())
        scores = self.source(**{name: value for name, value in offered.items() if takes_all or name in self.accepts})
        return self._checked(scores, answers)

    def _judge(self, prompts: list[Prompt], answers: list[list[int]], ended: list[bool]) -> torch.Tensor:
        if self.same_tokenizer:
            return score_ids(
                self.source, [prompt.ids + answer for prompt, answer in zip(prompts, answers, strict=True)]
            )
        texts = self.reader.tokenizer.batch_decode(answers, skip_special_tokens=True)
        end = self.tokenizer.eos_token or ""
        whole = []
        for prompt, text, done in zip(prompts, texts, ended, strict=True):
            if isinstance(prompt.given, list) and self.tokenizer.chat_template is not None:
                messages = [*prompt.given, {"role": "assistant", "content": text}]
                whole.append(self.tokenizer.apply_chat_template(messages, tokenize=False))
            else:
                given = self.reader.render(prompt.given) if isinstance(prompt.given, list) else prompt.given
                whole.append(given + text + (end if done else ""))
        return score_padded(self.source, self.tokenizer, whole)

    def _checked(self, scores: object, answers: list[list[int]]) -> list:
        """What a function gave, as a list of floats and None, or of lists of floats."""
        scores = scores.tolist() if isinstance(scores, torch.Tensor) else list(scores)
        if len(scores) != len(answers):
            raise BadInput(
                f"The reward function {self.name} gave {len(scores)} scores for {len(answers)} completions; it must "
                "give one each."
            )
        if all(score is None for score in scores):
            raise BadInput(f"The reward function {self.name} gave None for every completion of an update.")
        for row, (score, answer) in enumerate(zip(scores, answers, strict=True)):
            per_token = isinstance(score, Sequence)
            if per_token and len(score) != len(answer):
                raise BadInput(
                    f"The reward function {self.name} gave {len(score)} rewards for the {len(answer)} tokens of "
                    f"completion {row}; it must give one each."
                )
            for number in score if per_token else [score]:
                if number is not None and not math.isfinite(number):
                    raise BadInput(
                        f"The reward function {self.name} gave {number} for completion {row}; a score must be a "
                        "finite number, or None for no opinion."
                    )
        return scores


def combine(
    found: list[list[float | None] | list[list[float]]], weights: Sequence[float], mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of several sources -> one weighted score each (B,), and what of it each token earned (B, T).

    A score of a whole response is earned at its last token. None counts for nothing.
    """
    earned = torch.zeros(mask.shape)
    last = mask.sum(dim=1).cpu() - 1
    for scores, weight in zip(found, weights, strict=True):
        for row, score in enumerate(scores):
            if isinstance(score, Sequence):
                earned[row, : len(score)] += weight * torch.tensor(score)
            elif score is not None:
                earned[row, last[row]] += weight * score
    return earned.sum(dim=1).to(mask.device), earned.to(mask.device)
