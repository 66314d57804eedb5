"""Starting and stopping the training processes. The page calls this; nothing else starts or signals a process.

A run is a process of its own, in its own session and with its output in a file, so that closing the page or the app
loses nothing. It steps back: on two cores the page stays live beside it. One process is kept ready for the next run.

One run has the machine at a time. The others wait in their directories, all settings written, in the order in which
they were started: the queue is nothing but these directories, and so outlives the page.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from rlhf.config import UPLOADED, BadInput, Settings
from rlhf.feedback import Store
from rlhf.kinds import KINDS
from rlhf.launch import classroom, limits
from rlhf.runs.directory import (
    ACTIVE,
    EXAMPLE,
    RECORD,
    Run,
    clear_deleted,
    list_runs,
    make_room,
    new_run_path,
    size,
    write_json,
)
from rlhf.runs.disk import told
from rlhf.words import number


CHOICES = "choices"
"""Folder of a run with the choices that it was trained on."""
RESUMABLE = ("stopped", "failed", "interrupted")
"""States of a run that has ended and can be resumed."""
SAVE_SECONDS = 40
"""Seconds between the checkpoints of a training that the page has started: a kill costs about as much."""
GRACE_SECONDS = 30.0
"""A run that was asked to stop is ended once it has done nothing for so long; while it works, it is saving."""
SECONDS_BETWEEN_LOOKS = 3.0
"""At processes: a run whose process is gone is said to be so within five seconds."""
IDLE = 0.02
"""Share of a processor's time below which a process does nothing."""
PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_", "TZ", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_", "HF_DATASETS_",
    "SSL_CERT_", "OMP_", "GOMP_", "KMP_", "MKL_", "TOKENIZERS_", "CUDA_", "NVIDIA_", "LD_LIBRARY_PATH", "PYTHON",
    "SPACE_ID", "RLHF_",
)  # fmt: skip
"""Prefixes of the environment variables that a training process on a Space inherits: no token, no secret."""
TWICE_SECONDS = 5.0
"""The same run started again within so many seconds is a double click."""
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
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf.launch.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows' way to keep Ctrl-C from it
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """The environment of a training process: everything, but on a Space neither secrets nor other machines' cores."""
    variables = {"RLHF_SAVE_SECONDS": str(SAVE_SECONDS), **os.environ}
    if limits.on_space():
        variables = {name: value for name, value in variables.items() if name.startswith(PASSED_ON)}
        variables.setdefault("OMP_NUM_THREADS", str(limits.cores()))
    return {**variables, "PYTHONPATH": str(_PACKAGE_PARENT)}


class UnderWay(BadInput):
    """Another run has the machine; `run` is that run."""

    def __init__(self, run: Run, visitor: str) -> None:
        self.run = run
        left = run.seconds_left()
        ends = "until it has ended" if left is None else f"about {_duration(left)} until this stage has ended"
        if limits.may_stop(run.status(), visitor):
            super().__init__(f"{run.title()} is still under way; stop it, or wait {ends}.")
        else:
            super().__init__(f"{run.title()}, which somebody else started, is still under way; wait {ends}.")


