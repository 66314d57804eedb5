"""A training process that is ready before it is needed: it loads the libraries, then waits to be told what to train.

Loading torch and TRL takes some ten seconds. The page keeps one such process (`jobs.py`), so that the curves
begin soon after the button is pressed. Its work is one line of JSON on standard input; without one the page is gone,
and so is the worker.
"""

import json
import os
import sys

import rlhf.commands
import rlhf.reward  # noqa: F401  (what takes seconds to import)
from rlhf.__main__ import exit_code, make_run


def wait() -> int:
    """Make the run that comes in, {"kind": ..., "settings": {...}, "log": PATH}, with its output in that file."""
    line = sys.stdin.readline()
    if not line:
        return 0
    work = json.loads(line)
    log = os.open(work["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    return exit_code(make_run, work["kind"], work["settings"])


if __name__ == "__main__":
    sys.exit(wait())
