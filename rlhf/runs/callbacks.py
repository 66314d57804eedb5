"""How a trainer writes its run directory: metrics, progress, pinned samples, checkpoints, and the wish to stop."""

from collections.abc import Callable

from tqdm.auto import tqdm
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from rlhf import ranks
from rlhf.runs.directory import Run


class RunCallback(TrainerCallback):
    """For Transformers trainers and for PPOTrainer alike.

    Args:
        run: the directory to write.
        label: what the progress bar says.
        unit: what a step is, for the page's message.
    """

    def __init__(self, run: Run, label: str, unit: str) -> None:
        self.run, self.label, self.unit = run, label, unit
        self.bar: tqdm | None = None

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Start the clock and the progress bar."""
        self.run.start(state.max_steps, self.label)
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.label,
            unit=f" {self.unit}s",
            disable=not ranks.is_main_process(),
        )

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Stamp the step; pass on the wish to stop, to all ranks at the same step."""
        self.bar.update(state.global_step - self.bar.n)
        self.run.progress(
            state.global_step, state.max_steps, f"{self.label}: {self.unit} {state.global_step} of {state.max_steps}"
        )
        if ranks.any_rank(self.run.stop_requested()):
            control.should_training_stop = True

    def on_log(self, args: object, state: TrainerState, control: TrainerControl, logs: dict, **kwargs: object) -> None:
        """Append a line to the curves."""
        self.run.log({"step": state.global_step, **logs})
        shown = {"loss": "loss", "accuracy": "accuracy", "objective/scores_raw": "score", "objective/kl": "kl"}
        self.bar.set_postfix({name: f"{logs[key]:.3f}" for key, name in shown.items() if key in logs})

    def on_train_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Close the progress bar."""
        self.bar.close()


class EveryFewSteps(TrainerCallback):
    """Calls `action(step)` at the start, after every `every` steps, and at the end."""

    def __init__(self, every: int, action: Callable[[int], object]) -> None:
        self.every, self.action = every, action
        self.last: int | None = None

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """At the start."""
        self._act(state.global_step)

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Every few steps."""
        if state.global_step % self.every == 0:
            self._act(state.global_step)

    def on_train_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """At the end, if it was not done just now."""
        if self.last != state.global_step:
            self._act(state.global_step)

    def _act(self, step: int) -> None:
        self.last = step
        self.action(step)