def _duration(seconds: float) -> str:
    """A time to wait, in words."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"


@told("No run was started.")
def launch(
    kind: str,
    settings: Settings,
    questions: Sequence[str] = (),
    visitor: str = "",
    upload: Path | None = None,
    choices: Store | None = None,
) -> Run:
    """Start a run of this kind in a new directory and return at once; it waits for its turn if another is under way.

    The same run started twice in a moment, as by a double click, is one run.

    Args:
        settings: all settings but output_dir, of the class that `KINDS` names.
        questions: a person's own, kept in the directory as `questions.txt`, for a comparison to ask.
        visitor: a secret of the browser that asks, which then may stop the run (`limits.check_owner`).
        upload: data to train on, of which the directory keeps a copy.
        choices: people's, to train on, of which the directory keeps a copy without names.

    Raises:
        BadInput: the page does not allow these settings, the teacher has locked it, or too many runs are waiting.
        UnderWay: another run has the GPU that is asked for within a call, where nothing can wait.
    """
    classroom.check("runs")
    limits.check(asdict(settings))
    if upload:
        limits.check_upload(upload)
    asked = _fingerprint(kind, asdict(settings), list(questions), str(upload), visitor)
    with _launching:  # so that two people who press at once cannot both find the machine free
        ahead = _ahead()
        for last in ahead[-1:]:
            if last.status().get("asked") == asked and time.time() - last.status()["created"] < TWICE_SECONDS:
                return last
        _check_place(ahead, visitor)
        if limits.on_space():
            make_room(limits.MOST_BYTES, keep=limits.trained_models(asdict(settings)))
        run = Run(new_run_path(kind))
        try:
            run.path.mkdir(parents=True)
            settings = replace(settings, output_dir=str(run.path))
            if questions:
                file = run.path / "questions.txt"
                file.write_text("\n".join(questions), encoding="utf-8")
                settings = replace(settings, prompts_file=str(file))
            if upload:
                (run.path / UPLOADED).mkdir()
                settings = replace(settings, dataset_name=str(shutil.copy(upload, run.path / UPLOADED)))
            if choices:
                choices.copy_to(run.path / CHOICES, chat=not limits.shared())
                settings = replace(settings, feedback=str(run.path / CHOICES))
            write_json(run.path / "config.json", {"kind": kind, **asdict(settings)})  # the process adds its versions
            asked_for = {"kind": kind, "created": time.time(), "owner": limits.mark(visitor), "asked": asked}
            asked_for |= {"by_teacher": True} if classroom.is_teacher() else {}
            _queue(run, **asked_for)
        except OSError:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        _begin_next()
    return run


@told()
def resume(run: Run, visitor: str = "") -> None:
    """Go on with a run that was stopped, failed or was interrupted, in its directory, when it is its turn.

    Raises:
        BadInput: it has not ended so, on a shared page another visitor started it, the teacher has locked it, or too
            many runs are waiting.
        UnderWay: another run has the GPU that is asked for within a call.
    """
    classroom.check("runs")
    limits.check_owner(run.status(), visitor)
    with _launching:
        if not resumable(run):
            raise BadInput("Only a run that was stopped, failed or was interrupted can be resumed.")
        _check_place(_ahead(), visitor)
        if limits.on_space():
            make_room(limits.MOST_BYTES, keep=[run.path, *limits.trained_models(run.config())])
        (run.path / "stop").unlink(missing_ok=True)
        _queue(run)
        _begin_next()


def resumable(run: Run) -> bool:
    """Whether a run has ended before it was finished, and can be resumed."""
    return run.status().get("state") in RESUMABLE and run.config().get("kind") in KINDS


def _fingerprint(*asked: object) -> str:
    """Stands for what was asked for, and by whom."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _ahead() -> list[Run]:
    """The run that has the machine, if any, and those that wait for it."""
    current = active_run()
    return [current, *waiting()] if current else waiting()


def _check_place(ahead: list[Run], visitor: str) -> None:
    """Check that a run of this visitor may wait behind these.

    Raises:
        BadInput: on a shared page, too many are waiting.
        UnderWay: nothing can wait here.
    """
    if ahead and limits.on_zero_gpu():
        raise UnderWay(ahead[0], visitor)
    limits.check_queue([run.status() for run in ahead if run.status().get("state") == "waiting"], visitor)


def _queue(run: Run, **status: object) -> None:
    run.set_status(
        state="waiting", **status, queued=time.time(), step=0, total_steps=0, message="Waiting for its turn", pid=None
    )


def waiting() -> list[Run]:
    """The runs that wait for their turn, the next one first."""
    runs = (run for run in list_runs() if run.status().get("state") == "waiting")
    return sorted(runs, key=lambda run: run.status().get("queued", 0.0))


def move(run: Run, places: int) -> None:
    """Move a run by so many places in the queue, back if positive; at the ends it stays.

    Raises:
        BadInput: it does not wait any more.
    """
    with _launching:  # nothing begins or leaves meanwhile
        queue = waiting()
        times, ids = [each.status()["queued"] for each in queue], [each.id for each in queue]
        if run.id not in ids:
            raise BadInput("This run does not wait any more.")
        at = ids.index(run.id)
        queue.insert(max(0, at + places), queue.pop(at))
        for each, queued in zip(queue, times, strict=True):
            if each.status()["queued"] != queued:
                each.set_status(queued=queued)


def remove(run: Run) -> bool:
    """Delete a run that has ended, with all that is in it; False, and nothing is done, while it is under way."""
    with _launching:  # it may be about to be resumed
        if run.status().get("state") in ACTIVE:
            return False
        run.discard()
    clear_deleted()
    return True


