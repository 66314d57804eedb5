"""Starting and stopping the training processes. The page calls this; nothing else starts or signals a process.

A run is a process of its own, in its own session and with its output in a file, so that closing the page or the app
loses nothing. It is niced: on two cores the page stays live beside it. One process is kept ready for the next run.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from rlhf.config import BadInput
from rlhf.runs import ACTIVE, Run, list_runs, new_run_path, write_json


NICENESS = 10
GRACE_SECONDS = 30.0
"""How long a run that was asked to stop may take to save before it is ended."""
_PACKAGE_PARENT = Path(__file__).resolve().parent.parent


_ready: subprocess.Popen | None = None
_taking = threading.Lock()


def prepare() -> None:
    """Have a worker ready for the next run; it costs memory only while it waits, and ends with this program."""
    global _ready
    with _taking:
        if _ready is None or _ready.poll() is not None:
            _ready = _worker()


def _take_worker() -> subprocess.Popen:
    global _ready
    with _taking:
        worker, _ready = _ready, None
    return worker if worker is not None and worker.poll() is None else _worker()


def _worker() -> subprocess.Popen:
    worker = subprocess.Popen(
        [sys.executable, "-m", "rlhf.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(_PACKAGE_PARENT)},
        preexec_fn=lambda: os.nice(NICENESS),
    )
    _step_back(worker.pid)
    return worker


def launch(kind: str, settings: dict[str, object], title: str = "", questions: Sequence[str] = ()) -> Run:
    """Start `python -m rlhf KIND` with these settings in a new run directory and return at once.

    Questions of a person's own are kept in the directory as `questions.txt`, for a comparison to ask.

    Raises:
        BadInput: another run is under way.
    """
    current = active_run()
    if current is not None:
        raise BadInput(f"{current.id} is still under way; stop it or wait until it has ended.")
    run = Run(new_run_path(kind))
    run.path.mkdir(parents=True)
    if questions:
        file = run.path / "questions.txt"
        file.write_text("\n".join(questions), encoding="utf-8")
        settings = {**settings, "prompts_file": str(file)}
    write_json(run.path / "config.json", {"kind": kind, "title": title, **settings})
    run.set_status(state="queued", kind=kind, created=time.time(), step=0, total_steps=0, message="Starting")
    command = [kind, "--output_dir", str(run.path)]
    for name, value in settings.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    worker = _take_worker()
    run.set_status(pid=worker.pid)
    with worker.stdin as line:
        line.write(json.dumps({"command": command, "log": str(run.path / "train.log")}).encode() + b"\n")
    threading.Thread(target=_reap, args=(worker, run), daemon=True).start()
    return run


def _step_back(pid: int) -> None:
    """Where Linux schedules by session, niceness counts within a session only: the session itself has to step back."""
    autogroup = Path(f"/proc/{pid}/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(NICENESS))


def _reap(process: subprocess.Popen, run: Run) -> None:
    """Wait for the child, so that it leaves no zombie, and record an end that it could not record itself."""
    process.wait()
    if run.status().get("state") in ACTIVE:
        ended = f"The process ended with code {process.returncode}; the program's console may say why."
        run.finish("failed", last_words(run) or ended)
    prepare()


def last_words(run: Run) -> str:
    """The last line that the process printed, without the word that marks a mistake."""
    log = run.path / "train.log"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("error: ")[:300] if lines else ""


def _alive(run: Run) -> bool:
    status = run.status()
    try:
        process = psutil.Process(status["pid"])
        # A process id is used again in time: the one that wrote the status cannot be younger than the status.
        return (
            process.is_running()
            and process.status() != psutil.STATUS_ZOMBIE
            and (process.create_time() <= status["updated"] + 1)
        )
    except (psutil.NoSuchProcess, KeyError):
        return False


def active_run() -> Run | None:
    """The run that is under way, if any; a run whose process is gone is marked interrupted."""
    for run in list_runs():
        status = run.status()
        if status.get("state") not in ACTIVE:
            continue
        if _alive(run):
            return run
        if time.time() - status.get("updated", 0) > 2:
            run.finish("interrupted", "The process is gone; start the run again.")
    return None


def stop(run: Run) -> None:
    """Ask a run to save and end; end it after a grace time if it does not."""
    if run.status().get("state") not in ACTIVE:
        return
    run.request_stop()
    run.set_status(state="stopping", message="Stopping after this step")
    timer = threading.Timer(GRACE_SECONDS, _kill, args=(run,))
    timer.daemon = True
    timer.start()


def _kill(run: Run) -> None:
    if run.status().get("state") in ACTIVE and _alive(run):
        os.killpg(run.status()["pid"], signal.SIGKILL)
        run.finish("interrupted", "It did not stop in time and was ended.")
