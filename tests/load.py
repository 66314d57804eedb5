"""A class at the page: what thirty people do at once, over HTTP, against `python app.py` and a real training.

    PYTHONPATH=. python tests/load.py                                  a minute of the class, and what `main` lists
    PYTHONPATH=. python tests/load.py --only people --seconds 14400    four hours: is memory flat?
    PYTHONPATH=. python tests/load.py --only people --seconds 4800 --pace 3    as much as in four hours, in a third

Every figure is printed with its limit. Nothing else may run on the machine meanwhile. `test_load.py` tries a little.
"""

import argparse
import collections
import contextlib
import http.client
import json
import math
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from processes import serving

from rlhf.launch import limits
from rlhf.runs.directory import ACTIVE, Run


MODEL = "example"
QUESTION = "How do I clean an oven?"
PAUSE = 4
"""Seconds between two choices of a person, in the mean."""
ENDLESS = {"reward_model_path": MODEL, "total_episodes": 1_000_000, "ceiling_samples": 0}
"""A training that is under way until it is stopped."""


class Page:
    """The page in a class, served by a process of its own, and what a browser would know of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack = folder, contextlib.ExitStack()
        self.secrets: list[str] = []

    def __enter__(self) -> "Page":
        places = {"RLHF_RUNS": str(self.folder / "runs"), "GRADIO_TEMP_DIR": str(self.folder / "temp")}
        self.url = self.stack.enter_context(serving(self.folder / "log", GRADIO_SERVER_NAME="127.0.0.1", **places))
        (self.process,) = (
            child for child in psutil.Process().children() if child.environ().get("RLHF_RUNS") == places["RLHF_RUNS"]
        )
        parts = httpx.get(f"{self.url}/config", timeout=60).json()["components"]
        self.parts = {name: part["id"] for part in parts for name in part["props"].get("server_fns") or ()}
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    @property
    def choices(self) -> list[dict]:
        """All choices on disk; a line that was cut off is none."""
        found = []
        for path in self.folder.glob("runs/feedback/*/choices.jsonl"):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def use(self) -> dict[str, float]:
        """Memory in MB, open files, zombies among the children, and files in the temporary folder.

        How many connections people hold at the moment is up to them, so these are no open files.
        """
        port = urlsplit(self.url).port
        held = [
            connection.laddr.port == port and connection.status == psutil.CONN_ESTABLISHED
            for connection in self.process.net_connections("tcp")
        ]
        return {
            "memory": self.process.memory_info().rss / 1e6,
            "open files": self.process.num_fds() - sum(held),
            "zombies": sum(child.status() == psutil.STATUS_ZOMBIE for child in self.process.children()),
            "temporary files": sum(path.is_file() for path in self.folder.joinpath("temp").rglob("*")),
        }


class Person:
    """A browser: a secret, a connection, and how long each kind of answer took."""

    def __init__(self, page: Page, number: int) -> None:
        self.page, self.secret = page, f"canary {number} {os.urandom(8).hex()}"
        self.connections = threading.local()
        self.took: dict[str, list[float]] = collections.defaultdict(list)
        self.overheard = 0
        """How often it was sent another's secret, which is also what the other says in Chat."""
        page.secrets.append(self.secret)
        self.acknowledged: set[str] = set()

    def request(self, method: str, path: str, data: dict | None = None) -> str:
        """Send a request, over a connection of each thread's own, and return what comes back.

        By the standard library, which leaves the processor to the page and the training.
        """
        address = self.page.url.partition("://")[2]
        connection, last = self.connections.__dict__.pop(address, (None, 0.0))
        if time.monotonic() - last > 3:  # a server lets go of one that was idle for 5 s
            connection = http.client.HTTPConnection(address, timeout=120)
        body = None if data is None else json.dumps(data)
        connection.request(method, f"/gradio_api/{path}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        self.connections.__dict__[address] = connection, time.monotonic()
        if answer.status == 503:
            raise RuntimeError(text)  # Gradio's queue is full
        assert answer.status == 200, f"{path}: {answer.status} {text[:200]}"
        return text

    def ask(self, name: str, data: dict) -> dict:
        """Call a function of the page's own scripts."""
        envelope = {"session_hash": self.secret[-16:], "component_id": self.page.parts[name], "fn_name": name}
        began = time.monotonic()
        text = self.request("POST", "component_server", {**envelope, "data": data})
        self.took[name].append(time.monotonic() - began)
        self.listen(text)
        return json.loads(text)

    def call(self, name: str, *data: object, session: str | None = None) -> object:
        """Call a named endpoint, which may wait for its turn; an error of the page is a RuntimeError.

        Gradio keeps 0.7 MB for each session, and a call without one is a session of its own; a page, which has one,
        makes one call at a time.
        """
        began = time.monotonic()
        event = json.loads(self.request("POST", f"call/{name}", {"data": data, "session_hash": session}))["event_id"]
        text = self.request("GET", f"call/{name}/{event}")
        self.took[name].append(time.monotonic() - began)
        self.listen(text)
        kind, told = re.findall(r"^event: (complete|error)\ndata: (.*)$", text, re.MULTILINE)[-1]
        if kind == "error":
            raise RuntimeError(told)
        return json.loads(told)[0]

    def listen(self, text: str) -> None:
        """Count the secrets of others in an answer."""
        self.overheard += sum(secret in text for secret in self.page.secrets if secret != self.secret)

    def choose(self, count: int, pause: float = 0.0, until: float = math.inf) -> None:
        """Choose so often, or until then; what was not answered is sent again, as the page does, until it is."""
        pairs: list[dict] = []
        for number in range(count):
            while not pairs:
                pairs = self.patiently("look", count=3)["pairs"] or time.sleep(0.2) or []
            pair = pairs.pop(0)
            told = self.patiently("choose", id=pair["id"], choice="ab"[number % 2], count=3)
            assert "refused" not in told, told
            self.acknowledged.add(pair["id"])
            pairs = [one for one in told["pairs"] if one["id"] not in self.acknowledged]
            time.sleep(random.uniform(0, 2 * pause))
            if time.monotonic() > until:
                break

    def patiently(self, name: str, **request: object) -> dict:
        """Ask again while nobody answers."""
        deadline = time.monotonic() + 120
        while True:
            try:
                return self.ask(name, {"run": MODEL, "visitor": self.secret, **request})
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def watch(self, run: str, until: float, pace: float) -> None:
        """Look at a run, as often as the page says, or so many times as often."""
        news: dict = {"seen": {}}
        while time.monotonic() < until:
            news = self.ask("poll", {"run": run, "seen": news["seen"], "page": self.secret})
            time.sleep(min(news["again"] / pace, max(0.0, until - time.monotonic())))


def all_at_once(work: list[Callable[[], None]]) -> None:
    """Call these functions in threads; the first error is raised once all have ended."""
    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(one) for one in work]:
            done.result()


