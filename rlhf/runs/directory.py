"""The run directory: one layout for every kind of run, written by the training process, read by the page.

    config.json     every setting, the seed, package versions, CPUs, fingerprints of model and data; written once
    status.json     {state, step, total_steps, message, ...}, replaced atomically
    metrics.jsonl   one JSON line per logged step
    ceiling.json    the best possible score at every KL, where it was measured
    samples.jsonl   pinned prompts and their responses over training
    train.log       what the process printed, when the page started it
    rewards/        the files with reward functions of a person's own
    checkpoints/    to resume from
    uploaded/       the data that a person uploaded for it
    about.json      {name, note} that people gave it on the page
    model/          the final model, a plain Transformers folder

A demo holds its stages as run directories of their own: `reward/`, `ppo/` and `compare/`. `Run` alone knows what lies
where. Nothing is written outside the folder of all runs; the page keeps uploads and downloads there too, in `.page/`.
"""

import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil
from pydantic import ValidationError

from rlhf import rewards
from rlhf.config import ASSETS, EVERYDAY, BadInput, PPOArguments
from rlhf.kinds import KINDS
from rlhf.runs.disk import trouble
from rlhf.runs.files import (
    ABOUT,
    LINES,
    LONGEST_NAME,
    LONGEST_NOTE,
    STATUS,
    as_line,
    as_text,
    read_json,
    while_it_is_held,
    write_json,
)


ACTIVE = ("waiting", "queued", "running", "stopping")
"""States of a run that has not ended: it waits for its turn, its process starts, it trains, it saves. The others are
stopped, finished, failed, diverged and interrupted."""
EXAMPLE = ASSETS / "example"
"""The finished demo run that is shipped with the program."""
RECORD = ASSETS / "example-smollm2"
"""Another, of a model that is too large to ship: its curves, samples and scores, without weights."""
WHOLE_CHECKPOINTS = "checkpoints/checkpoint-*/MANIFEST.json"
"""Pattern of the file that a checkpoint has once it is whole."""
ANSWERED = ".answered.json"
"""File of a comparison under way: the models whose answers are all in `scores.csv`, which a killed one is spared."""
VOLUME = Path("/data")
"""Where a Space has its persistent disk, if it has one."""
DELETED = ".deleted"
"""Where runs are moved to in the folder of all runs, to be deleted."""
LOGS = ("metrics.jsonl", "samples.jsonl")
"""Files of a run that grow by lines."""
_RUN_ID = re.compile(r"^[a-z]+-\d{8}-\d{6}-[0-9a-f]{4}$")
_PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers", "numpy")


def runs_root() -> Path:
    """Folder of all runs: the environment's `RLHF_RUNS`, else `runs`, on a Space's volume or in the current folder."""
    on_volume = os.environ.get("SPACE_ID") and os.access(VOLUME, os.W_OK)
    folder = os.path.expanduser(os.environ.get("RLHF_RUNS", ""))
    return Path(folder or (VOLUME / "runs" if on_volume else "runs")).resolve()


def page_folder() -> Path:
    """Folder for the page's uploads and downloads, created if need be.

    Raises:
        BadInput: nothing can be written there.
    """
    folder = runs_root() / ".page"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # a folder that is there may still be read-only
    except OSError as error:
        raise BadInput(
            f"Nothing can be written to {runs_root()} ({error.strerror}); set RLHF_RUNS to a folder of your own."
        ) from error
    return folder


def new_run_path(kind: str) -> Path:
    """A fresh path for a run of this kind; nobody chooses its id."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return runs_root() / f"{kind}-{stamp}-{secrets.token_hex(2)}"


def _printable(text: str) -> str:
    """A text on one line, without characters that cannot be seen: some turn all that follows around."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


_unwritten: dict[Path, dict] = {}
"""Last statuses of runs, as this process knows them, that could not be written."""


def _since_boot(process: psutil.Process) -> float:
    """When a process began, in seconds from the computer's start, which no change of the clock moves."""
    return process.create_time() - psutil.boot_time()


