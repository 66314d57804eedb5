"""The form that compares models from the page: what it refuses, and one comparison that really runs."""

import time

import gradio as gr
import pytest

from rlhf.config import BadInput
from rlhf.runs import directory as runs
from rlhf.ui import api, comparison_form, scores
from rlhf.ui.comparison_form import _read_upload, _start


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", "", "empty.txt holds no question"),
        ("empty.csv", "", "empty.csv holds no question"),
        ("one.txt", "How?\nHow?\n", "one.txt holds one question"),
        ("other.csv", "question\nHow?\n", "other.csv has no column prompt"),
        ("broken.jsonl", '{"prompt": ', "could not be read"),
        ("long.txt", "How?\n" + "a" * 3000, "more than 2,000 characters"),
    ],
)
def test_an_upload_that_holds_no_questions_is_answered_with_a_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    _, note = _read_upload(str(tmp_path / name))
    assert message in note and note.count("<p") == 1


def test_questions_of_a_file_are_shown_once_each_before_they_are_asked(tmp_path):
    (tmp_path / "own.csv").write_text('prompt,more\n"Why, then?",1\nHow?,2\n"Why, then?",3\n')
    assert _read_upload(str(tmp_path / "own.csv")) == ("Why, then?\nHow?", "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], "", "4", "1"), "Choose a trained model"),
        ((["best-of-4"], "", "4", "1"), "Choose a trained model"),
        ((["../../etc"], "", "4", "1"), "Choose a trained model"),
        ((["example"], "Just one?", "4", "1"), "One question compares nothing"),
        ((["example"], "Just one?\n ", "4", "1"), "One question compares nothing"),
        ((["example"], "", "many", "1"), "“Answers per question” must be a whole number"),
        ((["example"], "", "4", "0"), "“Training runs per model” must be at least 1"),
        ((["example"], "\n".join(map(str, range(501))), "4", "1"), "501 questions"),
    ],
)
def test_what_cannot_be_compared_starts_nothing(root, given, message):
    note, _ = _start(*given, "")
    assert message in note
    assert list(runs.list_runs()) == []


def test_letters_that_were_guessed_are_said_beside_the_questions(tmp_path):
    (tmp_path / "own.txt").write_bytes("Où est-il?\nÉtait-ce là?\n".encode("cp1252"))
    shown, note = _read_upload(str(tmp_path / "own.txt"))
    assert shown == "Où est-il?\nÉtait-ce là?"
    assert "own.txt is not in UTF-8 and was read as Windows-1252; check its accented letters." in note


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (None, "Choose a trained model"),
        (["example", "example"], "The same model is chosen twice"),
        (["example", "best-of-4", "best-of-4"], "The same model is chosen twice"),
        (["example", "ppo-20260101-000000-0000"], "is gone; choose from the list again"),
        (["example", "best-of-99"], "is gone; choose from the list again"),
        (["example", "reward-20260101-000000-0001"], "One of these holds no trained model"),
    ],
)
def test_what_is_chosen_is_compared_whole_or_not_at_all(root, chosen, message):
    runs.Run.create(root / "reward-20260101-000000-0001", "reward", {}).finish("finished")
    before = list(root.iterdir())
    note, _ = _start(chosen, "", "4", "1", "")
    assert message in note and list(root.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run_ids": "example"}, "run_ids must be a list of texts, not 'example'"),
        ({"run_ids": [5]}, "run_ids must be a list of texts"),
        ({"run_ids": ["example"], "questions": "Why?"}, "questions must be a list of texts"),
        ({"run_ids": ["example"], "questions": [1, None]}, "questions must be a list of texts"),
        ({"run_ids": ["example"], "samples": [4]}, "samples must be a whole number"),
        ({"run_ids": ["example"], "samples": 1e9}, "samples must be at most 64"),
    ],
)
def test_a_program_that_asks_for_a_comparison_is_told_what_it_gave(root, given, message):
    with pytest.raises(BadInput, match=message):
        api.compare(**given)
    assert list(runs.list_runs()) == []


@pytest.mark.process
def test_own_questions_are_put_to_the_models_and_the_scores_shown(root):
    asked = (["example", "best-of-4"], " How do I get wine out of a carpet?\n\nWhy?", "2", "1", "")
    note, started = _start(*asked)
    run_id = started["run"]
    assert note == ""
    note, again = _start(*asked)
    assert again["run"] == run_id and "This run was started a moment ago" in note
    run, deadline = runs.find_run(run_id), time.time() + 180
    while run.status()["state"] in runs.ACTIVE and time.time() < deadline:
        time.sleep(0.5)
    assert run.status()["state"] == "finished", run.status()
    rows = scores.read_questions(run.path / "scores.csv", "own", "score", "ppo")
    assert [question.base[0]["prompt"] for question in rows] == ["How do I get wine out of a carpet?", "Why?"]
    assert all(len(question.base) == len(question.other) == 2 for question in rows)
    with gr.Blocks():
        tab = scores.ScoresTab()
    shown = tab.view(run_id, "score", "own", "best-of-4")
    assert "Best-of-4 scores higher" in shown[tab.sentence] and "2 questions of your own" in shown[tab.sentence]
    assert "too few" in shown[tab.sentence] and shown[tab.figure]["data"]
    shown = tab.view(run_id, "gold", "own", "ppo")
    assert "no rubric for these questions" in shown[tab.sentence] and shown[tab.figure] is None


def test_models_are_offered_with_the_shown_one_chosen(root):
    offered = comparison_form.ComparisonForm.choices(None, "example")
    assert offered.value == ["example"] and "best-of-16" in [name for _, name in offered.choices]