def p95(people: list[Person], name: str) -> float:
    """Seconds within which 95 % of the answers came."""
    return float(np.quantile([took for person in people for took in person.took[name]], 0.95))


def say(what: str, value: float, limit: str) -> None:
    """A figure and its limit."""
    print(f"{what:<70}{value:>10.2f}   {limit}", flush=True)


def class_at_work(
    page: Page, people: list[Person], run: Run, seconds: float, *, chatting: bool, pace: float = 1
) -> dict[str, float]:
    """All watch a run and choose, and chat if asked to, for so long, so many times as fast as people do.

    Returns the run's episodes per second meanwhile, and how many cores the page and these people themselves took.
    """
    until = time.monotonic() + seconds

    def chat(person: Person) -> None:
        while time.monotonic() < until:
            time.sleep(min(random.uniform(0, 120 / pace), max(0.0, until - time.monotonic())))
            person.call("chat", MODEL, f"{QUESTION} {person.secret}", 1, session=person.secret[-16:])

    works = [lambda one: one.watch(run.id, until, pace), lambda one: one.choose(10**6, PAUSE / pace, until)]
    works += [chat] if chatting else []
    return at_work(page, run, lambda: all_at_once([lambda w=w, one=one: w(one) for one in people for w in works]))


def at_work(page: Page, run: Run, work: Callable[[], object]) -> dict[str, float]:
    """What happens while something is done; see `class_at_work`."""
    processes = {"page": page.process, "people": psutil.Process()}
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    begun, began = episodes(run), time.monotonic()
    work()
    seconds = time.monotonic() - began
    cores = {name: (sum(process.cpu_times()[:2]) - before[name]) / seconds for name, process in processes.items()}
    return {"speed": (episodes(run) - begun) / seconds, **cores}