class Run:
    """A run directory. The training process writes it, everybody else only reads it (and may ask it to stop)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path | None, kind: str, config: dict, kept: dict[str, int] | None = None) -> "Run":
        """Make the directory of a new run, or take over the one that the page has queued for this process.

        Args:
            path: the directory; None for a new one under `runs_root`.
            kind: a key of `KINDS`.
            config: the settings.
            kept: also take over an earlier run of this kind; of its logs so many bytes are kept (`log_sizes`).

        Raises:
            BadInput: something else is already there.
        """
        run = cls(path or new_run_path(kind))
        try:
            queued = run.status().get("state") in ("queued", "stopping") and run.status().get("pid") == os.getpid()
            earlier = kept is not None and kind in (run.status().get("kind"), run.config().get("kind"))
            if taken := run.path.exists() and not queued and not earlier:
                # Of a run that was killed at once there may only be a file that was never finished.
                taken = not run.path.is_dir() or any(
                    kept is None or not path.name.startswith(".config.json") for path in run.path.iterdir()
                )
            run.path.mkdir(parents=True, exist_ok=True) if not taken else None
        except OSError as error:
            raise BadInput(
                f"The folder {run.path} cannot be made ({error.strerror}); give --output_dir another name.",
                field="output_dir",
            ) from error
        if taken:
            raise BadInput(
                f"{run.path} already exists; give --output_dir another name, or remove it first.", field="output_dir"
            )
        if kept is not None:
            run._cut(kept)
            if not queued:  # a run that is queued may have been asked to stop since
                (run.path / "stop").unlink(missing_ok=True)
        versions = {package: metadata.version(package) for package in _PACKAGES}
        made_with = {"versions": versions, "cpus": os.cpu_count()}
        write_json(run.path / "config.json", {"kind": kind, **config, **made_with})
        created = run.status().get("created", time.time())
        run.set_status(state="queued", kind=kind, created=created, step=0, total_steps=0, message="")
        return run

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    def config(self) -> dict:
        """What was written at creation."""
        return read_json(self.path / "config.json")

    def status(self) -> dict:
        """The last written status; empty when this is no run directory, or it holds what no run writes there."""
        try:
            written = STATUS.validate_python(read_json(self.path / "status.json"))
        except ValidationError:
            return {}
        last = _unwritten.get(self.path, {})
        return last if last and written.get("created") in (None, last.get("created")) else written

    def set_status(self, **changes: object) -> None:
        """Change entries of the status and stamp it; with a process id goes the time at which that process began."""
        if changes.get("pid"):
            changes["began"] = _since_boot(psutil.Process(changes["pid"]))
        write_json(self.path / "status.json", {**self.status(), **changes, "updated": time.time()})

    def process(self) -> psutil.Process | None:
        """The process that works on it; None once it is gone, also where another one has got its id since."""
        status = self.status()
        if not status.get("pid"):
            return None
        try:
            process = psutil.Process(status["pid"])
            ours = abs(_since_boot(process) - status["began"]) < 2  # Windows counts by whole seconds
            # A child of this process that has ended is waited for by whoever started it, who knows how it ended.
            ended = process.status() == psutil.STATUS_ZOMBIE and process.ppid() != os.getpid()
        except (KeyError, psutil.Error):
            return None
        return process if ours and not ended else None

    def start(self, total_steps: int, message: str = "", step: int = 0) -> None:
        """Mark the run as running in this process, from this step on."""
        steps = {"step": step, "first_step": step, "total_steps": total_steps}
        self.set_status(state="running", **steps, message=message, started=time.time(), pid=os.getpid())

    def progress(self, step: int, total_steps: int, message: str = "") -> None:
        """Stamp the step; the time left is read off the pace so far."""
        status = self.status()
        elapsed, done = time.time() - status.get("started", time.time()), step - status.get("first_step", 0)
        left = elapsed / done * (total_steps - step) if done else None
        state = "stopping" if self.stop_requested() else "running"
        self.set_status(state=state, step=step, total_steps=total_steps, message=message, seconds_left=left)

    def finish(self, state: str, message: str = "") -> None:
        """The last status: finished, stopped, failed or diverged.

        A full disk still takes what fits into the blocks of the old one. Where not even that can be written, this
        process at least remembers it, so that its page does not call the run running for ever.
        """
        last = {"state": state, "message": message, "seconds_left": 0, "ended": time.time()}
        try:
            self.set_status(**last)
        except OSError as error:
            last = {**self.status(), **last}
            try:
                with (self.path / "status.json").open("r+", encoding="utf-8") as file:
                    file.write(as_text(last))
                    file.truncate()
            except OSError:
                why, _ = trouble(error) or ("Nothing can be written to its folder", "")
                _unwritten[self.path] = last | {"message": message if why in message else f"{why}. {message}"}

    def log(self, metrics: dict) -> None:
        """Append one line of metrics; numbers that are not finite become null."""
        self._append("metrics.jsonl", {**metrics, "time": time.time()})

    def log_samples(self, step: int, samples: list[dict]) -> None:
        """Append the pinned prompts' responses at this step."""
        for sample in samples:
            self._append("samples.jsonl", {"step": step, **sample})

    def _append(self, name: str, line: dict) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(as_line(line))

    def log_sizes(self) -> dict[str, int]:
        """Bytes of the logs, which are now on the disk."""
        sizes = {}
        for path in filter(Path.exists, map(self.path.joinpath, LOGS)):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
                sizes[path.name] = file.seek(0, os.SEEK_END)
        return sizes

    def _cut(self, sizes: dict[str, int]) -> None:
        """Cut the logs back to these sizes, those without one to nothing; files that were never finished go."""
        for path in self.path.glob(".*.json.*"):
            path.unlink()
        for path in filter(Path.exists, map(self.path.joinpath, LOGS)):
            os.truncate(path, min(sizes.get(path.name, 0), path.stat().st_size))

    def tail(self, name: str, offset: int = 0) -> tuple[list[dict], int]:
        """Lines of `metrics.jsonl` or `samples.jsonl` from a byte offset on, and the offset to go on from.

        A last line that is still being written is left for the next call; what no run writes there is passed over.
        """
        path = self.path / name
        if not path.is_file():
            return [], 0
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        whole, rows = data[: data.rfind(b"\n") + 1], []
        for line in whole.splitlines():
            with suppress(ValidationError):
                rows.append(LINES[name].validate_json(line))
        return rows, offset + len(whole)

    def metrics(self) -> list[dict]:
        """All logged lines."""
        return self.tail("metrics.jsonl")[0]

    def samples(self) -> list[dict]:
        """All responses to the pinned prompts."""
        return self.tail("samples.jsonl")[0]

    def about(self) -> dict[str, str]:
        """The "name" and "note" that people gave it; empty if they gave none, or it cannot be read."""
        try:
            return ABOUT.validate_python(read_json(self.path / "about.json"))
        except ValidationError:
            return {}

    def annotate(self, name: str, note: str) -> None:
        """Give it a name and a note; its directory keeps its own name, so that links hold.

        Raises:
            BadInput: one of them is too long, or no text.
        """
        if not isinstance(name, str) or not isinstance(note, str):
            raise BadInput("The name and the note of a run are texts.")
        name, note = _printable(name), "\n".join(map(_printable, note.strip().splitlines()))
        for what, text, most in (("name", name, LONGEST_NAME), ("note", note, LONGEST_NOTE)):
            if len(text) > most:
                raise BadInput(f"A {what} has at most {most} characters, and this one {len(text):,}; shorten it.")
        write_json(self.path / "about.json", {"name": name, "note": note})

    def title(self) -> str:
        """What people call it, its kind, and when it was made, in a few words."""
        status, name = self.status(), self.about().get("name")
        kind, made = KINDS.get(status.get("kind")), time.localtime(status.get("created", 0))
        called = f"{name} · " if name else ""
        return f"{called}{kind.label if kind else 'Run'} · {time.strftime('%d %b %H:%M', made)}"

    def seconds_left(self) -> float | None:
        """Seconds left in the stage under way, if that can be told."""
        left = [stage.status().get("seconds_left") for stage in (self, *self.stages().values())]
        return next(filter(None, left), None)

    def saved(self) -> str:
        """What there is of a run that was stopped or ended, in a sentence."""
        parts = []
        for kind, stage in self.trainings().items():
            role, status = KINDS[kind].trains, stage.status()
            if self.model(role):
                step, total = status.get("step", 0), status.get("total_steps", 0)
                at = f" as of step {step:,} of {total:,}" if step < total else ""
                parts.append(f"the {'reward model' if role == 'reward' else f'{kind.upper()} model'}{at}")
        if parts:
            return f"Saved: {' and '.join(parts)}."
        whole = (file for stage in self.trainings().values() for file in stage.path.glob(WHOLE_CHECKPOINTS))
        steps = [int(file.parent.name.split("-")[1]) for file in whole]
        if steps:
            return f"No model was saved; the curves and the checkpoint of step {max(steps):,} are kept."
        if any(self.path.rglob(ANSWERED)):
            return "The answers of the models that were done are kept."
        logged = any((stage.path / "metrics.jsonl").exists() for stage in self.trainings().values())
        return "No model was saved; the curves are kept." if logged else "There was nothing to save yet."

    def can_go_on(self) -> bool:
        """Whether there is something in it to go on from: a checkpoint, a stage that is done, or answers."""
        return any(any(self.path.rglob(pattern)) for pattern in (WHOLE_CHECKPOINTS, "model/config.json", ANSWERED))

    def discard(self) -> None:
        """Move its directory in one step to where `clear_deleted` deletes it: a kill leaves it whole or gone.

        Raises:
            BadInput: it cannot be moved.
        """
        aside = runs_root() / DELETED / secrets.token_hex(8)
        try:
            aside.parent.mkdir(exist_ok=True)
            while_it_is_held(lambda: self.path.rename(aside))
        except OSError as error:
            raise BadInput(f"{self.id} was not deleted, as it cannot be moved ({error.strerror}).") from error

    def request_stop(self) -> None:
        """Ask the process to save and end after the step it is in."""
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        """True once somebody has asked this run, or a run that it is a stage of, to stop."""
        parent = self.parent()
        return (self.path / "stop").exists() or (parent is not None and parent.stop_requested())

    # What lies inside

    def parent(self) -> "Run | None":
        """The run that this one is a stage of, if any."""
        folder = self.path.resolve().parent
        return Run(folder) if (folder / "status.json").exists() else None

    def stages(self) -> dict[str, "Run"]:
        """The stages of this run by their kind, in order; a run without stages inside is its own only one.

        A demo that was given a reward model or reward functions trains no reward model.
        """
        config = self.config()
        kind = str(config.get("kind"))
        if kind not in KINDS:
            return {}
        judged = config.get("reward_model_path") or config.get("reward_funcs")
        inside = [stage for stage in KINDS[kind].stages if stage != "reward" or not judged]
        return {stage: type(self)(self.path / stage) for stage in inside} or {kind: self}

    def trainings(self) -> dict[str, "Run"]:
        """The stages that train a model, and so log curves."""
        return {kind: stage for kind, stage in self.stages().items() if KINDS[kind].trains}

    def policy_kind(self) -> str | None:
        """What trains its policy, "ppo" or "dpo"; None if nothing does."""
        return next((kind for kind in self.trainings() if KINDS[kind].trains == "policy"), None)

    def method(self) -> str | None:
        """How its policy learns, a key of `METHODS`: an advantage estimator other than the usual one has its name."""
        kind, usual = self.policy_kind(), PPOArguments.advantage_estimator
        estimator = self.policy_settings().get("advantage_estimator", usual)
        return estimator if kind == "ppo" and estimator != usual else kind

    def model(self, role: str) -> Path | None:
        """Folder of its finished "reward" model or "policy", if there is one."""
        for kind, stage in self.trainings().items():
            if KINDS[kind].trains == role and (stage.path / "model" / "config.json").exists():
                return stage.path / "model"
        return None

    def policy_settings(self) -> dict:
        """The settings of the stage that trains its policy; before that has begun, the run's own."""
        stage = self.stages().get(self.policy_kind(), self)
        return {**self.config(), **stage.config()}

    def base_model(self) -> str:
        """The model that its policy starts from, as the settings name it."""
        return str(self.policy_settings().get("model_name_or_path") or EVERYDAY)

    def reward_model_path(self) -> str | None:
        """The reward model of this run: the run that trained it if one is inside, else what its settings name."""
        if self.model("reward"):
            return str(self.stages()["reward"].path)
        return self.policy_settings().get("reward_model_path")

    def reward_funcs(self) -> list[str]:
        """The reward functions that its settings name, those of a file in the copy that it keeps."""
        stage = self.stages().get(self.policy_kind(), self)
        return rewards.kept(self.policy_settings().get("reward_funcs"), stage.path / "rewards")

    def rewards(self) -> list[tuple[str, float]]:
        """What its policy learns from, by name and with weights, in the order in which PPO logs them."""
        read = [rewards.RewardName.read(name) for name in self.policy_settings().get("reward_funcs") or ()]
        model = [("Reward model", 1.0)] if self.reward_model_path() else []
        return model + [(reward.title, reward.weight) for reward in read]

    def comparison(self) -> Path | None:
        """Folder with `scores.csv` and `summary.json` of its finished comparison, if there is one."""
        for folder in (self.path, self.path / "compare"):
            if (folder / "scores.csv").exists() and (folder / "summary.json").exists():
                return folder
        return None

    def summary(self) -> dict:
        """What it measured in the end; empty before."""
        return read_json((self.comparison() or self.path) / "summary.json")

    def ceiling(self) -> dict:
        """The best possible scores that it or one of its stages measured, or the run that holds it; empty if none."""
        for run in (self, *(stage for stage in self.stages().values() if stage.path != self.path)):
            if content := read_json(run.path / "ceiling.json"):
                return content
        parent = self.parent()
        return parent.ceiling() if parent is not None else {}

    def sweep(self) -> dict:
        """The points of a KL sweep, its own or that in its folder `sweep/`; empty if there is none."""
        return read_json(self.path / "sweep.json") or read_json(self.path / "sweep" / "sweep.json")


