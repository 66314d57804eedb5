"""A class: whoever has the key is its teacher, who locks what students may change and shows everybody a run.

A browser that opens a link with the key gets a cookie, which no script can read, and by which its requests are known.
Locks hold where something is done, as in `jobs.launch`, not only where it is drawn. What the teacher has set lies in
`class.json` in the folder of all runs, and so outlives the page. Without a key there is no class.
"""

import hashlib
import hmac
import threading
import time
from contextvars import ContextVar

from rlhf.config import BadInput
from rlhf.runs.directory import find_run, runs_root
from rlhf.runs.files import read_json, write_json


LOCKS = {
    "runs": "starting runs",
    "uploads": "uploads",
    "chat": "the settings of Chat",
    "picker": "choosing another run",
}
"""What can be locked, in words that follow "Your teacher has locked"."""
COOKIE = "rlhf-teacher"
FEWEST_CHARACTERS = 8
"""Of a key: a shorter one can be guessed."""

_secret = ""
"""Made from the key, which is not kept; empty without a class."""
_by_teacher: ContextVar[bool] = ContextVar("by_teacher", default=False)
"""Whether the request that is being answered is the teacher's."""
_changing = threading.Lock()


def begin(key: str) -> None:
    """Have a class with this key, or none if it is empty.

    Raises:
        BadInput: it is too short.
    """
    global _secret
    if 0 < len(key) < FEWEST_CHARACTERS:
        raise BadInput(f"The teacher's key has {len(key)} characters; it needs at least {FEWEST_CHARACTERS}.")
    _secret = _made_from(key) if key else ""


def _made_from(key: str) -> str:
    return hashlib.sha256(f"teacher {key}".encode(errors="surrogatepass")).hexdigest()


def is_on() -> bool:
    """Whether there is a class."""
    return bool(_secret)


def cookie_for(key: str) -> str | None:
    """The value of the cookie by which the teacher's browser is known; None for a wrong key."""
    return _secret if hmac.compare_digest(_made_from(key), _secret) else None


def recognise(cookie: str | None) -> None:
    """Take what is done from now on, in answer to one request, for the teacher's if it comes with the cookie."""
    _by_teacher.set(is_on() and hmac.compare_digest(str(cookie).encode(), _secret.encode()))


def is_teacher() -> bool:
    """Whether the request that is being answered is the teacher's."""
    return _by_teacher.get()


def check_teacher() -> None:
    """Check that the teacher asks.

    Raises:
        BadInput: somebody else does.
    """
    if not is_teacher():
        raise BadInput("Only your teacher can do this.")


def locks() -> list[str]:
    """What is locked, names of `LOCKS`; nothing is without a class."""
    set_to = _read().get("locks")
    return [name for name in LOCKS if isinstance(set_to, list) and name in set_to]


def locked(names: list[str]) -> str:
    """A sentence on what is locked; empty where nothing is."""
    *others, last = [LOCKS[name] for name in names] or [""]
    return f"Your teacher has locked {', '.join(others)}{' and ' if others else ''}{last}." if last else ""


def refusal(lock: str) -> str:
    """Why this request may not do what a lock forbids, in a sentence; empty where it may."""
    return locked([lock]) if lock in locks() and not is_teacher() else ""


def check(lock: str) -> None:
    """Check that this request may do what a lock forbids.

    Raises:
        BadInput: the teacher has locked it.
    """
    if why := refusal(lock):
        raise BadInput(why)


def shown() -> tuple[str | None, float]:
    """The run that everybody's page shows, and since when; no run before one is shown, or once it is gone."""
    read = _read()
    run_id, since = read.get("shown"), read.get("since")
    try:
        run_id = find_run(run_id).id if isinstance(run_id, str) else None
    except BadInput:
        run_id = None
    return run_id, since if isinstance(since, float) else 0.0


def may_show(run_id: str | None) -> str | None:
    """The run that a page shows which asks for this one: the teacher's where choosing another is locked."""
    return refusal("picker") and shown()[0] or run_id


def bulletin() -> dict:
    """What every page's poll brings of a class: what is locked, and since when a run is shown; nothing without one."""
    return {"class": {"locks": locks(), "since": shown()[1]}} if is_on() else {}


def set_lock(lock: str, on: bool) -> None:
    """Lock something, or open it again."""
    with _changing:
        _write(locks=[name for name in LOCKS if (on if name == lock else name in locks())])


def show(run_id: str | None) -> None:
    """Have everybody's page show this run from now on; with None it goes on as it is.

    Raises:
        BadInput: there is no such run.
    """
    with _changing:
        _write(shown=run_id and find_run(run_id).id, since=time.time())


def _read() -> dict:
    return read_json(runs_root() / "class.json") if is_on() else {}


def _write(**changes: object) -> None:
    runs_root().mkdir(parents=True, exist_ok=True)
    write_json(runs_root() / "class.json", {**_read(), **changes})
