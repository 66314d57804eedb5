"""The logs of runs, read once for everybody who looks at them: each call reads only what was appended."""

import threading
from functools import lru_cache
from pathlib import Path

from rlhf.runs.directory import LOGS, Run


class _History:
    """The lines of one log of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.rows: list[dict] = []
        self.lost = 0
        """Lines that no run writes there."""
        self.offset, self.last = 0, b""
        """How many bytes were read, and the last of them."""

    def refresh(self) -> None:
        """Read what was appended; all of it where a run that is resumed has cut it and written other lines."""
        with self.lock:
            if not self.path.is_file() or self._bytes(self.offset - len(self.last), self.offset) != self.last:
                self._forget()
            fresh, end = Run(self.path.parent).tail(self.path.name, self.offset)
            if end > self.offset:
                read = self._bytes(self.offset, end)
                self.lost += read.count(b"\n") - len(fresh)
                self.offset, self.last = end, read[-200:]
                self.rows = self.rows + fresh  # a new list, so that nobody's list grows while it is being read

    def _bytes(self, begin: int, end: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)


@lru_cache(maxsize=64)
def _history(path: Path) -> _History:
    return _History(path)


def rows_of(run: Run, name: str = "metrics.jsonl") -> list[dict]:
    """All lines of a run's log so far."""
    history = _history(run.path / name)
    history.refresh()
    return history.rows


def unreadable(run: Run) -> list[str]:
    """What of a run and its stages could not be read, in words."""
    told = []
    for part in (run, *(stage for stage in run.stages().values() if stage.path != run.path)):
        inside = "" if part is run else f"{part.id}/"
        read = {"status.json": part.status, "config.json": part.config, "summary.json": part.summary}
        read["about.json"] = part.about
        told += [inside + name for name, content in read.items() if (part.path / name).exists() and not content()]
        for name in LOGS:
            path = part.path / name
            rows_of(part, name)
            if path.exists() and not path.is_file():
                told.append(inside + name)
            elif lost := _history(path).lost:
                told.append(f"{lost:,} {'line' if lost == 1 else 'lines'} of {inside}{name}")
    return told
