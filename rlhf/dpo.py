"""DPO: the policy learns from preference pairs alone, with TRL's DPOTrainer and without a reward model.

The loss is -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)), where the log-ratio of an answer is
log policy(answer | prompt) - log reference(answer | prompt), and beta times it the answer's implicit reward (Rafailov
et al., 2305.18290). At the start policy and reference are the same, so the loss is ln 2 = 0.693 nats per pair.
"""

import copy
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerControl
from trl import DPOConfig, DPOTrainer

from rlhf.config import DPOArguments
from rlhf.models import merged
from rlhf.reward import QUICK_EVAL_PAIRS, in_batches


def _trl_config(args: DPOArguments, checkpoints: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(checkpoints),
        learning_rate=args.learning_rate,
        beta=args.beta,
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        max_length=None,  # longer pairs have been left out; TRL would cut them
        warmup_steps=args.warmup_ratio,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",  # see in_batches
        eval_strategy="steps",
        eval_steps=args.eval_steps,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        seed=args.seed,
        # TRL's defaults suit large models on a GPU, these small ones on a CPU.
        bf16=args.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available() and args.dtype == "bfloat16",
        gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )


class _EvaluatedLast(TrainerCallback):
    """Evaluates after the last step too, whether it was the last that was planned or the run was stopped."""

    def on_step_end(self, args: object, state: object, control: TrainerControl, **kwargs: object) -> None:
        """Comes after the callbacks that may stop the training."""
        control.should_evaluate |= control.should_training_stop


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: DPOArguments,
    train: Dataset,
    held_out: Dataset,
    checkpoints: Path,
    callbacks: list[TrainerCallback],
    adapters: object | None = None,
) -> PreTrainedModel:
    """Train a policy on preference pairs that are short enough, which TRL tokenizes.

    Evaluations are on `QUICK_EVAL_PAIRS` held-out pairs.

    Returns:
        The policy in eval mode, its adapters merged.
    """
    train = in_batches(train, args)
    if args.max_steps > 0:  # what is never read need not be tokenized
        train = train.select(range(min(len(train), args.max_steps * args.per_device_train_batch_size)))
    texts = ["prompt", "chosen", "rejected"]
    trainer = DPOTrainer(
        model=model,
        ref_model=None if adapters else copy.deepcopy(model),  # without adapters the policy is the reference
        args=_trl_config(args, checkpoints),
        train_dataset=train.select_columns(texts),
        eval_dataset=held_out.select(range(min(QUICK_EVAL_PAIRS, len(held_out)))).select_columns(texts),
        processing_class=tokenizer,
        callbacks=[*callbacks, _EvaluatedLast()],
        peft_config=adapters,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return merged(trainer.model).eval()
