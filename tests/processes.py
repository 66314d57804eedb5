"""Programs that tests run: `app.py` until a test is done with it, and commands inside the tests' own process."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent


def print_warning(message, category, filename, lineno, file=None, line=None):
    """A warning as Python writes it where pytest does not collect it."""
    print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


@contextmanager
def keep_signals():
    """A command that runs in this process leaves none of its signal handlers behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def serving(log, **environment):
    """Run `python app.py` until the end of the block; its output goes to the file `log`. Gives the page's address."""
    with log.open("w") as output:
        app = subprocess.Popen(
            [sys.executable, "-u", "app.py"], cwd=ROOT, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 120
        while not (served := re.search(r"Running on local URL: +(\S+)", log.read_text())):
            assert app.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield served.group(1)
    finally:
        app.terminate()
        app.wait()
