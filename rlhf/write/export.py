"""How a run's work leaves: as the command or the Python that repeats it, as a zip, as a model on the Hub."""

import dataclasses
import shlex
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from rlhf.config import (
    BadInput,
    CompareArguments,
    DemoArguments,
    PPOArguments,
    PushArguments,
    RewardArguments,
    SweepArguments,
    default_of,
)
from rlhf.runs.directory import Run
from rlhf.write.card import CARD, model_card


CONFIGS = {
    "demo": DemoArguments,
    "reward": RewardArguments,
    "ppo": PPOArguments,
    "compare": CompareArguments,
    "sweep": SweepArguments,
}
"""Kinds of runs that a command makes, and its settings."""
LEFT_OUT = "checkpoints"
"""Folder that a zip leaves out: what a run needs to go on, several times the size of its model."""
_STORED = (".safetensors", ".gz", ".zip")
"""Files that do not get smaller."""
_PUSHED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
"""Files that a model on the Hub consists of; nothing that has to be unpickled is among them."""


# The same run again ------------------------------------------------------------------------------------------------


def given_settings(run: Run) -> dict[str, object]:
    """A run's settings that differ from the defaults, and its seed; its directory is its own and left out."""
    config = run.config()
    given = {}
    for field in dataclasses.fields(CONFIGS[config["kind"]]):
        default = default_of(field)
        value = config.get(field.name, default)
        if field.name == "seed" or (field.name != "output_dir" and value != default):
            given[field.name] = value
    return given


def as_command(run: Run) -> str:
    """The shell command that makes this run again, in a fresh directory."""
    words = ["python", "-m", "rlhf", run.config()["kind"]]
    for name, value in given_settings(run).items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            # As one word, a value that begins with a dash is not taken for a flag.
            text = _typed(value)
            words += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return shlex.join(words)


def _typed(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_python(run: Run) -> str:
    """The Python script that makes this run again, in a fresh directory."""
    kind = run.config()["kind"]
    config = CONFIGS[kind].__name__
    given = [f"{name}={value!r}" for name, value in given_settings(run).items()]
    call = f"{kind}({config}({', '.join(given)}))"
    if len(call) > 100:
        call = "\n".join([f"{kind}(", f"    {config}(", *(f"        {entry}," for entry in given), "    )", ")"])
    return f"from rlhf.commands import {kind}\nfrom rlhf.config import {config}\n\n\n{call}\n"


# A zip -------------------------------------------------------------------------------------------------------------


def run_files(run: Run) -> Iterator[Path]:
    """The files of a run that a zip takes along: all but checkpoints and what is being written this moment."""
    for path in sorted(run.path.rglob("*")):
        inside = path.relative_to(run.path).parts
        if path.is_file() and LEFT_OUT not in inside and not path.name.startswith("."):
            yield path


def size_mb(run: Run) -> float:
    """About what a zip of this run takes, in MB (10^6 bytes): the text in it shrinks to a fifth."""
    return sum(path.stat().st_size * (1 if path.suffix in _STORED else 0.2) for path in run_files(run)) / 1e6


def write_zip(run: Run, target: Path) -> Path:
    """Write a run's files, and a card beside each model that has none, into a new zip; returns `target`.

    A run may be zipped while it is written: what is there by then goes in.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as file:
            for path in run_files(run):
                packing = zipfile.ZIP_STORED if path.suffix in _STORED else zipfile.ZIP_DEFLATED
                with suppress(FileNotFoundError):  # the run has just moved it
                    file.write(path, _name_in_zip(run, path), packing)
            for folder in model_folders(run):
                if not (folder / CARD).exists():
                    file.writestr(_name_in_zip(run, folder / CARD), model_card(folder))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _name_in_zip(run: Run, path: Path) -> str:
    return f"{run.id}/{path.relative_to(run.path).as_posix()}"


def model_folders(run: Run) -> list[Path]:
    """The folders of a run that hold a finished model."""
    configs = (path for path in run_files(run) if path.parent.name == "model" and path.name == "config.json")
    return [path.parent for path in configs if Run(path.parent.parent).trainings()]


# A model on the Hub ------------------------------------------------------------------------------------------------


def model_folder(run: Run, what: str) -> Path:
    """Where a run keeps its "policy" or its "reward" model.

    Raises:
        BadInput: it has none.
    """
    folder = run.model("ppo" if what == "policy" else "reward")
    if folder:
        return folder
    name, other = ("policy", "reward") if what == "policy" else ("reward model", "policy")
    raise BadInput(f"{run.path} holds no finished {name}; name the directory of another run, or give --what {other}.")


def pushed_files(folder: Path) -> dict[str, Path | bytes]:
    """What of a model folder goes to the Hub, by its name there; the card is written now if the folder has none."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _PUSHED}
    return {CARD: model_card(folder).encode(), **files}


def push(run: Run, args: PushArguments) -> str:
    """Push a run's model with its card to the Hub, in one commit; returns its address.

    Raises:
        BadInput: no such model, no network, or no right to write there.
    """
    folder = model_folder(run, args.what)
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in pushed_files(folder).items()
    ]
    hub = HfApi()
    try:
        address = hub.create_repo(args.repo_id, private=args.private, exist_ok=True)
        hub.create_commit(address.repo_id, operations, commit_message="Upload model")
    except (HTTPError, OSError) as error:  # the Hub's own answers are of both kinds
        raise BadInput(f"Nothing was pushed: {_reason(error)}, then push again.") from error
    return str(address)


def _reason(error: Exception) -> str:
    """Why the Hub took nothing, and what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if code == 401:
        return "the Hub does not know you; run `hf auth login` with a token that may write, or set HF_TOKEN"
    if code == 403:
        return "your token may not write there; take another name, or a token with the right to write"
    if code is None:
        return "the Hub cannot be reached; check the network"
    return f"the Hub answered {code}; read https://status.huggingface.co"
