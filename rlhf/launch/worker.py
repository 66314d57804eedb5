"""A training process that is ready before it is needed: it loads the libraries, then waits to be told what to train.

Loading torch and TRL takes some ten seconds. The page keeps one such process (`jobs.py`), so that the curves
begin soon after the button is pressed. Its work is one line of JSON on standard input; without one the page is gone,
and so is the worker.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil


NICENESS = 5
"""A third of the weight of other programs in Linux's scheduler; 10 would be a tenth."""


def step_back() -> None:
    """Leave the processor to other programs; threads that are made later do so too."""
    psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS))  # Windows has classes
    # Where Linux schedules by session, niceness counts within a session only: the session itself has to step back.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def wait() -> int:
    """Load what takes seconds, then make the run that comes in, with its output in a file.

    The run is a line of JSON, {"kind": ..., "settings": {...}, "log": PATH}.
    """
    import rlhf.commands
    import rlhf.reward  # noqa: F401
    from rlhf.__main__ import exit_code, make_run

    line = sys.stdin.readline()
    if not line:
        return 0
    work = json.loads(line)
    log = os.open(work["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    return exit_code(make_run, work["kind"], work["settings"])


if __name__ == "__main__":
    step_back()
    sys.exit(wait())
