"""DPO: the policy learns from preference pairs alone, with TRL's DPOTrainer and without a reward model.

The loss is -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)), where the log-ratio of an answer is
log policy(answer | prompt) - log reference(answer | prompt), and beta times it the answer's implicit reward (Rafailov
et al., 2305.18290). At the start policy and reference are the same, so the loss is ln 2 = 0.693 nats per pair.
"""

import copy
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerControl
from trl import DPOConfig, DPOTrainer

from rlhf.config import DPOArguments
from rlhf.models import merged
from rlhf.reward import QUICK_EVAL_PAIRS, in_batches, training_arguments
from rlhf.runs.resuming import Resumable


class _EvaluatedLast(TrainerCallback):
    """Evaluates after the last step too, whether it was the last that was planned or the run was stopped."""

    def on_step_end(self, args: object, state: object, control: TrainerControl, **kwargs: object) -> None:
        """After the last step that was planned."""
        control.should_evaluate |= state.global_step >= state.max_steps

    def on_epoch_end(self, args: object, state: object, control: TrainerControl, **kwargs: object) -> None:
        """Where the training was stopped; the checkpoint has been saved by then, and knows nothing of it."""
        control.should_evaluate |= control.should_training_stop and state.global_step < state.max_steps


class _TokenizedDPOTrainer(Resumable, DPOTrainer):
    """TRL's DPOTrainer on pairs that are token ids already, the same that a reward model is trained on."""

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        return dataset


def _completions(pairs: Dataset) -> Dataset:
    """`tokenized` pairs as DPOTrainer reads them: answers without the prompt that they follow."""

    def without_prompt(pair: dict) -> dict:
        return {f"{side}_ids": pair[f"{side}_ids"][len(pair["prompt_ids"]) :] for side in ("chosen", "rejected")}

    ids = pairs.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    return ids.map(without_prompt, load_from_cache_file=False)


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
    """Train a policy on `tokenized` preference pairs.

    Evaluations are on `QUICK_EVAL_PAIRS` held-out pairs.

    Returns:
        The policy in eval mode, its adapters merged.
    """
    train = in_batches(train, args)
    if args.max_steps > 0:  # what is never read
        train = train.select(range(min(len(train), args.max_steps * args.per_device_train_batch_size)))
    trainer = _TokenizedDPOTrainer(
        model=model,
        ref_model=None if adapters else copy.deepcopy(model),  # without adapters the policy is the reference
        # Longer pairs have been left out; TRL would cut them.
        args=DPOConfig(beta=args.beta, max_length=None, **training_arguments(args, checkpoints)),
        train_dataset=_completions(train),
        eval_dataset=_completions(held_out.select(range(min(QUICK_EVAL_PAIRS, len(held_out))))),
        processing_class=tokenizer,
        callbacks=[*callbacks, _EvaluatedLast()],
        peft_config=adapters,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return merged(trainer.model).eval()
