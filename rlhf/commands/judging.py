"""What a command scores answers with: a reward model, reward functions, or both."""

import warnings
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import models
from rlhf.config import CeilingArguments, CompareArguments, PPOArguments
from rlhf.models.prompts import PromptReader
from rlhf.models.scoring import RewardFunc, RewardScorer
from rlhf.rewards import digests, load_functions
from rlhf.runs.directory import Run


@dataclass
class Judges:
    """The reward model, whose weight is 1, and the functions, as `PPOTrainer` takes them."""

    models: list[PreTrainedModel]
    """One or none."""
    functions: list[RewardFunc]
    tokenizers: list[PreTrainedTokenizerBase | None]
    """None for a function."""
    weights: list[float]
    label: str | None
    """Which label of the reward model counts as good."""

    @property
    def sources(self) -> list[PreTrainedModel | RewardFunc]:
        """All of them."""
        return [*self.models, *self.functions]

    @property
    def readers(self) -> list[PreTrainedTokenizerBase]:
        """The tokenizers there are."""
        return self.tokenizers[: len(self.models)]

    def scorer(self, reader: PromptReader) -> RewardScorer:
        """What scores the answers to these prompts."""
        return RewardScorer(self.sources, self.tokenizers, self.weights, reader)


def load_judges(args: PPOArguments | CompareArguments | CeilingArguments) -> Judges:
    """What the settings name.

    Raises:
        BadInput: it cannot be loaded.
    """
    functions, weights = [], []
    for function, weight in load_functions(args.reward_funcs):
        functions.append(function)
        weights.append(weight)
    judges = Judges([], functions, [None] * len(functions), weights, args.reward_label)
    if args.reward_model_path is not None:
        model, tokenizer = models.load_reward_model(args.reward_model_path, trained=True, label=args.reward_label)
        judges.models.append(model)
        judges.tokenizers.insert(0, tokenizer)
        judges.weights.insert(0, 1.0)
        judges.label = models.rewarded_label(model)
    return judges


def warn_of_other_code(resumed: Run, names: list[str] | None) -> None:
    """Say so if a file of reward functions has changed since the run that is resumed."""
    before = resumed.config().get("reward_files") or {}
    for file, digest in digests(names).items():
        if before.get(file, digest) != digest:
            warnings.warn(
                f"{file} has changed since the run that is resumed; its old code is in {resumed.path / 'rewards'}.",
                stacklevel=2,
            )
