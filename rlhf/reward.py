"""The reward model: a sequence classifier, initialised from the language model and trained with TRL's RewardTrainer.

The loss is that of the Bradley-Terry model, -log sigmoid(score of chosen - score of rejected). At chance it is
ln 2 = 0.693 nats per pair and the accuracy 0.5. Even a perfect model's accuracy is limited by the noise in the labels.
"""

import random
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rlhf import ranks
from rlhf.compare.stats import calibration
from rlhf.config import BadInput, PairTrainingSettings, RewardArguments
from rlhf.everyday import gold_score
from rlhf.models import merged, padding_id, size_mb
from rlhf.models.packed import reading_pairs, shuffled_batches_by_length
from rlhf.models.prompts import PromptReader, TemplateRefused, readable, report_refused
from rlhf.models.scoring import score_ids
from rlhf.runs.resuming import Resumable


QUICK_EVAL_PAIRS = 256
"""Held-out pairs for the evaluations during training; the final report uses all."""
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(RewardConfig, name)
)
"""How this version of Transformers calls the setting."""
SHOWN_MISTAKES = 10
"""Pairs in the report with the most negative margins."""


def in_batches(data: Dataset, args: PairTrainingSettings) -> Dataset:
    """The pairs in the order of training, with pairs of similar length in a batch (over all ranks) to save padding.

    Transformers' own "group_by_length" goes from long to short again and again, which shows in the curves.
    """
    data = data.shuffle(seed=args.seed)
    lengths = [len(prompt) + max(map(len, answers)) for prompt, *answers in map(_as_text, data)]
    size = args.per_device_train_batch_size * ranks.world_size()
    batches = shuffled_batches_by_length(lengths, size, random.Random(args.seed))
    return data.select([row for batch in batches for row in batch])


def _as_text(pair: dict) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as readable text."""
    return tuple(readable(pair[side]) for side in ("prompt", "chosen", "rejected"))


def tokenized(pairs: Dataset, reader: PromptReader, max_length: int) -> Dataset:
    """Pairs with the token ids `prompt_ids`, `chosen_ids` and `rejected_ids`; the latter two begin with the prompt.

    TRL's RewardTrainer uses them unchanged. Pairs with a text of more than `max_length` tokens are left out, as in
    TRL, and so are those that the chat template refuses, with warnings.

    Raises:
        BadInput: no pair is short enough, or they are conversations and no template can write them, or the tokenizer
            has no end token.
    """
    refused: dict[int, TemplateRefused] = {}

    def ids(batch: dict, rows: list[int]) -> dict:
        chosen, rejected = (reader.pairs(batch["prompt"], batch[side]) for side in ("chosen", "rejected"))
        refused.update(
            {row: side for row, both in zip(rows, zip(chosen, rejected, strict=True), strict=True)
             for side in both if isinstance(side, TemplateRefused)}
        )  # fmt: skip
        return {
            "prompt_ids": [getattr(side, "prompt_ids", []) for side in chosen],
            "chosen_ids": [getattr(side, "ids", []) for side in chosen],
            "rejected_ids": [getattr(side, "ids", []) for side in rejected],
        }

    all_pairs = len(pairs)
    pairs = pairs.map(ids, batched=True, with_indices=True, desc="Tokenizing", load_from_cache_file=False)
    report_refused(dict(sorted(refused.items())), all_pairs)
    pairs = pairs.select([row for row in range(all_pairs) if row not in refused]) if refused else pairs
    longest = [max(map(len, sides)) for sides in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)]
    short = [row for row, length in enumerate(longest) if length <= max_length]
    if not short:
        raise BadInput(
            f"All {len(pairs)} pairs are longer than {max_length} tokens, the shortest has {min(longest)}; raise "
            "max_length, choose a model that reads as much, or shorten the pairs."
        )
    if len(short) < len(pairs):
        warnings.warn(
            f"{len(pairs) - len(short)} of {all_pairs} pairs were left out: longer than {max_length} tokens.",
            stacklevel=2,
        )
    return pairs.select(short)


def training_arguments(args: PairTrainingSettings, checkpoints: Path) -> dict[str, object]:
    """The fields of Transformers' TrainingArguments for a training on pairs."""
    on_gpu = torch.cuda.is_available()
    own = (
        "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
        "weight_decay", "max_grad_norm", "eval_steps", "logging_steps", "seed",
    )  # fmt: skip
    return {
        **{name: getattr(args, name) for name in own},
        "output_dir": str(checkpoints),
        "warmup_steps": args.warmup_ratio,
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "sequential",  # see in_batches
        "eval_strategy": "steps",
        "save_strategy": "steps" if args.save_steps else "no",
        "save_steps": args.save_steps or 500,
        "save_total_limit": args.save_total_limit,
        "logging_nan_inf_filter": False,
        # TRL's defaults suit large models on a GPU, these small ones on a CPU.
        "bf16": args.dtype == "bfloat16",
        "use_cpu": not on_gpu and args.dtype == "bfloat16",  # required by Transformers for bf16 on a CPU
        # Transformers 5.24 has given it another name, and warns of the old one.
        CHECKPOINTING: False,
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": True,
        "report_to": "none",
    }


