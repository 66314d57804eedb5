"""Odd files in the folder of all runs: the page opens for everybody, and names what it could not read."""

import json
import os
import shutil
import time

import pytest

import app
from rlhf.launch import jobs
from rlhf.runs import directory as runs
from rlhf.runs.directory import Run, make_room
from rlhf.runs.history import rows_of
from rlhf.ui import api, comparison_form, describe, downloads, expect, live, run_choices, train


ODD, WHOLE = "demo-20260101-000000-0bad", "ppo-20260101-000000-600d"


class Asked:
    """A browser that opens the page at a run."""

    query_params = {"run": ODD}


@pytest.fixture(scope="module")
def page():
    """The handlers of the page by name."""
    return {handler.name: handler.fn for handler in app.build_app().fns.values()}


@pytest.fixture
def odd(root):
    """A run to be damaged, a copy of the example without weights, beside a whole one."""
    for source, name in ((runs.EXAMPLE, ODD), (runs.EXAMPLE / "ppo", WHOLE)):
        shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("*.safetensors", "sweep", "ceiling.json"))
    return root / ODD


def change(**values):
    """Other values in a JSON file."""
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def folder_instead(path):
    path.unlink()
    path.mkdir()


def pipe_instead(path):
    path.unlink()
    os.mkfifo(path)


def tear(path):
    path.write_bytes(path.read_bytes()[:-30] + b'\n[1]\n{"step": "x", "objective/kl": []}\n{"step": 1e999}\n\xff\n')


NAMED = {
    "status a list": ("status.json", lambda path: path.write_text("[]")),
    "status a folder": ("status.json", folder_instead),
    "status a pipe": ("status.json", pipe_instead),
    "status nested": ("status.json", lambda path: path.write_text("[" * 100_000)),
    "a state that is none": ("status.json", change(state={})),
    "a time beyond all calendars": ("status.json", change(created=1e308)),
    "half a character": ("status.json", change(message="\ud800")),
    "a step that is text": ("ppo/status.json", change(step="x")),
    "config a folder": ("config.json", folder_instead),
    "a metrics file of no metrics": ("ppo/metrics.jsonl", tear),
    "metrics a pipe": ("ppo/metrics.jsonl", pipe_instead),
    "samples torn": ("ppo/samples.jsonl", tear),
    "summary a number": ("summary.json", lambda path: path.write_text("5")),
}
"""What the page says by name; the tabs show the rest of the run."""
STRANGE = {
    "a kind that is a list": ("config.json", change(kind=[])),
    "episodes in words": ("ppo/config.json", change(total_episodes="many")),
    "a summary of something else": ("summary.json", change(splits={"x": []})),
    "scores of something else": ("scores.csv", lambda path: path.write_text("a,b\n1,2\n")),
    "an accuracy in words": ("reward/summary.json", change(reward_model={"accuracy": ["good"]})),
    "seconds in words": ("summary.json", change(seconds={"total": "long"})),
    "a model that is a list": ("ppo/model/config.json", lambda path: path.write_text("[]")),
}
"""Whole files with values that no run writes: a tab that cannot show them says so."""


@pytest.mark.process  # the whole page is drawn for each
@pytest.mark.parametrize("damage", NAMED | STRANGE)
def test_a_damaged_run_takes_the_page_from_nobody_and_is_named(odd, page, damage):
    file, spoil = (NAMED | STRANGE)[damage]
    spoil(odd / file)
    # For everybody
    assert {ODD, WHOLE, "example"} <= {run_id for _, run_id in run_choices()}
    assert jobs.active_run() is None and len(api.runs()) == 4
    assert "error" not in live.poll({"run": WHOLE}) and train.reward_runs()
    assert expect.expectation({}) and comparison_form.ComparisonForm.choices(None, WHOLE)
    make_room(10**12)
    # For whoever looks at it
    if file.endswith(("config.json", "summary.json", "scores.csv")):
        assert page["open_page"]({}, "", Asked)
    for answer in (
        live.poll({"run": ODD}),
        live.details({"run": ODD}),
        live.beside({"run": WHOLE, "others": [ODD]}),
    ):
        assert json.dumps(answer).encode() and answer.get("error", ".").endswith(".")
    if damage in NAMED:
        assert file in describe(ODD).partition("could not be read: ")[2]


def test_a_folder_whose_name_is_no_text_is_passed_over(odd):
    name = os.fsencode(odd.parent) + b"/run-\xff"
    os.mkdir(name)
    with open(name + b"/status.json", "w") as file:
        file.write("{}")
    assert len(api.runs()) == 4


def test_a_link_out_of_a_run_is_in_no_zip(odd, tmp_path):
    (tmp_path / "exam.txt").write_text("secret")
    (odd / "notes.txt").symlink_to(tmp_path / "exam.txt")
    packed = downloads.zip_of(Run(odd), tmp_path)
    assert b"notes.txt" not in packed.read_bytes()


def test_a_long_history_is_read_once_and_thinned(root, long):
    """A hundred thousand steps with --long."""
    steps = 100_000 if long else 10_000
    run = Run.create(root / WHOLE, "ppo", {"total_episodes": 6_400_000})
    shutil.copy(runs.EXAMPLE / "ppo" / "ceiling.json", run.path)
    row = Run(runs.EXAMPLE / "ppo").metrics()[-1]
    with (run.path / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps({**row, "step": step, "episode": 64 * step}) + "\n")
    began = time.thread_time()
    assert describe(WHOLE) == f"{WHOLE}, seed 0"
    first = live.poll({"run": WHOLE})
    opened = time.thread_time()
    assert not live.poll({"run": WHOLE, "seen": first["seen"]})["parts"]["ppo"]["rows"] and describe(WHOLE)
    again, details = time.thread_time(), live.details({"run": WHOLE})
    assert opened - began < steps / 10_000 and again - opened < (opened - began) / 2
    assert time.thread_time() - again < steps / 10_000
    assert len(json.dumps(first)) < 500_000 and len(json.dumps(details)) < 2_000_000
    assert rows_of(run) is rows_of(run) and len(rows_of(run)) == steps
