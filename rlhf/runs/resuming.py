"""What Transformers' Trainer lacks: checkpoints that survive a kill, and all that its log depends on in them."""

import json
from collections import defaultdict
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from rlhf import ranks
from rlhf.runs import checkpoint


COUNTS = "counts.json"
"""File of a checkpoint with what Transformers and TRL count between two lines of the log, and do not save."""


class Resumable:
    """Of a TRL trainer: a run that is resumed is the run that was never interrupted, and so are its metrics."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.aside: Path | None = None
        self.resumed: Path | None = None
        self.add_callback(_Recount(self))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: object) -> TrainOutput:
        """See Trainer."""
        self.resumed = resume_from_checkpoint and Path(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    def _run_epoch(self, **kwargs: object) -> None:
        # Transformers makes a step more when it resumes from the last one of max_steps.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See Trainer, which takes the mean loss over the steps since it was resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / self.state.global_step
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: object) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        loss = ranks.gather(self._tr_loss.reshape(1)).mean().item()
        with checkpoint.written_whole(folder) as aside:
            self.aside = aside.parent
            super()._save_checkpoint(*args)
            self.aside = None
            if ranks.is_main_process():
                counts = {
                    "loss": loss,
                    "total_loss": self._total_loss_scalar,
                    "last_logged": self._globalstep_last_logged,
                    "tokens": self._total_train_tokens,
                    "metrics": self._metrics,
                    "training": self.model.training,  # by this TRL tells which of the metrics a line of the log takes
                }
                (aside / COUNTS).write_text(json.dumps(counts), encoding="utf-8")
        if ranks.is_main_process():
            checkpoint.rotate(folder.parent, self.args.save_total_limit)

    def _get_output_dir(self, trial: object = None) -> str:
        return str(self.aside or super()._get_output_dir(trial))

    def recount(self) -> None:
        """Take up the counts of the checkpoint that training was resumed from."""
        counts = json.loads((self.resumed / COUNTS).read_text(encoding="utf-8"))
        self._tr_loss += counts["loss"]
        self._total_loss_scalar = counts["total_loss"]
        self._globalstep_last_logged = counts["last_logged"]
        self._total_train_tokens = counts["tokens"]
        self._metrics = {mode: defaultdict(list, entries) for mode, entries in counts["metrics"].items()}
        self.model.train(counts.get("training", False))  # older checkpoints do not say it
        # How often to log, save and evaluate is what the settings say, not the checkpoint.
        self.state.compute_steps(self.args, self.state.max_steps)


class _Recount(TrainerCallback):
    """Comes when Transformers has set its own counts to zero."""

    def __init__(self, trainer: Resumable) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Before the first step."""
        if self.trainer.resumed:
            self.trainer.recount()
