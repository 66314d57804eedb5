"""Checkpoints that are either whole or not there: written aside, then renamed, with a manifest of all their files.

Those of PPO hold tensors as safetensors and everything else as JSON, so that nothing is pickled; those of TRL's
trainers are Transformers' own.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlhf import ranks
from rlhf.config import BadInput, PairTrainingSettings, PPOArguments
from rlhf.runs.directory import Run, size


ASIDE = ".saving"
"""Folder beside the checkpoints in which one is written."""
MANIFEST = "MANIFEST.json"
"""SHA-256 of every other file of a checkpoint."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    # Tied weights share memory, which the format refuses: each is written out on its own.
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path)


# Writing -------------------------------------------------------------------------------------------------------------


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write the checkpoint `folder` into; in the end it gets its manifest and is moved to its place.

    All ranks enter together and may write; the first one does the rest.
    """
    aside = folder.parent / ASIDE / folder.name
    if ranks.is_main_process():
        shutil.rmtree(aside.parent, ignore_errors=True)
        aside.mkdir(parents=True)
        with_room(folder.parent, lambda: _reserve(folder.parent))
    ranks.barrier()
    try:
        yield aside
        ranks.barrier()
        if ranks.is_main_process():
            manifest = {name: _sha256(aside / name) for name in sorted(_files(aside))}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            for name in (*manifest, MANIFEST):
                with (aside / name).open("rb+") as file:  # Windows flushes only what can be written
                    os.fsync(file.fileno())
            _fsync_folder(aside)
            _put_in_place(aside)
    finally:
        if ranks.is_main_process():
            shutil.rmtree(aside.parent, ignore_errors=True)
    ranks.barrier()


def with_room(parent: Path, take: Callable[[], object]) -> None:
    """Do what takes up room; where there is too little, once more without the oldest of several checkpoints.

    Raises:
        OSError: there still is too little, or there is only one checkpoint.
    """
    try:
        take()
    except OSError as error:
        oldest = folders(parent)[:-1][:1]
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not oldest:
            raise
        shutil.rmtree(oldest[0])
        take()


def _reserve(parent: Path) -> None:
    """Have the disk promise as much room as the last checkpoint takes up; it counts what others may have written."""
    if hasattr(os, "posix_fallocate"):
        for last in folders(parent)[-1:]:
            with tempfile.TemporaryFile(dir=parent) as file:
                os.posix_fallocate(file.fileno(), 0, size(last))


def _put_in_place(aside: Path) -> None:
    """Move a whole checkpoint to its place. What was there goes first: a kill in between leaves it to `recover`."""
    folder = aside.parent.parent / aside.name
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; Windows cannot be asked to."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)


def save(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
    """Write what a checkpoint holds beside the model's own files.

    Args:
        tensors: named groups of tensors, a file each.
        state: what else is needed, as JSON.
    """
    for name, group in tensors.items():
        _write(group, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder for the first rank to write into, which becomes `folder` once all is written, or is deleted."""
    unfinished = folder.with_name(f".{folder.name}")
    if not ranks.is_main_process():
        yield unfinished
        return
    try:
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)  # what was saved when the run was stopped, before it went on
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def save_value_head(head: torch.nn.Module, folder: Path) -> None:
    """Write a value head's weights as `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(head.state_dict(), folder / "model.safetensors")


def split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """An optimizer's state as tensors by name, and the rest, which JSON can hold."""
    state = optimizer.state_dict()
    tensors, rest = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, torch.Tensor) else rest)[f"{index}.{name}"] = value
    return tensors, {"entries": rest, "groups": state["param_groups"]}


