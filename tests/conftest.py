"""Models and helpers that several tests share, and the marker `process`. Nothing here needs a network."""

import functools
import gc
import gzip
import itertools
import os
import subprocess
import sys
import warnings
from collections import Counter
from datetime import date

import pytest
from processes import ROOT, chromium, keep_signals, print_warning


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # two workers with two threads each would wait for each other
sys.path.insert(0, str(ROOT))
# The libraries' objects stay to the end. The collector would look through them again and again: a tenth of the time.
gc.disable()

SLOW = {"rlhf", "command", "stranger", "address", "site", "browser", "space", "zero_gpu", "start", "trained"}
SLOW |= {"read_plainly", "killed", "under_way"}
"""Fixtures that start processes, run whole commands or serve the page: tests that use one are marked `process`."""

LONG_COUNTS = ROOT / "assets" / "example" / "long.json"

FIRST = ("test_space.py", "test_controls.py", "test_readme.py", "test_ranks.py", "test_resume.py", "test_load.py")
"""Files that take longest, the last two with --long, come first, so that both workers end together. The pages of a
Space share the machine with one training only; files that start several processes come later."""


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="with larger counts, and with the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker("process")
        if item.get_closest_marker("long") and not config.getoption("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: --long"))


def pytest_collection_finish():
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session")
def long(request):
    """Whether larger counts are asked for."""
    return request.config.getoption("long")


@pytest.fixture
def tries(record_property):
    """Call it with how often a test has tried what its name says: after --long, REPORT.md tells that."""
    return functools.partial(record_property, "tries")


def pytest_terminal_summary(terminalreporter, config):
    """Keep the `tries` of a long run for the report."""
    passed = terminalreporter.getreports("passed")
    counts = Counter()
    for report in passed if config.getoption("long") else ():
        name = report.nodeid.partition("::test_")[2].partition("[")[0].replace("_", " ")
        counts[name] += dict(report.user_properties).get("tries", 0)
    if tried := {name: {"tries": count, "date": f"{date.today()}"} for name, count in counts.items() if count}:
        from rlhf.bench.comparisons import machine
        from rlhf.runs.files import read_json, write_json

        before = read_json(LONG_COUNTS).get("tests", {})
        write_json(LONG_COUNTS, {"machine": machine(), "tests": before | tried})


@pytest.fixture
def rlhf(tmp_path):
    """Run `python -m rlhf ...` as a person would, in an empty folder; returns the finished process."""

    def run(*words, timeout=300):
        return subprocess.run(
            [sys.executable, "-m", "rlhf", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """As `rlhf`, but in this process, which has imported everything already; returns what a process would."""
    from rlhf.__main__ import main

    monkeypatch.chdir(tmp_path)

    def run(*words):
        capfd.readouterr()
        with keep_signals(), warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = print_warning
            code = main([str(word) for word in words])
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return run


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of all runs, not made yet; the page's code takes it for its own."""
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def few_pairs(tmp_path_factory):
    """A file with the first 400 preference pairs of the embedded world: enough to train and judge a step or two on."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with gzip.open(ROOT / "assets" / "preferences.jsonl.gz", "rt", encoding="utf-8") as pairs:
        file.write_text("".join(itertools.islice(pairs, 400)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def one_thread():
    """One thread for PyTorch: models this small are fastest on one, and add up in the same order every time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser():
    """A browser for all tests of a file; the test is skipped without one."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def base():
    """The embedded base model and its tokenizer."""
    from rlhf.models import load_policy

    return load_policy("everyday")


@pytest.fixture
def tiny_gpt2():
    """A two-layer GPT-2 with 40 tokens and random weights large enough that its choices differ."""
    from worlds import small_gpt2

    return small_gpt2(40, scale=0.3, n_positions=48, n_layer=2, tie_word_embeddings=True)
