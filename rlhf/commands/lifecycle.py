"""How a run begins and ends: its directory, made once everything has been checked, and the outcome in its status."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
from tqdm.auto import tqdm

from rlhf import ranks
from rlhf.config import (
    BadInput,
    CompareArguments,
    DemoArguments,
    Diverged,
    DPOArguments,
    PPOArguments,
    RewardArguments,
)
from rlhf.rewards import digests, keep
from rlhf.runs.directory import Run, WatchedRun, catch_signals
from rlhf.runs.disk import trouble


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
            run.sweep_checkpoints()
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


def _why(error: Exception) -> tuple[str, str] | None:
    """What the machine lacked, and what to do; None for a mistake in the program."""
    if found := trouble(error):
        return found
    if isinstance(error, OSError):
        return f"A file could not be read or written ({error.strerror or error})", "check the permissions"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "Memory ran out", "lower the batch size or response_length, or take a smaller model"
    return None


def open_run(
    args: RewardArguments | PPOArguments | DPOArguments | CompareArguments | DemoArguments, kind: str, **made_from: str
) -> Run:
    """Make the directory of a new run. With several ranks, only the main process makes it and writes there."""
    functions = getattr(args, "reward_funcs", None)
    files = {"reward_files": digests(functions)} if functions else {}
    if ranks.is_main_process():
        run = Run.create(args.output_dir, kind, {**asdict(args), **made_from, **files})
        keep(functions, run.path / "rewards")
        ranks.broadcast_object(run.path)
    else:
        run = WatchedRun(ranks.broadcast_object(None))
    if run.parent() is None:  # a stage leaves the signals to the run that holds it
        catch_signals(run, second_ends=ranks.world_size() == 1)
    return run