class Snapshot(Run):
    """A run as it is at one moment: its status and settings are read once, and so are those of its stages."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.config, self.status, self.stages = cache(self.config), cache(self.status), cache(self.stages)


class WatchedRun(Run):
    """A run as the ranks see it that do not write: the first rank writes for all."""

    def set_status(self, **changes: object) -> None:
        """Left to the first rank."""

    def _append(self, name: str, line: dict) -> None:
        """Left to the first rank."""


def catch_signals(run: Run, *, second_ends: bool = True) -> None:
    """Ctrl-C or a termination signal asks the run to stop, as the page's Stop does; a second one ends it at once.

    A launcher sends each signal more than once and kills what does not stop; there `second_ends` must be False.
    """

    def stop(signum: int, frame: object) -> None:
        if second_ends and run.stop_requested():
            raise KeyboardInterrupt
        run.request_stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def find_run(run_id: str) -> Run:
    """The run with this id under `runs_root`, or a shipped one.

    Raises:
        BadInput: there is none.
    """
    for shipped in (EXAMPLE, RECORD):
        if run_id == shipped.name:
            return Run(shipped)
    root = runs_root()
    # Compared with what is there, as a name may lead elsewhere.
    if not root.is_dir() or run_id not in os.listdir(root) or not _is_run(root / run_id):
        raise BadInput("There is no such run; choose one from the list.")
    return Run(root / run_id)


def list_runs() -> Iterator[Run]:
    """All runs under `runs_root`, newest first."""
    root = runs_root()
    if root.is_dir():
        yield from sorted(map(Run, filter(_is_run, root.iterdir())), key=_made, reverse=True)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run; one that was named by this program may have just been made."""
    named = folder.name.isprintable()  # a name that is no text cannot be sent to a browser
    return named and folder.is_dir() and (has_own_id(folder.name) or (folder / "status.json").exists())