def episodes(run: Run) -> int:
    """Of the last update that was logged."""
    return max((row.get("episode", 0) for row in run.metrics()), default=0)


def wait_for(run: Run, ready: Callable[[Run], bool], seconds: float = 300) -> None:
    """Wait until ready(run)."""
    deadline = time.monotonic() + seconds
    while not ready(run):
        assert time.monotonic() < deadline, run.status()
        time.sleep(0.1)


def started(person: Person, page: Page) -> Run:
    """A training that this person has started, once it has logged its first updates."""
    run = Run(page.folder / "runs" / person.call("start", "ppo", json.dumps(ENDLESS), person.secret))
    wait_for(run, lambda run: episodes(run) > 0)
    return run


def stopped(person: Person, run: Run) -> None:
    """The training has been stopped by whom it belongs to."""
    person.call("stop", run.id, person.secret)
    wait_for(run, lambda run: run.status()["state"] not in ACTIVE)


def people_watch_choose_and_chat(folder: Path, count: int, seconds: float, pace: float = 1) -> None:
    """While PPO trains."""
    with Page(folder) as page:
        people = [Person(page, number) for number in range(count)]
        people[0].call("chat", MODEL, QUESTION, 1)  # loads the models
        run = started(people[0], page)
        quiet = [at_work(page, run, lambda: time.sleep(min(seconds, 30)))]
        class_at_work(page, people, run, min(seconds, 30), chatting=True)  # models are loaded, caches filled
        for person in people:
            person.took.clear()
        choosing = class_at_work(page, people, run, min(seconds, 60), chatting=False)
        took = {name: p95(people, name) for name in ("poll", "choose")}
        before, held, over = page.use(), [], threading.Event()

        def weigh() -> None:
            began = time.monotonic()
            while not over.wait(seconds / 100):
                held.append((pace * (time.monotonic() - began) / 60, page.process.memory_info().rss / 1e6))

        weighing = threading.Thread(target=weigh)
        weighing.start()
        chatting = class_at_work(page, people, run, seconds, chatting=True, pace=pace)
        over.set()
        weighing.join()
        after = page.use()
        # The more has been chosen, the more there is to look through: of each person's choices the last tenth.
        last = [took for person in people for took in person.took["choose"][-len(person.took["choose"]) // 10 :]]
        quiet.append(at_work(page, run, lambda: time.sleep(min(seconds, 30))))
        stopped(people[0], run)
    alone = fmean(found["speed"] for found in quiet)
    say("a look at the run, seconds (95 %)", took["poll"], "at most 0.5")
    say("a choice until it is kept, seconds (95 %)", took["choose"], "at most 0.5")
    say(
        f"one of the last of {len(page.choices):,} choices, seconds (95 %)",
        float(np.quantile(last, 0.95)),
        "at most 0.5 at a pace of 1",
    )
    say("training alone, episodes per second", alone, "-")
    for what, found in (("", choosing), (", who chat too", chatting)):
        say(f"training beside them{what}, % of its speed alone", 100 * found["speed"] / alone, "at least 80")
        say(f"cores that the page takes{what}", found["page"], "-")
        say(f"cores that these scripted people take{what}", found["people"], "0 in a class, whose own computers do it")
    for what, name in {"looks": "poll", "choices": "choose", "answers of Chat": "chat"}.items():
        say(what, sum(len(person.took[name]) for person in people), "-")
    say("an answer of Chat, with the wait for one's turn, seconds (95 %)", p95(people, "chat"), "-")
    say("words or secrets of others that somebody was sent", sum(one.overheard for one in people), "0")
    # What it holds goes up and down with the questions that are being answered, so that two looks say little.
    minutes, memory = zip(*held, strict=True)
    say("memory, MB in the first tenth (median)", float(np.median(memory[: len(memory) // 10])), "-")
    say("memory, MB in the last tenth (median)", float(np.median(memory[-(len(memory) // 10) :])), "-")
    say("memory, MB more a minute of a class", float(np.polyfit(minutes, memory, 1)[0]), "below 0.2 over hours")
    for name in ("open files", "temporary files", "zombies"):
        say(f"{name}, more than before", after[name] - before[name], "at most 3")


def choices_outlive_kills(folder: Path, count: int, each: int, kills: int) -> None:
    """The page is killed while all choose."""
    with Page(folder) as page:
        people = [Person(page, number) for number in range(count)]
        chosen = threading.Thread(target=all_at_once, args=([lambda one=one: one.choose(each) for one in people],))
        chosen.start()
        for _ in range(kills):
            wait = len(page.choices) + random.randint(1, max(1, count * each // (2 * kills + 2)))
            while chosen.is_alive() and len(page.choices) < wait:
                time.sleep(0.02)
            page.process.send_signal(signal.SIGKILL)
            page.process.wait()
            page.__enter__()  # at another address, which they find
        chosen.join()
    kept = collections.Counter((choice["id"], choice["person"]) for choice in page.choices)
    acknowledged = {(pair, limits.mark(one.secret)) for one in people for pair in one.acknowledged}
    say(f"choices acknowledged, the page killed {kills} times", len(acknowledged), f"{count * each}")
    say("of these lost", len(acknowledged - kept.keys()), "0")
    say("kept twice", sum(number > 1 for number in kept.values()), "0")
    say("secrets of others that somebody was sent", sum(one.overheard for one in people), "0")


def clicks_on_train(folder: Path, count: int, clicks: int) -> None:
    """All press Start again and again, in two windows of their browsers."""
    with Page(folder) as page:
        people = [Person(page, number) for number in range(count)]
        given: list[str] = []
        refused: list[str] = []

        def click(person: Person, window: str) -> None:
            for _ in range(clicks // (2 * count)):
                try:
                    settings = json.dumps(ENDLESS)
                    given.append(person.call("start", "ppo", settings, person.secret, session=person.secret + window))
                except RuntimeError as error:
                    refused.append(str(error))

        first, before = started(people[0], page), page.use()
        all_at_once([lambda one=one, window=window: click(one, window) for one in people for window in "ab"])
        runs = [Run(path) for path in page.folder.glob("runs/ppo-*")]
        states = collections.Counter(run.status()["state"] for run in runs)
        say("clicks: runs under way", states["running"], "1")
        say("clicks: runs that wait, one a person at most", states["waiting"], f"at most {count}")
        untold = (
            2 * count * (clicks // (2 * count))
            - len(refused)
            - sum(name in {run.id for run in runs} for name in given)
        )
        say("clicks: without a run or a sentence", untold, "0")
        say("clicks: MB of memory more", page.use()["memory"] - before["memory"], "below 50")
        for person in people[::-1]:
            for run in runs:
                if run.status()["owner"] == limits.mark(person.secret) and run.id != first.id:
                    stopped(person, run)
        stopped(people[0], first)


def starts_and_stops(folder: Path, cycles: int) -> None:
    """Runs are started and stopped, and nobody watches."""
    with Page(folder) as page:
        person = Person(page, 0)
        stopped(person, started(person, page))
        before = page.use()
        for _ in range(cycles):
            stopped(person, started(person, page))
        after = page.use()
    for name, limit in {"zombies": "0", "open files": "at most 3"}.items():
        say(f"{cycles} starts and stops: {name} more", after[name] - before[name], limit)


def main() -> None:
    """Print all figures with their limits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pace", type=float, default=1, help="how many times as fast as people they are")
    parser.add_argument("--only", choices=("people", "kills", "clicks", "cycles"))
    given = parser.parse_args()
    works = {
        "people": (people_watch_choose_and_chat, given.people, given.seconds, given.pace),
        "kills": (choices_outlive_kills, given.people, 100, 10),
        "clicks": (clicks_on_train, given.people, 240),
        "cycles": (starts_and_stops, 50),
    }
    for name, (work, *counts) in works.items():
        if given.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                work(Path(folder), *counts)


if __name__ == "__main__":
    main()
