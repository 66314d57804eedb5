"""Runs commands one after the other, each in a fork that is killed at a file event; the libraries load only once.

Standard input is JSON, a list of {"words": of a command, "killed": when, or null}: the fork ends by SIGKILL just
before the first event that the pattern "killed" matches, such as "os.rename .*/checkpoint-2", or the event of that
number. With "save" in place of "words", what is killed is the save of a checkpoint into that folder. Prints the list
of signals and exit codes, as subprocess gives them.
"""

import itertools
import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path

import torch

import rlhf.commands
import rlhf.dpo
import rlhf.reward  # noqa: F401
from rlhf.__main__ import main
from rlhf.runs import checkpoint


EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def kill_at(when):
    """End this process before the event of this number, or the first that matches this pattern."""
    numbers = itertools.count(1)

    def hook(event, arguments):
        if event not in EVENTS or not isinstance(arguments[0], str | Path):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        number = next(numbers)
        if when == number or isinstance(when, str) and re.search(when, f"{event} {arguments[0]}"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def work(save=None, words=(), killed=None):
    if killed:
        kill_at(killed)
    if not save:
        return main(words)
    with checkpoint.written_whole(Path(save)) as aside:
        checkpoint.save(aside, {"weights": {"w": torch.ones(3)}}, {"step": 2})
    return 0


def forked(**task):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    code = 1
    try:
        code = work(**task)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    print(json.dumps([forked(**task) for task in json.load(sys.stdin)]))