def join_optimizer(tensors: dict[str, torch.Tensor], rest: dict) -> dict:
    """What `split_optimizer` took apart, as an optimizer loads it."""
    state: dict[int, dict] = {}
    for key, value in {**tensors, **rest["entries"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}


# Several of them -----------------------------------------------------------------------------------------------------


def step_of(folder: Path) -> int:
    """The N of a folder `checkpoint-N`."""
    return int(folder.name.split("-")[1])


def folders(parent: Path) -> list[Path]:
    """The folders `checkpoint-N` in order, whole or not."""
    return sorted((f for f in parent.glob("checkpoint-*") if f.name.split("-")[1].isdecimal()), key=step_of)


def rotate(parent: Path, limit: int | None) -> None:
    """Delete the oldest checkpoints until `limit` are left; None keeps all."""
    for folder in folders(parent)[: -limit if limit else 0]:
        shutil.rmtree(folder)


def newest(parent: Path) -> Path | None:
    """The newest whole checkpoint in a folder, None for none. What a killed save left is put in place or deleted."""
    if ranks.is_main_process():
        for aside in (parent / ASIDE).glob("checkpoint-*"):
            if _damage(aside) is None:
                _put_in_place(aside)
        shutil.rmtree(parent / ASIDE, ignore_errors=True)
    ranks.barrier()
    found = folders(parent)
    whole = _last_whole(found)
    if found and whole is None:
        warnings.warn(f"No checkpoint in {parent} is whole ({_damage(found[-1])}).", stacklevel=2)
    return whole


def _last_whole(candidates: Sequence[Path]) -> Path | None:
    """The last one that is whole, with a word on those that are passed over."""
    found = next((folder for folder in reversed(candidates) if _damage(folder) is None), None)
    for folder in candidates[candidates.index(found) + 1 :] if found else ():
        warnings.warn(f"The checkpoint {folder} is damaged ({_damage(folder)}) and is passed over.", stacklevel=3)
    return found


def find(args: PPOArguments | PairTrainingSettings, kind: str, model: torch.nn.Module) -> Path | None:
    """The checkpoint to go on from, by `resume_from_checkpoint`; None to begin at the beginning.

    Args:
        args: the settings.
        kind: what resumes, "ppo", "reward" or "dpo".
        model: what the checkpoint's weights must fit.

    Raises:
        BadInput: there is none where one is named, it is damaged, or it is of another model.
    """
    named, folder = args.resume_from_checkpoint, None
    if named is True:
        run = Run(args.output_dir)
        folder = newest(run.path / "checkpoints")
        # One that went on from another run's checkpoint does so again while it has none of its own.
        named = run.config().get("resume_from_checkpoint")
    if named and folder is None:
        folder = _named(named, kind)
    if folder:
        _check_fit(folder, model, args.use_peft)
    return folder


def _named(named: str, kind: str) -> Path:
    """The checkpoint that a path names: its folder, or the newest whole one of a run."""
    takes = "resume_from_checkpoint takes RUN/checkpoints/checkpoint-10, or RUN for its newest one"
    if not Path(named).is_dir():
        raise BadInput(f"There is no folder {named} to resume from; {takes}.", field="resume_from_checkpoint")
    state, of_others = ("state.json", "trainer_state.json") if kind == "ppo" else ("trainer_state.json", "state.json")
    stage = Run(named).stages().get(kind, Run(named)).path
    itself = any((Path(named) / name).is_file() for name in (state, MANIFEST))
    found = [Path(named)] if itself else [*folders(stage), *folders(stage / "checkpoints")]
    found = [folder for folder in found if not (folder / of_others).exists()]
    if not found:
        raise BadInput(
            f"{named} holds no checkpoint of {kind} to resume from; {takes}.", field="resume_from_checkpoint"
        )
    folder = _last_whole(found)
    if folder is None:
        raise _damaged(found[-1], _damage(found[-1]))
    return folder


# Reading -------------------------------------------------------------------------------------------------------------


def _damage(folder: Path) -> str | None:
    """The first file of a checkpoint that is missing, another one or too many; None if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            return MANIFEST
    except (OSError, ValueError):
        return MANIFEST
    wrong = _files(folder) ^ manifest.keys()
    return min(wrong) if wrong else next((n for n, digest in manifest.items() if _sha256(folder / n) != digest), None)


def _damaged(folder: Path, name: str) -> BadInput:
    return BadInput(
        f"The checkpoint {folder} is damaged ({name}); resume from an earlier one.", field="resume_from_checkpoint"
    )


def fits(model: torch.nn.Module, shapes: dict[str, list[int]]) -> bool:
    """Whether weights of these shapes are all of a model's, of which tied ones are saved once."""
    own = model.state_dict()
    if any(name not in own or list(own[name].shape) != shape for name, shape in shapes.items()):
        return False
    saved = {own[name].data_ptr() for name in shapes}
    return all(value.data_ptr() in saved for value in own.values())


def another_model(folder: Path) -> BadInput:
    """What is said of a checkpoint that does not fit."""
    return BadInput(
        f"The checkpoint {folder} is of another model, or trains other parts of it.", field="resume_from_checkpoint"
    )


def _check_fit(folder: Path, model: torch.nn.Module, use_peft: bool) -> None:
    if (folder / "adapter_model.safetensors").exists() != use_peft:
        raise another_model(folder)
    shapes = {}
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no dict)
    if not use_peft and not fits(model, shapes):
        raise another_model(folder)


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Read a checkpoint of PPO back after checking every file against the manifest.

    Raises:
        BadInput: there is no whole checkpoint in `folder`.
    """
    if not (folder / MANIFEST).is_file():
        raise BadInput(f"{folder} is not a checkpoint; give a folder such as RUN/checkpoints/checkpoint-10.")
    if name := _damage(folder):
        raise _damaged(folder, name)
    tensors = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    return tensors, json.loads((folder / "state.json").read_text(encoding="utf-8"))
