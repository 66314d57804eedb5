"""Where people are asked on the page: a desk per model, or two, at which a thread in the background keeps pairs ready.

A desk is opened when somebody first comes. What was asked there before is asked at once; the model is loaded in the
meantime, and writes a few pairs at a time until enough are ready.
"""

import atexit
import copy
import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf.config import EVERYDAY, BadInput, FeedbackArguments
from rlhf.feedback.store import BY_BASE, Pair, Store
from rlhf.runs.directory import runs_root
from rlhf.runs.disk import trouble


READY, EACH = 40, 4
"""Pairs that are kept ready, and how many more for each person who is there."""
MOST_HERE = 100
"""People that are counted: whoever makes up more gets no more work done for them."""
HERE_SECONDS = 60.0
"""For so long after a person's last request that person is there."""
FIRST, MORE = 4, 16
"""Prompts that are put to the model at a time: few, so that the first pairs are there soon; many, which is faster."""
FEW = 4
"""Up to so many people are asked what tells most; a larger group chooses faster than that can be found out."""
PAIRS_EACH = 8
"""Pairs that each prompt gives for a larger group."""
FRUITLESS = 8
"""Batches in a row that may bring no pair, before the desk gives up."""
CLOSING_SECONDS = 10.0
"""A batch of pairs takes a few seconds; a model that is being downloaded is not waited for."""
LEAVES_SECONDS = 300.0
"""A desk of two models lets go of them when nobody has asked for so long: there may be many such desks."""
AGAIN_SECONDS = 10.0
"""After a failure the model is tried again, if somebody is there, so much later."""


class Desk:
    """Where people are asked about the answers of one model, or of two `others`; see `desk`."""

    def __init__(
        self,
        args: FeedbackArguments,
        load: Callable[[str], tuple],
        others: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        self.args, self.load, self.others = args, load, others
        self.models = frozenset(others or BY_BASE)
        """Who answers, as pairs name them."""
        self.store: Store | None = Store(args.store) if Path(args.store, "store.json").exists() else None
        """None before the first pair is made."""
        self.doing = ""
        """What the thread does, in words; empty while enough pairs are ready."""
        self.error = ""
        """Why it makes no pairs, in a sentence."""
        self._since = self._failed = 0.0
        self._here: dict[str, float] = {}
        self._asked, self._closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def ask(self, person: str, count: int) -> list[Pair]:
        """The next pairs for a person, who from now on is there; fewer or none while they are being made."""
        now = time.monotonic()
        with self._starting:
            self._here[person] = now
            alive = self._thread is not None and self._thread.is_alive()
            if not alive and (not self.error or now - self._failed > AGAIN_SECONDS):
                self.error = ""
                self._thread = threading.Thread(target=self._make_pairs, daemon=True)
                self._thread.start()
        self._asked.set()
        return self.store.next(person, count, self.models) if self.store else []

    def close(self) -> None:
        """Make no more pairs; waits for those that are being made, but not long."""
        self._closed.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join(CLOSING_SECONDS)

    def seconds(self) -> float:
        """For how long it has been doing what it does."""
        return time.monotonic() - self._since

    def crowded(self) -> bool:
        """Whether more people are there than can be asked what tells most."""
        return len(self._here) > FEW

    def _begin(self, doing: str) -> None:
        self.doing, self._since = doing, time.monotonic()

    def _held(self) -> int:
        """About how many pairs the people who are there look at next."""
        now = time.monotonic()
        self._here = {person: last for person, last in list(self._here.items()) if now - last < HERE_SECONDS}
        return EACH * min(MOST_HERE, len(self._here))

    def _wants_more(self) -> bool:
        """Whether more pairs should be made."""
        few = self.store.waiting(self.models) < READY + self._held()
        return few and self.store.has_room() and not self._closed.is_set()

    def _make_pairs(self) -> None:
        try:
            self._begin("Loading the language model")
            # Takes seconds to import.
            from rlhf.feedback.ask import Asker
            from rlhf.models import revision

            name = self.args.model_name_or_path
            model, tokenizer = self.load(name)
            opened = Store.open(self.args.store, name, revision(model))
            self.store = self.store or opened
            asker = Asker(model, copy.deepcopy(tokenizer), self.args)  # which may be given a chat template
            if self.others:
                asker.models = {name: load() for name, load in self.others.items()}
            fruitless = 0
            while not self._closed.is_set():
                self._asked.clear()
                while self._wants_more():
                    self._begin("Writing answers to the next questions")
                    count = MORE if self.store.waiting(self.models) else FIRST
                    made = asker.add(self.store, count, PAIRS_EACH if self.crowded() else 1)
                    fruitless = 0 if made else fruitless + 1
                    if fruitless == FRUITLESS:
                        give = f"{' and '.join(self.others)} give" if self.others else f"{name} gives"
                        raise BadInput(f"{give} no two different answers that end, so there is no choice.")
                    # No hurry then: half of the time is for those who choose.
                    if self.store.waiting(self.models) > self._held():
                        self._closed.wait(self.seconds())
                self.doing = ""
                if not self._closed.is_set() and not self._asked.wait(LEAVES_SECONDS if self.others else None):
                    break
        except BadInput as error:
            self.error = str(error)
        except Exception as error:  # whatever a library raises about a model: there is nobody else to tell
            why = ": ".join(trouble(error) or (type(error).__name__, str(error)))
            self.error = f"The model could not answer ({why})."
        self.doing, self._failed = "", time.monotonic()


_desks: dict[tuple[str, frozenset[str]], Desk] = {}
_opening = threading.Lock()


@atexit.register
def _close() -> None:
    """A thread that PyTorch is at work in, when the program ends, would take it down with an error."""
    for each in _desks.values():
        each.close()


def desk(
    args: FeedbackArguments,
    load: Callable[[str], tuple],
    others: Mapping[str, Callable[[], object]] | None = None,
) -> Desk:
    """The desk with the store that these settings name, the same for everybody.

    Args:
        load: makes a language model and its tokenizer of a name; called in a thread, when somebody has come.
        others: two models that answer instead, by the names that pairs give them, each with what loads it.
    """
    with _opening:
        key = args.store, frozenset(others or ())
        if key not in _desks:
            _desks[key] = Desk(args, load, others)
        return _desks[key]


def store_of(model: str, dataset_name: str = EVERYDAY) -> Path:
    """The folder of the choices between a model's answers to the prompts of a data set."""
    name = model if dataset_name == EVERYDAY else f"{model} on {dataset_name}"
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    if safe != name or len(safe) > 80:
        safe = f"{safe[-80:]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return runs_root() / "feedback" / safe
