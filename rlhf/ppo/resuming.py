"""What a PPO training must know of itself to go on from a checkpoint as if nothing had happened."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer_callback import ExportableState

from rlhf.models.packed import is_peft
from rlhf.ppo.algorithm import ScoreStats
from rlhf.runs import checkpoint


def what_to_save(trainer: Trainer) -> tuple[dict, dict]:
    """Tensors and settings of a `PPOTrainer`, beside the policy, as `checkpoint.save` takes them.

    Random numbers, the order of prompts and the learning rate follow from the update's number: there is no state of a
    generator, sampler or scheduler to save.
    """
    tensors, rest = checkpoint.split_optimizer(trainer.optimizer)
    callbacks = [each for each in trainer.callback_handler.callbacks if isinstance(each, ExportableState)]
    states = {type(callback).__name__: callback.state() for callback in callbacks}
    return {"value": _value_weights(trainer), "optimizer": tensors}, {
        "trainer": asdict(trainer.state) | {"stateful_callbacks": states},
        "optimizer": rest,
        "batch_size": trainer.args.batch_size,
        "kl_coef": trainer.kl_coef,
        "score_stats": asdict(trainer.score_stats),
    }


def restore(trainer: Trainer, folder: Path) -> None:
    """Put a `PPOTrainer` into the state of a checkpoint; settings that differ are the trainer's.

    Raises:
        BadInput: it is damaged, or of another model.
    """
    # 1. Weights and the optimizer's moments
    tensors, state = checkpoint.load(folder)
    groups = tensors.keys() - {"value", "optimizer"}
    weights = {name: value for group in groups for name, value in tensors[group].items()}
    if not _fits(trainer.model, weights) or tensors["value"].keys() != _value_weights(trainer).keys():
        raise checkpoint.another_model(folder)
    given = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in trainer.optimizer.param_groups
    ]
    try:
        if is_peft(trainer.model):
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(trainer.model, weights)
        else:
            trainer.model.load_state_dict(weights, strict=False)  # tied weights are saved once
        if trainer.value_model is not None:
            trainer.value_model.load_state_dict(tensors["value"], strict=False)
        trainer.optimizer.load_state_dict(checkpoint.join_optimizer(tensors["optimizer"], state["optimizer"]))
    except (RuntimeError, ValueError) as error:
        raise checkpoint.another_model(folder) from error

    # 2. How far it has come. What says which process this is stays; all else is the checkpoint's.
    own = {"is_local_process_zero", "is_world_process_zero", "stateful_callbacks"}
    own = {name: getattr(trainer.state, name) for name in own}
    trainer.state = TrainerState(**(state["trainer"] | own))
    # Progress is counted in episodes: with another batch size, as many are another number of updates.
    if trainer.args.max_steps <= 0:
        trainer.state.global_step = trainer.state.global_step * state["batch_size"] // trainer.args.batch_size
    trainer.score_stats = ScoreStats(**state["score_stats"])
    trainer.kl_coef = state["kl_coef"] if trainer.args.kl_controller == "adaptive" else trainer.args.kl_coef

    # 3. The learning rates of that step, and what else the optimizer was given
    groups, scheduler = trainer.optimizer.param_groups, trainer.lr_scheduler
    for group, settings in zip(groups, given, strict=True):
        group.update(settings)
    scheduler.last_epoch = trainer.state.global_step
    if isinstance(scheduler, LambdaLR):  # all of Transformers' own, which know the rate of any step
        for group, lr, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = lr * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]


def _value_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The critic's weights by name; none where there is no critic."""
    return {} if trainer.value_model is None else dict(trainer.value_model.named_parameters())


def _fits(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> bool:
    """Whether these are all weights of the policy, or of its adapters."""
    if is_peft(model):
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(model).keys() == weights.keys()
    return checkpoint.fits(model, {name: list(value.shape) for name, value in weights.items()})
