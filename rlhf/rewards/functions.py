"""From the names of reward functions, as the command line and the page write them, to functions with weights."""

import hashlib
import importlib.util
import math
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rlhf.config import BadInput
from rlhf.rewards.builtin import BUILT_IN


FORMS = "length:20, keyword:please, regex:PATTERN, sentiment or FILE.py:NAME"


@dataclass(frozen=True)
class RewardName:
    """`NAME`, `NAME:ARGUMENT` or `FILE.py:NAME`, with `@WEIGHT` unless that is 1, taken apart."""

    title: str
    """What its curve and its column are called."""
    weight: float
    file: str = ""
    """Empty for a built-in one."""

    @classmethod
    def read(cls, text: str) -> "RewardName":
        """Take a name apart.

        Raises:
            BadInput: its weight is no number, or a file has no function.
        """
        whole, at, weight = text.rpartition("@") if "@" in text else (text, "", "1")
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadInput(
                f"{text}: what follows the last @ is the weight, and {weight or 'nothing'} is no number; if the @ is "
                f"part of the name, write {text}@1.",
                field="reward_funcs",
            )
        file, _, name = whole.rpartition(":")
        if file.endswith(".py") and name:
            return cls(name, number, file)
        if whole.removesuffix(":").endswith(".py"):
            raise BadInput(f"{text} names no function; write {whole.removesuffix(':')}:NAME.", field="reward_funcs")
        return cls(whole, number)

    @property
    def file_name(self) -> str:
        """Of its file, without the folder."""
        return Path(self.file).name

    def load(self) -> Callable:
        """The function.

        Raises:
            BadInput: there is none, or it cannot be made.
        """
        if self.file:
            return _of_file(Path(self.file).expanduser(), self.title)
        name, _, argument = self.title.partition(":")
        if name not in BUILT_IN:
            near = get_close_matches(name, BUILT_IN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {FORMS}."
            raise BadInput(f"There is no built-in reward {name!r}; {hint}", field="reward_funcs")
        function = BUILT_IN[name](argument)
        function.__name__ = self.title
        return function


def _of_file(path: Path, name: str) -> Callable:
    """A function of a Python file, which is run anew."""
    if not path.is_file():
        raise BadInput(f"There is no file {path}; check the path in reward_funcs.", field="reward_funcs")
    # Under a name that no package has. Dataclasses look their module up in sys.modules.
    spec = importlib.util.spec_from_file_location(f"rlhf_rewards_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        # As `python FILE.py` does, which neither reads nor leaves a compiled copy.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102
    except (Exception, SystemExit) as error:
        raise BadInput(f"{path} cannot be imported: {blamed(error, str(path))}.", field="reward_funcs") from error
    function = getattr(module, name, None)
    if callable(function):
        return function
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == spec.name]
    near = get_close_matches(name, own, n=1) or own
    hint = f"did you mean {near[0]}?" if near else "it defines none."
    raise BadInput(f"{path} has no function {name}; {hint}", field="reward_funcs")


def blamed(error: BaseException, file: str) -> str:
    """Where in this file an error came up, and what it says: judge.py, line 9: ValueError: no number."""
    said = " ".join(str(error).split())[:300].rstrip(".")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        said, lines = error.msg, [error.lineno]
    where = f"{Path(file).name}, line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}" + (f": {said}" if said else "")


def load_functions(names: Sequence[str] | None) -> list[tuple[Callable, float]]:
    """The functions that a setting names, each with its weight.

    Raises:
        BadInput: one cannot be loaded, or two have one name.
    """
    read = [RewardName.read(name) for name in names or ()]
    titles = [reward.title for reward in read]
    for title in titles:
        if titles.count(title) > 1:
            raise BadInput(f"Two rewards are called {title}; give each a name of its own.", field="reward_funcs")
    digests(names)
    return [(reward.load(), reward.weight) for reward in read]


# What a run keeps of them --------------------------------------------------------------------------------------------


def digests(names: Sequence[str] | None) -> dict[str, str]:
    """The files that a setting names, by their names without a folder, each with its SHA-256.

    Raises:
        BadInput: two files have one name.
    """
    files = {Path(reward.file).expanduser() for reward in map(RewardName.read, names or ()) if reward.file}
    found: dict[str, str] = {}
    for file in sorted(files):
        if file.name in found:
            raise BadInput(f"Two files are called {file.name}; give one of them another name.", field="reward_funcs")
        found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    return found


def keep(names: Sequence[str] | None, folder: Path) -> None:
    """Copy the files that a setting names into a folder of the run."""
    for reward in map(RewardName.read, names or ()):
        if reward.file:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(Path(reward.file).expanduser(), folder / Path(reward.file).name)


def kept(names: Sequence[str] | None, folder: Path) -> list[str]:
    """The names with the files that `keep` has copied into a folder, so that a run goes on meaning the same code."""
    found = []
    for name, reward in ((name, RewardName.read(name)) for name in names or ()):
        copy = folder / Path(reward.file).name
        found.append(f"{copy}:{reward.title}@{reward.weight:g}" if reward.file and copy.is_file() else name)
    return found