class PackedRewardTrainer(Resumable, RewardTrainer):
    """TRL's RewardTrainer, with its loss and metrics; only the model reads a batch without padding, see `packed.py`.

    What the two texts of a pair begin with is read once, and the head at their last tokens only.
    """

    def train(self, *args: object, **kwargs: object) -> TrainOutput:
        """See RewardTrainer.

        Raises:
            BadInput: the model's architecture cannot be read packed.
        """
        with reading_pairs(self.model):
            return super().train(*args, **kwargs)


class _Padding(TrainerCallback):
    """Sets the classifier's pad token at the start of training, as RewardTrainer has set it to the tokenizer's."""

    def __init__(self, model: PreTrainedModel, padding: int) -> None:
        self.model, self.padding = model, padding

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """See `padding_id`."""
        self.model.config.pad_token_id = self.padding


def train_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: RewardArguments,
    train: Dataset,
    held_out: Dataset,
    checkpoints: Path,
    callbacks: list[TrainerCallback],
    adapters: object | None = None,
    trainer_class: type[RewardTrainer] = PackedRewardTrainer,
) -> None:
    """Train a reward model in place on `tokenized` pairs; it ends in eval mode, with its adapters merged."""
    padding = padding_id(tokenizer)
    trainer = trainer_class(
        model=model,
        args=RewardConfig(max_length=args.max_length, **training_arguments(args, checkpoints)),
        train_dataset=in_batches(train, args),
        eval_dataset=held_out.select(range(min(QUICK_EVAL_PAIRS, len(held_out)))),
        processing_class=tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=padding),
        callbacks=[*callbacks, _Padding(model, padding)],
        peft_config=adapters,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    merged(trainer.model)
    model.eval()


def gold_margins(pairs: Dataset) -> torch.Tensor:
    """Gold score of chosen minus rejected (n,), for pairs of the embedded world; negative where the label is wrong."""
    texts = ((question.strip(), *answers) for question, *answers in map(_as_text, pairs))
    return torch.tensor([gold_score(q, chosen) - gold_score(q, rejected) for q, chosen, rejected in texts])


def label_ceiling(gold: torch.Tensor) -> float:
    """The rubric's own accuracy on the noisy labels, from `gold_margins` (n,): the best a reward model can expect."""
    return (gold > 0).float().mean().item()


def report(model: PreTrainedModel, held_out: Dataset, gold: torch.Tensor | None) -> dict[str, object]:
    """Evaluate a reward model on all `tokenized` held-out pairs, and against their `gold_margins` where there are any.

    Returns:
        `stats.calibration` as a dict, the model's size, and the pairs with the most negative margins. With `gold` also
        label_ceiling, the rubric's accuracy on these noisy labels, and rubric_agreement, the share of pairs on which
        the model prefers the same answer as the rubric; None elsewhere.
    """
    # Both sides together: what they begin with, the prompt, is read once.
    rows = [*held_out["chosen_ids"], *held_out["rejected_ids"]]
    chosen, rejected = score_ids(model, rows, prompt_lengths=2 * list(map(len, held_out["prompt_ids"]))).chunk(2)
    margins = chosen - rejected
    result = calibration(margins.numpy())
    intervals = {name: getattr(result, name).as_dict() for name in ("loss", "below_chance", "accuracy")}
    worst = margins.argsort()[:SHOWN_MISTAKES].tolist()
    summary = {
        **asdict(result),
        **intervals,
        "label_ceiling": None,
        "rubric_agreement": None,
        "size_mb": size_mb(model),
        "worst": [
            {
                "prompt": prompt.strip(),
                "chosen": chosen.strip(),
                "rejected": rejected.strip(),
                "margin": margins[i].item(),
            }
            for i, (prompt, chosen, rejected) in zip(worst, map(_as_text, held_out.select(worst)), strict=True)
        ],
    }
    if gold is not None:
        summary["label_ceiling"] = label_ceiling(gold)
        summary["rubric_agreement"] = (gold.sign() == margins.sign()).float().mean().item()
    return summary