def advance() -> None:
    """Begin the run that has waited longest, if the machine is free."""
    with _launching:
        _begin_next()


def _begin_next() -> None:
    if active_run() is None:
        for run in waiting()[:1]:
            _begin(run)


def _begin(run: Run) -> None:
    """Have a process work on a run by the settings in its directory; one that has worked before goes on."""
    run.set_status(state="queued", message="Starting")
    config, kind = run.config(), run.config()["kind"]
    settings = {name: config[name] for name in KINDS[kind].settings.__dataclass_fields__ if name in config}
    settings["output_dir"] = str(run.path)  # the folder of runs may have been moved
    if "started" in run.status():
        settings["resume_from_checkpoint"] = True
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


def _reap(process: subprocess.Popen, run: Run) -> None:
    """Wait for a run's process, then begin the next run, and have a process ready for the one after it."""
    _wait(process, run)
    advance()
    prepare()


def _wait(process: subprocess.Popen, run: Run) -> None:
    """Wait for the child, so that it leaves no zombie, and record an end that it could not record itself."""
    try:
        process.wait(limits.longest_run())
    except subprocess.TimeoutExpired:
        _end(run)
        process.wait()
    status = run.status()
    # A run may have been resumed while this process was still ending: then it is another one's.
    if status.get("state") not in ACTIVE or status.get("pid") != process.pid:
        return
    if run.stop_requested():
        run.finish("stopped", f"Stopped. {_kept(run)}")
    else:
        run.finish("failed", why_it_ended(process.returncode, run))


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
    if run.stop_requested():  # while it waited for the GPU
        return run.finish("stopped", f"Stopped. {run.saved()}")
    worker = _worker()
    _hand_over(worker, run, work)
    _wait(worker, run)


def _kept(run: Run) -> str:
    """What there is of a run whose process is gone, and whether it can be resumed."""
    return f"{run.saved()} Resume goes on from there." if run.can_go_on() else run.saved()


_PROGRESS = re.compile(r"\d+%\||\d(it|steps?|updates?|responses?)?/s\b|\| \d+/\d+ \[")
"""What a progress bar looks like, which is the last thing that many processes print."""


def why_it_ended(code: int, run: Run) -> str:
    """Why a run's process ended that could not say so in the run's status: by its exit code, and its last words."""
    if code < 0 or code in (137, 0xC000012D, 0xC0000017):  # a signal; killed in a container; Windows out of memory
        signal = f"signal {-code if code < 0 else 9}" if code < 256 else f"code {code:#x}"
        return (
            f"The process was ended by the system ({signal}), most often for lack of memory: lower the batch size or "
            f"the response length, or take a smaller model. {_kept(run)}"
        )
    log = run.path / "train.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line.strip() for line in lines if line.strip() and not _PROGRESS.search(line)]
    if said:
        return said[-1].removeprefix("error: ")[:300]
    return f"The process ended with code {code}; the program's console may say why."


def active_run() -> Run | None:
    """The run that has the machine, if any; every run whose process is gone is marked interrupted."""
    found = None
    for run in list_runs():
        status = run.status()
        if status.get("state") not in ACTIVE or status["state"] == "waiting":
            continue
        if run.process():
            found = found or run
        elif not 0 <= time.time() - status.get("updated", 0) < 2:  # one that is being started has no process yet
            why = "Its process is gone: it was ended from outside, or the computer was restarted."
            run.finish("interrupted", f"{why} {_kept(run)}")
    return found


def watch() -> None:
    """Find runs whose process has ended without a word, and begin the next, also while nobody looks at the page."""
    clear_deleted()
    while True:
        with suppress(OSError):  # a full disk, for one
            advance()
        time.sleep(SECONDS_BETWEEN_LOOKS)


@told()
def stop(run: Run, visitor: str = "") -> None:
    """Ask a run to save and end; one that has not begun yet ends at once, one that is stuck after a grace time.

    A run that waits for its turn leaves the queue.

    Raises:
        BadInput: on a shared page, another visitor started it.
    """
    if run.status().get("state") in ACTIVE:
        limits.check_owner(run.status(), visitor)
        with _launching:  # it may be about to begin
            waits = run.status().get("state") == "waiting"
            if waits:
                run.finish("stopped", "It left the queue before it began.")
        if not waits:
            _end(run)


