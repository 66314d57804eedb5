"""How a run begins and ends: its directory, made once everything has been checked, and the outcome in its status.

A run that was killed, stopped or failed can be resumed in its directory, by the settings that it had.
"""

import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm.auto import tqdm

from rlhf import ranks
from rlhf.commands.judging import warn_of_other_code
from rlhf.config import (
    BadInput,
    CompareArguments,
    DemoArguments,
    Diverged,
    DPOArguments,
    PPOArguments,
    RewardArguments,
    SweepArguments,
)
from rlhf.rewards import digests, keep
from rlhf.runs import checkpoint
from rlhf.runs.callbacks import noted_sizes
from rlhf.runs.directory import ACTIVE, Run, WatchedRun, catch_signals
from rlhf.runs.disk import trouble
from rlhf.words import setting


Runnable = RewardArguments | PPOArguments | DPOArguments | CompareArguments | DemoArguments | SweepArguments
WHERE = {"output_dir", "resume_from_checkpoint", "report_to", "save_steps", "save_total_limit"}
"""Settings that may differ when a run goes on: where it writes, and how often it saves."""
HOW_MUCH = {
    "total_episodes", "max_steps", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "logging_steps", "eval_steps", "num_sample_generations", "ceiling_samples",
    "ceiling_prompts", "allow_chance_reward",
}  # fmt: skip
"""Settings that may differ too when a new run goes on from a checkpoint: how much it does, and how often it looks."""
MADE_FROM = {"data_fingerprint": "The data", "model_revision": "The model to start from"}


class Stopped(Exception):  # noqa: N818  (a request, not an error)
    """The run was asked to stop."""


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Record in the run's status how the work inside ended. An error of one rank ends all."""
    try:
        with ranks.fail_together(Stopped, Diverged):
            yield
    except Stopped:
        run.finish("stopped", f"Stopped. {run.saved()}")
        if ranks.is_main_process() and run.parent() is None:
            tqdm.write(f"Stopped. {run.saved()} The run is in {run.path}.")
    except Diverged as error:
        run.finish("diverged", f"{error} {run.saved()}")
        raise
    except BadInput as error:
        run.finish("failed", str(error))
        raise
    except KeyboardInterrupt:
        run.finish("interrupted", "Interrupted before it could save.")
        raise
    except Exception as error:
        if known := _why(error):
            what, todo = known
            message = f"{what} in the middle of the run: {todo}, and start it again. {run.saved()}"
            run.finish("failed", message)
            if run.parent() is not None:  # it has kept other things
                raise
            raise BadInput(message) from error
        said = " ".join(str(error).split())[:300]
        run.finish("failed", f"{run.title()} broke off: {type(error).__name__} said “{said}”. {run.saved()}")
        raise
    else:
        run.finish("finished")
        _drop_checkpoints(run)


def _why(error: Exception) -> tuple[str, str] | None:
    """What the machine lacked, and what to do; None for a mistake in the program."""
    if found := trouble(error):
        return found
    if isinstance(error, OSError):
        return f"A file could not be read or written ({error.strerror or error})", "check the permissions"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "Memory ran out", "lower the batch size or response_length, or take a smaller model"
    return None


def _drop_checkpoints(run: Run) -> None:
    """Delete checkpoints that nobody asked for, and that were there to go on from if the run had been killed."""
    if ranks.is_main_process() and not run.config().get("save_steps", 1):
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def finished(args: Runnable, kind: str) -> Run | None:
    """The run that these settings go on with, if it is finished and there is nothing left to do.

    Raises:
        BadInput: it had other settings, or a process is still at work on it.
    """
    if args.resume_from_checkpoint is not True:
        return None
    if args.output_dir is None:
        raise BadInput("resume_from_checkpoint true needs output_dir, the run to go on with.", field="output_dir")
    run = Run(args.output_dir)
    status, process = run.status(), run.process()
    if status.get("state") in ACTIVE and process and process.pid != os.getpid():
        raise BadInput(f"{run.path} is still under way in another process; stop that first.", field="output_dir")
    if status.get("state") != "finished":
        return None
    if run.parent() is None:
        unset = {"reward_label"} if getattr(args, "reward_label", None) is None else set()
        _check_same(run, asdict(args), unset)  # where none is given, the run has recorded the one that was found
    return run


def _check_same(run: Run, given: dict[str, object], may_differ: Set[str] = frozenset()) -> None:
    """Check that a run goes on as it began; of a stage, the settings were checked with those of the run around it.

    Raises:
        BadInput: a setting, a model or the data is another one.
    """
    before = run.config()
    for name in sorted((given.keys() & before.keys()) - WHERE - may_differ, key=lambda name: name in MADE_FROM):
        now, then = given[name], before[name]
        if now == then or Path(str(now)).resolve() == Path(str(then)).resolve():  # one path has many spellings
            continue
        if name in MADE_FROM:
            raise BadInput(f"{MADE_FROM[name]} changed since {run.path} was begun, so it cannot be resumed.")
        raise BadInput(
            f"{name} was {setting(then)} in {run.path} and cannot become {setting(now)} in the middle; give it as it "
            "was, or begin a new run, perhaps from that one's model.",
            field=name,
        )


def open_run(args: Runnable, kind: str, resumed: Path | None = None, **made_from: str) -> Run:
    """Make the directory of a new run, or open that of the run to go on with.

    With several ranks, only the main process makes it and writes there.

    Args:
        args: the settings.
        kind: a key of `KINDS`.
        resumed: the checkpoint to go on from.
        made_from: what the models and data are that the settings name.

    Raises:
        BadInput: something else is there, or the run to go on with had other settings.
    """
    functions = getattr(args, "reward_funcs", None)
    files = {"reward_files": digests(functions)} if functions else {}
    config, kept = asdict(args) | made_from, None
    if getattr(args, "resume_from_checkpoint", None) is True:
        before = Run(args.output_dir)
        _check_same(before, config if before.parent() is None else made_from)
        config["resume_from_checkpoint"] = before.config().get("resume_from_checkpoint")
        own = resumed is not None and resumed.parent.parent == before.path
        kept = noted_sizes(resumed) if own else {}
    elif resumed is not None:
        _check_same(Run(resumed.parent.parent), config, HOW_MUCH)
    if resumed is not None:
        warn_of_other_code(Run(resumed.parent.parent), functions)
    if ranks.is_main_process():
        run = Run.create(args.output_dir, kind, config | files, kept)
        if kept is not None:
            for folder in checkpoint.folders(run.path / "checkpoints"):
                if not own or checkpoint.step_of(folder) > checkpoint.step_of(resumed):
                    shutil.rmtree(folder)  # damaged
            checkpoint.rotate(run.path / "checkpoints", config.get("save_total_limit"))  # a kill may have left more
        keep(functions, run.path / "rewards")
        ranks.broadcast_object(run.path)
    else:
        run = WatchedRun(ranks.broadcast_object(None))
    if run.parent() is None:  # a stage leaves the signals to the run that holds it
        catch_signals(run, second_ends=ranks.world_size() == 1)
    return run
