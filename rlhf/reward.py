"""The reward model: TRL's RewardTrainer on a sequence classifier started from the language model.

The loss is Bradley and Terry's, -log sigmoid(score of chosen - score of rejected). A model that knows nothing has loss
ln 2 = 0.693 and accuracy 0.5; one that judges perfectly still has the accuracy of the labels, which are noisy.
"""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl import RewardConfig, RewardTrainer

from rlhf.config import EVERYDAY, RewardArguments
from rlhf.everyday import gold_score
from rlhf.models import load_reward_model, size_mb
from rlhf.scoring import score_texts


QUICK_EVAL_PAIRS = 256
"""Held-out pairs for the points on the curve; the report at the end takes all of them."""


def _with_length(data: Dataset) -> Dataset:
    """Add the length that the sampler groups by: pairs of like length share a batch, which saves padding."""
    return data.map(lambda row: {"length": len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))})


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
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,  # the sampler reads the length
        eval_strategy="steps",
        eval_steps=args.eval_steps,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        seed=args.seed,
        # What suits small models on a CPU: TRL's defaults are made for large ones on a GPU.
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )


def train_reward_model(
    args: RewardArguments, train: Dataset, held_out: Dataset, checkpoints: Path, callbacks: list[TrainerCallback]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train a reward model on preference pairs and return it with its tokenizer, in eval mode."""
    set_seed(args.seed)  # the score head is new
    model, tokenizer = load_reward_model(args.model_name_or_path)
    trainer = RewardTrainer(
        model=model,
        args=_trl_config(args, checkpoints),
        train_dataset=_with_length(train),
        eval_dataset=_with_length(held_out.select(range(min(QUICK_EVAL_PAIRS, len(held_out))))),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return model.eval(), tokenizer


def report(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: Dataset, dataset_name: str
) -> dict[str, float | None]:
    """How well a reward model judges held-out pairs, from the score of every single text.

    Returns eval_loss (nats), eval_accuracy (ties count half), tie_fraction, mean_margin, size_mb; in the embedded
    world also label_ceiling, the accuracy of the rubric itself on these noisy labels, and rubric_agreement, how often
    the model prefers what the rubric prefers.
    """
    prompts = held_out["prompt"]
    chosen = torch.tensor(score_texts(model, tokenizer, prompts, held_out["chosen"]))
    rejected = torch.tensor(score_texts(model, tokenizer, prompts, held_out["rejected"]))
    margins = chosen - rejected
    found = {
        "pairs": len(held_out),
        "eval_loss": torch.nn.functional.softplus(-margins).mean().item(),
        "eval_accuracy": ((margins > 0).float() + 0.5 * (margins == 0)).mean().item(),
        "label_ceiling": None,
        "rubric_agreement": None,
        "tie_fraction": (margins == 0).float().mean().item(),
        "mean_margin": margins.mean().item(),
        "size_mb": size_mb(model),
    }
    if dataset_name == EVERYDAY:
        gold = torch.tensor(
            [
                gold_score(row["prompt"].strip(), row["chosen"]) - gold_score(row["prompt"].strip(), row["rejected"])
                for row in held_out
            ]
        )
        found["label_ceiling"] = (gold > 0).float().mean().item()
        found["rubric_agreement"] = (gold.sign() == margins.sign()).float().mean().item()
    return found