def _end(run: Run) -> None:
    begun = run.status().get("state") != "queued"
    run.request_stop()
    run.set_status(state="stopping", message="Stopping after this step" if begun else "Stopping")
    if run.status().get("pid") == os.getpid():  # it waits for a GPU, and ends when it is its turn
        return
    if not begun and run.process():
        _kill(run)
        run.finish("stopped", f"Stopped. {run.saved()}")
    else:
        threading.Thread(target=_end_if_stuck, args=(run,), daemon=True).start()


def _end_if_stuck(run: Run) -> None:
    """Wait while a run saves and measures, however long that takes; end it once it does nothing any more."""
    while run.process():
        spent, written = _work(run)
        time.sleep(GRACE_SECONDS)
        if run.status().get("state") not in ACTIVE or not run.stop_requested() or not run.process():
            return
        now_spent, now_written = _work(run)
        if now_spent - spent < IDLE * GRACE_SECONDS and now_written == written:
            _kill(run)
            run.finish("interrupted", f"It did nothing for {GRACE_SECONDS:.0f} s and was ended. {_kept(run)}")


def _work(run: Run) -> tuple[float, float]:
    """Seconds of processor time that a run's processes have spent, and when one of its files was last changed."""
    times = [process.cpu_times() for process in _processes(run)]
    changed = max((path.stat().st_mtime for path in run.path.rglob("*") if path.is_file()), default=0.0)
    return sum(spent.user + spent.system for spent in times), changed


def _processes(run: Run) -> list[psutil.Process]:
    """A run's process and all that it has started; none once it has ended."""
    with suppress(psutil.NoSuchProcess):
        if process := run.process():
            return [process, *process.children(recursive=True)]
    return []


def _kill(run: Run) -> None:
    """End a run's processes, and wait until they have ended."""
    processes = _processes(run)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


# What is done to a run that has ended --------------------------------------------------------------------------------


@told()
def annotate(run: Run, name: str, note: str, visitor: str = "") -> None:
    """Give a run a name and a note, see `Run.annotate`.

    Raises:
        BadInput: they are too long, or no texts, the run is shipped, or on a shared page another visitor started it.
    """
    _check_own(run, visitor)
    run.annotate(name, note)


def what_is_lost(run: Run, visitor: str = "") -> str:
    """What there will be no more once a run is deleted, in a sentence to be asked before.

    Raises:
        BadInput: it cannot be deleted: it is shipped, has not ended, another run needs it, or on a shared page another
            visitor started it.
    """
    _check_own(run, visitor)
    state, title = run.status().get("state"), run.title()
    if state == "waiting":
        raise BadInput(f"{title} waits for its turn; Stop takes it out of the queue.")
    if state in ACTIVE:
        raise BadInput(f"{title} is under way; stop it first.")
    if needing := [other.title() for other in list_runs() if _needs(other, run)]:
        more = f" and {len(needing) - 1} more" if needing[1:] else ""
        raise BadInput(f"{needing[0]}{more} cannot do without a model of this run; delete that first.")
    return f"{title} with its models, curves and answers ({run.id}, {number(size(run.path) / 1e6, 1)} MB)"


@told()
def delete(run: Run, visitor: str = "") -> None:
    """Delete a run for good.

    Raises:
        BadInput: as `what_is_lost`, or it cannot be moved.
    """
    with _launching:  # it may be about to be resumed
        what_is_lost(run, visitor)
        run.discard()
    clear_deleted()


def _check_own(run: Run, visitor: str) -> None:
    if run.path in (EXAMPLE, RECORD):
        raise BadInput("The example runs stay as they are.")
    limits.check_owner(run.status(), visitor)


def _needs(other: Run, run: Run) -> bool:
    """Whether another run's settings name something of this one; a comparison that is finished needs it no more."""
    settings = other.config()
    if other.path == run.path or (settings.get("kind"), other.status().get("state")) == ("compare", "finished"):
        return False
    entries = [entry for value in settings.values() for entry in (value if isinstance(value, list) else [value])]
    # A comparison names its models as NAME=PATH.
    named = (entry.rpartition("=")[2] for entry in entries if isinstance(entry, str) and entry.isprintable())
    folder = run.path.resolve()
    return any(Path(path).resolve().is_relative_to(folder) for path in named)
