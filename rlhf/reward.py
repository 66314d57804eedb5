"""The reward model: TRL's RewardTrainer on a sequence classifier started from the language model.

The loss is Bradley and Terry's, -log sigmoid(score of chosen - score of rejected). A model that knows nothing has loss
ln 2 = 0.693 and accuracy 0.5; one that judges perfectly still has the accuracy of the labels, which are noisy.
"""

import random
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rlhf import ranks
from rlhf.compare.stats import calibration
from rlhf.config import EVERYDAY, BadInput, RewardArguments
from rlhf.everyday import gold_score
from rlhf.models import merged, padding_id, size_mb
from rlhf.models.packed import shuffled_batches_by_length
from rlhf.models.prompts import readable
from rlhf.models.scoring import pair_ids, score_ids


QUICK_EVAL_PAIRS = 256
"""Held-out pairs for the points on the curve; the report at the end takes all of them."""
SHOWN_MISTAKES = 10
"""Pairs in the report on which the model contradicts people most."""


def _in_batches(data: Dataset, args: RewardArguments) -> Dataset:
    """The pairs in the order of training: pairs of like length share a batch, of all ranks, which saves padding.

    Transformers' own "group_by_length" runs from long to short again and again, and the curves with it.
    """
    data = data.shuffle(seed=args.seed)
    lengths = [len(prompt) + max(map(len, answers)) for prompt, *answers in map(_as_text, data)]
    size = args.per_device_train_batch_size * ranks.world_size()
    batches = shuffled_batches_by_length(lengths, size, random.Random(args.seed))
    return data.select([row for batch in batches for row in batch])


def _as_text(pair: dict) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as a person reads them."""
    return tuple(readable(pair[side]) for side in ("prompt", "chosen", "rejected"))


def tokenized(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Pairs with their tokens, `chosen_ids` and `rejected_ids`, which RewardTrainer takes as they are.

    Pairs with a text of more than `max_length` tokens are left out, as TRL does; a warning says how many.

    Raises:
        BadInput: no pair is short enough, or they are conversations and the tokenizer has no chat template.
    """

    def ids(pair: dict) -> dict:
        return {f"{side}_ids": pair_ids(tokenizer, pair["prompt"], pair[side]) for side in ("chosen", "rejected")}

    pairs = pairs.map(ids, desc="Tokenizing", load_from_cache_file=False)
    longest = [max(map(len, sides)) for sides in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)]
    short = [row for row, length in enumerate(longest) if length <= max_length]
    if not short:
        raise BadInput(
            f"All {len(pairs)} pairs are longer than {max_length} tokens, the shortest has {min(longest)}; raise "
            "max_length, choose a model that reads as much, or shorten the pairs."
        )
    if len(short) < len(pairs):
        warnings.warn(
            f"{len(pairs) - len(short)} of {len(pairs)} pairs were left out: longer than {max_length} tokens.",
            stacklevel=2,
        )
    return pairs.select(short)


def _trl_config(args: RewardArguments, checkpoints: Path) -> RewardConfig:
    return RewardConfig(
        output_dir=str(checkpoints),
        learning_rate=args.learning_rate,
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        max_length=args.max_length,
        warmup_steps=args.warmup_ratio,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",  # see _in_batches
        eval_strategy="steps",
        eval_steps=args.eval_steps,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        seed=args.seed,
        # What suits small models on a CPU: TRL's defaults are made for large ones on a GPU.
        bf16=args.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available() and args.dtype == "bfloat16",  # Transformers asks to be told so
        gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )


class _Padding(TrainerCallback):
    """Tells a classifier what it is padded with, after the trainer has told it the tokenizer's pad token."""

    def __init__(self, model: PreTrainedModel, padding: int) -> None:
        self.model, self.padding = model, padding

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Before the first step."""
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
) -> None:
    """Train a reward model on `tokenized` preference pairs, in place; it is left in eval mode, adapters merged."""
    padding = padding_id(tokenizer)
    trainer = RewardTrainer(
        model=model,
        args=_trl_config(args, checkpoints),
        train_dataset=_in_batches(train, args),
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
    """By how much the rubric prefers the chosen answer of each pair of the embedded world (n,); noise makes it < 0."""
    questions = [prompt.strip() for prompt in pairs["prompt"]]
    sides = zip(questions, pairs["chosen"], pairs["rejected"], strict=True)
    return torch.tensor([gold_score(q, chosen) - gold_score(q, rejected) for q, chosen, rejected in sides])


def label_ceiling(gold: torch.Tensor) -> float:
    """Accuracy of the rubric itself on noisy labels, from its margins (n,): no judge can expect more."""
    return (gold > 0).float().mean().item()


def report(model: PreTrainedModel, held_out: Dataset, dataset_name: str) -> dict[str, object]:
    """How well a reward model judges `tokenized` held-out pairs, from the score of every single text.

    Returns what `stats.calibration` finds; in the embedded world also label_ceiling, the accuracy of the rubric
    itself on these noisy labels, and rubric_agreement, how often the model prefers what the rubric prefers; and the
    pairs that it gets most wrong.
    """
    chosen, rejected = (score_ids(model, list(held_out[f"{side}_ids"])) for side in ("chosen", "rejected"))
    margins = chosen - rejected
    found = calibration(margins.numpy())
    intervals = {name: getattr(found, name).as_dict() for name in ("loss", "below_chance", "accuracy")}
    worst = margins.argsort()[:SHOWN_MISTAKES].tolist()
    judged = {
        **asdict(found),
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
    if dataset_name == EVERYDAY:
        gold = gold_margins(held_out)
        judged["label_ceiling"] = label_ceiling(gold)
        judged["rubric_agreement"] = (gold.sign() == margins.sign()).float().mean().item()
    return judged
