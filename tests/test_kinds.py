"""The table of kinds: one entry more is a new command, a choice in the form and a name in the list of runs."""

import sys
from types import SimpleNamespace

import gradio as gr
import pytest

from rlhf import __main__ as command_line
from rlhf.config import RewardArguments
from rlhf.kinds import KINDS, Kind
from rlhf.runs.directory import Run, find_run, list_runs
from rlhf.ui import run_choices
from rlhf.ui.train import TrainTab
from rlhf.write import tables
from rlhf.write.export import as_command


DISTIL = Kind(
    settings=RewardArguments,
    summary="train a small model on the answers of a large one",
    label="Distillation",
    choice="Distillation only",
    front={"num_train_epochs": "Passes"},
    closing="distil_table",
)


@pytest.fixture(autouse=True)
def one_more(monkeypatch):
    monkeypatch.setitem(KINDS, "distil", DISTIL)


def test_a_new_kind_is_a_command_that_ends_with_its_table(monkeypatch, capsys):
    made = []
    commands = SimpleNamespace(distil=lambda settings: made.append(settings) or {"loss": 0.5})
    monkeypatch.setattr("rlhf.commands", commands, raising=False)
    monkeypatch.setitem(sys.modules, "rlhf.commands", commands)
    monkeypatch.setattr(tables, "distil_table", lambda summary: f"loss {summary['loss']}", raising=False)
    assert command_line.main(["distil", "--seed", "7"]) == 0
    assert made == [RewardArguments(seed=7)] and capsys.readouterr().out == "loss 0.5\n"
    assert "train a small model on the answers of a large one" in command_line.parser().format_help()


def test_a_new_kind_is_a_choice_in_the_form_with_its_knobs():
    with gr.Blocks():
        tab = TrainTab()
    assert ("Distillation only", "distil") in tab.mode.choices
    assert tab.forms["distil"].knobs["num_train_epochs"].label == "Passes"


def test_a_run_of_a_new_kind_is_found_named_and_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))
    run = Run.create(tmp_path / "distil-20260101-000000-abcd", "distil", {"seed": 3})
    assert [found.id for found in list_runs()] == [run.id] == [find_run(run.id).id]
    assert any(run_id == run.id and label.startswith("Distillation · ") for label, run_id in run_choices())
    assert as_command(run) == "python -m rlhf distil --seed 3"