def has_own_id(name: str) -> bool:
    """Whether this program chose the name of a run, by `new_run_path`, and not a person."""
    return bool(_RUN_ID.match(name))


def _made(run: Run) -> str:
    """When a run was made, to the second: as its name says, else its status."""
    if has_own_id(run.id):
        return run.id.split("-", 1)[1]
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(run.status().get("created", 0)))


def clear_deleted() -> None:
    """Delete what was discarded; of a link to a run elsewhere only the link."""
    for left in (runs_root() / DELETED).glob("*"):
        left.unlink() if left.is_symlink() else shutil.rmtree(left, ignore_errors=True)


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_room(most: int, keep: Sequence[Path] = ()) -> None:
    """Delete the models of the oldest ended runs until all runs together take up at most so many bytes.

    Curves, samples and scores are kept, and so is a run that holds one of the folders `keep`, about to be used. What
    else lies in the folder of all runs, such as the page's uploads, does not count: it costs nobody a model.
    """
    used = sum(size(run.path) for run in list_runs())
    for run in reversed(list(list_runs())):
        if used <= most:
            return
        if run.status().get("state") in ACTIVE or any(folder.is_relative_to(run.path) for folder in keep):
            continue
        for folder in [*run.path.rglob("model"), *run.path.rglob("checkpoints")]:
            used -= size(folder)
            shutil.rmtree(folder, ignore_errors=True)  # a model may lie within checkpoints
