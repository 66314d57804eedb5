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
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from rlhf.config import BadInput, Settings
from rlhf.launch import limits
from rlhf.runs.directory import ACTIVE, Run, list_runs, make_room, new_run_path, write_json


NICENESS = 5
"""A third of the weight of other programs in Linux's scheduler; 10 would be a tenth."""
GRACE_SECONDS = 30.0
"""How long a run that was asked to stop may take to save before it is ended."""
PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_", "TZ", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_", "HF_DATASETS_",
    "SSL_CERT_", "OMP_", "GOMP_", "KMP_", "MKL_", "TOKENIZERS_", "CUDA_", "NVIDIA_", "LD_LIBRARY_PATH", "PYTHON",
    "SPACE_ID", "RLHF_",
)  # fmt: skip
"""Prefixes of the environment variables that a training process on a Space inherits: no token, no secret."""
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


_ready: subprocess.Popen | None = None
_taking = threading.Lock()
_launching = threading.Lock()


def prepare() -> None:
    """Have a worker ready for the next run; it costs memory only while it waits, and ends with this program."""
    global _ready
    if limits.on_zero_gpu():  # there a worker must be born within the call that has the GPU
        return
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
        [sys.executable, "-m", "rlhf.launch.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=_environment(),
        preexec_fn=lambda: os.nice(NICENESS),
    )
    _step_back(worker.pid)
    return worker


def _environment() -> dict[str, str]:
    """The environment of a training process: everything, but on a Space neither secrets nor other machines' cores."""
    variables = dict(os.environ)
    if limits.on_space():
        variables = {name: value for name, value in variables.items() if name.startswith(PASSED_ON)}
        variables.setdefault("OMP_NUM_THREADS", str(limits.cores()))
    return {**variables, "PYTHONPATH": str(_PACKAGE_PARENT)}


def launch(kind: str, settings: Settings, questions: Sequence[str] = (), visitor: str = "") -> Run:
    """Start a run of this kind in a new directory and return at once.

    Args:
        settings: all settings but output_dir, of the class that `KINDS` names.
        questions: a person's own, kept in the directory as `questions.txt`, for a comparison to ask.
        visitor: a secret of the browser that asks, which then may stop the run (`limits.check_owner`).

    Raises:
        BadInput: the page does not allow these settings, or another run is under way.
    """
    limits.check(asdict(settings))
    with _launching:  # so that two people who press at once cannot both find the machine free
        current = active_run()
        if current is not None:
            raise BadInput(f"{current.id} is still under way; stop it or wait until it has ended.")
        if limits.on_space():
            make_room(limits.MOST_BYTES, keep=limits.trained_models(asdict(settings)))
        run = Run(new_run_path(kind))
        run.path.mkdir(parents=True)
        settings = replace(settings, output_dir=str(run.path))
        if questions:
            file = run.path / "questions.txt"
            file.write_text("\n".join(questions), encoding="utf-8")
            settings = replace(settings, prompts_file=str(file))
        write_json(run.path / "config.json", {"kind": kind, **asdict(settings)})  # the process adds its versions
        _begin(run, kind, asdict(settings), visitor)
    return run


def _begin(run: Run, kind: str, settings: dict[str, object], visitor: str) -> None:
    """Have a process work on a run whose directory is made."""
    queued = {"state": "queued", "kind": kind, "created": time.time(), "owner": limits.mark(visitor)}
    run.set_status(**queued, step=0, total_steps=0, message="Starting")
    work = json.dumps({"kind": kind, "settings": settings, "log": str(run.path / "train.log")})
    if limits.on_zero_gpu():
        run.set_status(pid=os.getpid(), message="Waiting for a GPU")
        # The call goes by the request of who pressed the button, which the context holds: it is that person's quota.
        target, arguments = copy_context().run, (_ask_for_gpu, run, work)
    else:
        worker = _take_worker()
        _hand_over(worker, run, work)
        target, arguments = _reap, (worker, run)
    threading.Thread(target=target, args=arguments, daemon=True).start()


def _hand_over(worker: subprocess.Popen, run: Run, work: str) -> None:
    """Give a worker its work, the line of JSON that `worker.py` reads."""
    run.set_status(pid=worker.pid)
    with worker.stdin as line:
        line.write(work.encode() + b"\n")


def _step_back(pid: int) -> None:
    """Where Linux schedules by session, niceness counts within a session only: the session itself has to step back."""
    autogroup = Path(f"/proc/{pid}/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(NICENESS))


def _reap(process: subprocess.Popen, run: Run) -> None:
    """Wait for a run's process, and have the next one ready."""
    _wait(process, run)
    prepare()


def _wait(process: subprocess.Popen, run: Run) -> None:
    """Wait for the child, so that it leaves no zombie, and record an end that it could not record itself."""
    try:
        process.wait(limits.longest_run())
    except subprocess.TimeoutExpired:
        _end(run)
        process.wait()
    if run.status().get("state") in ACTIVE:
        ended = f"The process ended with code {process.returncode}; the program's console may say why."
        run.finish("failed", last_words(run) or ended)


def gpu_call() -> Callable[[str, str], None]:
    """`_train_in_call` as a call that has a GPU; ZeroGPU wants to know of it before the page is served."""
    import spaces  # there on ZeroGPU, where it must be imported before torch

    return spaces.GPU(duration=limits.gpu_seconds())(_train_in_call)


def _ask_for_gpu(run: Run, work: str) -> None:
    try:
        gpu_call()(str(run.path), work)
    except Exception as error:  # whatever Hugging Face's side says: a used-up quota, no GPU free, a lost worker
        run.finish("failed", f"No GPU for this run: {getattr(error, 'message', error)}")


def _train_in_call(path: str, work: str) -> None:
    """Train a run to its end, within a call that has a GPU: in a fork of the page, whose children have it too."""
    run = Run(Path(path))
    worker = _worker()
    _hand_over(worker, run, work)
    _wait(worker, run)


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


def stop(run: Run, visitor: str = "") -> None:
    """Ask a run to save and end; end it after a grace time if it does not.

    Raises:
        BadInput: on a shared page, another visitor started it.
    """
    if run.status().get("state") in ACTIVE:
        limits.check_owner(run.status(), visitor)
        _end(run)


def _end(run: Run) -> None:
    run.request_stop()
    run.set_status(state="stopping", message="Stopping after this step")
    timer = threading.Timer(GRACE_SECONDS, _kill, args=(run,))
    timer.daemon = True
    timer.start()


def _kill(run: Run) -> None:
    waits_for_gpu = run.status().get("pid") == os.getpid()
    if run.status().get("state") in ACTIVE and _alive(run) and not waits_for_gpu:
        os.killpg(run.status()["pid"], signal.SIGKILL)
        run.finish("interrupted", "It did not stop in time and was ended.")
