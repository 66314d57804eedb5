"""How a run begins and ends: a directory made once everything has been checked, and a status that says the outcome."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from tqdm.auto import tqdm

from rlhf import ranks
from rlhf.config import BadInput, CompareArguments, DemoArguments, PPOArguments, RewardArguments
from rlhf.ppo import Diverged
from rlhf.runs.directory import Run, WatchedRun, catch_signals


class Stopped(Exception):  # noqa: N818  (a wish, not an error)
    """Somebody asked the run to stop."""


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Record how the work inside ends in the run's status; an error of one rank is the error of all."""
    try:
        with ranks.fail_together(Stopped, Diverged):
            yield
    except Stopped:
        run.finish("stopped", "Stopped. What was learned until then is saved.")
        if ranks.is_main_process() and run.parent() is None:
            tqdm.write(f"Stopped. What was learned until then is saved in {run.path}.")
    except Diverged as error:
        run.finish("diverged", str(error))
        raise BadInput(str(error)) from error
    except BadInput as error:
        run.finish("failed", str(error))
        raise
    except KeyboardInterrupt:
        run.finish("interrupted", "Interrupted before it could save.")
        raise
    except Exception as error:
        run.finish("failed", f"{type(error).__name__}: {error}")
        raise
    else:
        run.finish("finished")


def open_run(
    args: RewardArguments | PPOArguments | CompareArguments | DemoArguments, kind: str, **made_from: str
) -> Run:
    """The directory of a new run; of several ranks the first makes it and alone writes there."""
    if ranks.is_main_process():
        run = Run.create(args.output_dir, kind, {**asdict(args), **made_from})
        ranks.broadcast_object(run.path)
    else:
        run = WatchedRun(ranks.broadcast_object(None))
    if run.parent() is None:  # a stage leaves the signals to the run that holds it
        catch_signals(run, second_ends=ranks.world_size() == 1)
    return run
