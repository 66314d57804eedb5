"""How a trainer writes its run directory: metrics, progress, sample answers; and how it notices a request to stop."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerControl, TrainerState

from rlhf import metrics, ranks
from rlhf.config import Diverged
from rlhf.runs.checkpoint import with_room
from rlhf.runs.directory import Run
from rlhf.runs.disk import ask_for
from rlhf.runs.files import read_json
from rlhf.runs.finite import check_weights


def noted_sizes(checkpoint: Path) -> dict[str, int]:
    """How long the logs of a run were when it saved a checkpoint."""
    file = checkpoint / "state.json"
    state = read_json(file)["trainer"] if file.exists() else read_json(checkpoint / "trainer_state.json")
    return state["stateful_callbacks"][RunCallback.__name__]["attributes"]["log_sizes"]


def called(run: Run) -> str:
    """The name of a run's directory, for a stage after that of the run that holds it."""
    parent = run.parent()
    return f"{parent.id}-{run.id}" if parent else run.id


@contextmanager
def tracker(run: Run, report_to: str | None) -> Iterator[list[TrainerCallback]]:
    """What logs a training to a tracker as well, with Transformers' own callback; an empty list for no tracker.

    TensorBoard and W&B write into the run's directory, and W&B does not use the network, unless their environment
    variables (TENSORBOARD_LOGGING_DIR, WANDB_DIR, WANDB_MODE) say otherwise. Trackio keeps its own folder.
    """
    if report_to is None or not ranks.is_main_process():
        yield []
        return
    from transformers import integrations  # looks for all trackers, which takes a while

    if report_to == "tensorboard":
        callback = integrations.TensorBoardCallback()
        callback.logging_dir = callback.logging_dir or str(run.path / "tensorboard")
        yield [callback]
    elif report_to == "trackio":
        yield [integrations.TrackioCallback()]
    else:
        import wandb

        # The callback uses the run that is open; it would leave it open for the next stage of a demo.
        folder, mode = os.environ.get("WANDB_DIR", str(run.path)), os.environ.get("WANDB_MODE", "offline")
        with wandb.init(
            project=os.environ.get("WANDB_PROJECT", "huggingface"), name=called(run), dir=folder, mode=mode
        ):
            yield [integrations.WandbCallback()]


class RunCallback(TrainerCallback, ExportableState):
    """For Transformers trainers and for PPOTrainer alike; a checkpoint notes how long the run's logs were.

    A training that is stopped saves a checkpoint. With the environment variable RLHF_SAVE_SECONDS every training saves
    one each time that so many seconds have passed.

    A training on pairs that diverges ends here with `Diverged`, before anything of it is saved; PPO sees to that
    itself.

    Args:
        run: the directory to write.
        label: text of the progress bar.
        unit: what a step is called in messages.
    """

    def __init__(self, run: Run, label: str, unit: str) -> None:
        self.run, self.label, self.unit = run, label, unit
        self.bar: tqdm | None = None
        self.saved = math.inf

    def state(self) -> dict:
        """What a checkpoint holds of this."""
        return {"args": {}, "attributes": {"log_sizes": self.run.log_sizes()}}

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Start the clock and the progress bar; trackers call the run as its directory is called."""
        args.run_name = called(self.run)
        self.run.start(state.max_steps, self.label, state.global_step)
        self.saved = time.monotonic()
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.label,
            unit=f" {self.unit}s",
            disable=not ranks.is_main_process(),
        )

    def on_pre_optimizer_step(
        self, args: object, state: TrainerState, control: TrainerControl, *, model: torch.nn.Module, **kwargs: object
    ) -> None:
        """Check the gradients, while the weights are still those of the last good step."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise Diverged(f"The gradient was not finite at step {state.global_step + 1}; lower learning_rate.")

    def on_optimizer_step(
        self,
        args: object,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs: object,
    ) -> None:
        """Check what the step has made of the weights, before any of it is saved."""
        check_weights(optimizer, f"step {state.global_step + 1}", model)

    def on_step_end(
        self, args: object, state: TrainerState, control: TrainerControl, *, model: torch.nn.Module, **kwargs: object
    ) -> None:
        """Stamp the step, and ask for the room that a checkpoint takes.

        A stop request takes effect on every rank after the same step.
        """
        self.bar.update(state.global_step - self.bar.n)
        self.run.progress(
            state.global_step, state.max_steps, f"{self.label}: {self.unit} {state.global_step} of {state.max_steps}"
        )
        if ranks.any_rank(self.run.stop_requested()):
            control.should_training_stop = control.should_save = True
        seconds = float(os.environ.get("RLHF_SAVE_SECONDS") or math.inf)
        if ranks.any_rank(time.monotonic() - self.saved > seconds):
            control.should_save = True
        if control.should_save:
            self._ask_for(3 * _bytes(p for p in model.parameters() if p.requires_grad))  # with Adam's moments

    def on_save(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Note the time."""
        self.saved = time.monotonic()

    def on_log(self, args: object, state: TrainerState, control: TrainerControl, logs: dict, **kwargs: object) -> None:
        """Append a line to the curves, and check the losses."""
        self.run.log({metrics.STEP: state.global_step, **logs})
        losses = (logs[name] for name in (metrics.LOSS, metrics.EVAL_LOSS, "train_loss") if name in logs)
        if not all(map(math.isfinite, losses)):
            raise Diverged(f"The loss was not finite at step {state.global_step}; lower learning_rate.")
        shown = {"loss": metrics.LOSS, "accuracy": metrics.ACCURACY, "score": metrics.SCORE, "kl": metrics.KL}
        self.bar.set_postfix({name: f"{logs[key]:.3f}" for name, key in shown.items() if key in logs})

    def on_train_end(
        self, args: object, state: TrainerState, control: TrainerControl, *, model: torch.nn.Module, **kwargs: object
    ) -> None:
        """Close the progress bar, and ask for the room that the model takes."""
        self.bar.close()
        self._ask_for(_bytes(model.parameters()))

    def _ask_for(self, size: int) -> None:
        if ranks.is_main_process():
            with_room(self.run.path / "checkpoints", lambda: ask_for(size, self.run.path))


def _bytes(weights: Iterable[torch.Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


class EveryFewSteps(TrainerCallback):
    """Calls `action(step)` at the start, after every `every` steps, and at the end.

    A training that is resumed has started already: `last` is the step of its last call.
    """

    def __init__(self, every: int, action: Callable[[int], object], last: int | None = None) -> None:
        self.every, self.action, self.last = every, action, last

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """At the start."""
        if self.last is None:
            self._act(state.global_step)

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Every few steps."""
        if state.global_step % self.every == 0:
            self._act(state.global_step)

    def on_train_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """At the end, unless the last step was one of them."""
        if self.last != state.global_step:
            self._act(state.global_step)

    def _act(self, step: int) -> None:
        self.last = step
        self.action(step)
