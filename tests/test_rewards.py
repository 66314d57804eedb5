"""Reward functions by name: what they give, what they refuse, and what a run keeps of them."""

import csv
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from rlhf.__main__ import main
from rlhf.config import BadInput, CompareArguments, DemoArguments
from rlhf.figures import curves
from rlhf.launch import jobs
from rlhf.launch.start import start_comparison, start_run
from rlhf.ppo.algorithm import ScoreStats
from rlhf.rewards import RewardName, load_functions
from rlhf.runs.directory import EXAMPLE, Run
from rlhf.ui import live, voices
from rlhf.ui.rewards_form import table_of
from rlhf.write import export
from rlhf.write.card import model_card


README = Path(__file__).resolve().parent.parent / "rlhf" / "rewards" / "README.md"
SMALL = (
    "--total_episodes", 32, "--per_device_train_batch_size", 8, "--response_length", 8, "--num_sample_generations", 0,
    "--ceiling_samples", 0,
)  # fmt: skip
MINE = """
calls = 0

def polite(completions, **columns):
    return [float("e" in text) for text in completions]

async def long(prompts, completions):
    return [len(text) / 10 for text in completions]

def dies(completions):
    global calls
    calls += 1
    if calls > 2:
        return [1 / 0 for text in completions]
    return [0.1 * len(text) for text in completions]
"""


def given(name, *answers):
    """What the reward of this name gives these answers."""
    [(function, _)] = load_functions([name])
    return function(prompts=["?"] * len(answers), completions=list(answers), completion_ids=[[1]] * len(answers))


# Built-in ones -------------------------------------------------------------------------------------------------------


def test_length_is_1_at_so_many_words_and_less_to_both_sides():
    assert given("length:4", "a b c d", "a b", "a b c d e f", "", "a " * 12) == [1.0, 0.5, 0.5, 0.0, -1.0]
    assert given("length", "word " * 20) == [1.0]


def test_keyword_is_a_whole_word_or_phrase_in_capitals_or_not():
    assert given("keyword:art", "Art!", "party", "the ART of", "") == [1.0, 0.0, 1.0, 0.0]
    assert given("keyword:of course", "Of course.", "of a course") == [1.0, 0.0]
    assert given("keyword:c++", "in C++ it", "in c") == [1.0, 0.0]


def test_regex_is_searched_for_and_conversations_are_read_too():
    assert given(r"regex:\?$", "So?", "So? No.") == [1.0, 0.0]
    assert given(r"regex:\w+@\w+@0.5", "me@home", "me") == [1.0, 0.0]
    assert given("regex:no", [{"role": "assistant", "content": "no"}], "yes") == [1.0, 0.0]


def test_a_pattern_that_would_take_for_ever_is_told_within_seconds():
    begun = time.monotonic()
    with pytest.raises(BadInput, match=r"more than 0\.5 s on one answer"):
        given("regex:^(a|aa|aaa)+(a|aa)+$", "a" * 100 + "b")
    assert time.monotonic() - begun < 10


def test_sentiment_tells_good_words_from_bad_ones_or_says_what_is_missing():
    pytest.importorskip("vaderSentiment")
    good, bad, none = given("sentiment", "What a wonderful idea, I love it!", "This is awful and sad.", "The oven.")
    assert good > 0.5 and bad < -0.5 and none == 0


def test_a_missing_lexicon_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(BadInput, match="pip install vaderSentiment"):
        load_functions(["sentiment"])


def test_a_name_is_taken_apart():
    assert RewardName.read("keyword:a:b@-0.5") == RewardName("keyword:a:b", -0.5)
    assert RewardName.read("/a b/mine.py:polite") == RewardName("polite", 1.0, "/a b/mine.py")
    assert RewardName.read("C:\\me\\mine.py:polite@2").file == "C:\\me\\mine.py"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lenght"], "There is no built-in reward 'lenght'; did you mean length?"),
        (["wit"], "no built-in reward 'wit'; there are length:20"),
        (["length@x"], "is the weight, and x is no number"),
        (["length@nan"], "is the weight, and nan is no number"),
        (["length@"], "is the weight, and nothing is no number"),
        (["length:few"], "length takes a number of words"),
        (["length:0"], "length takes a number of words"),
        (["keyword"], "keyword needs a word"),
        (["regex:("], "regex:( is no regular expression (missing )"),
        (["regex:" + 201 * "a"], "at most 200 characters"),
        (["sentiment:good"], "sentiment takes nothing"),
        (["length", "length@2"], "Two rewards are called length"),
        (["gone.py:polite"], "There is no file gone.py"),
        (["mine.py"], "mine.py names no function; write mine.py:NAME"),
        (["mine.py:polit"], "mine.py has no function polit; did you mean polite?"),
        (["mine.py:calls"], "mine.py has no function calls"),
        (["empty.py:polite"], "empty.py has no function polite; it defines none."),
        (["broken.py:f"], "broken.py cannot be imported: broken.py, line 2: SyntaxError"),
        (["needs.py:f"], "needs.py cannot be imported: needs.py, line 3: ModuleNotFoundError: No module named 'nope'"),
        (["mine.py:polite", "other/mine.py:long"], "Two files are called mine.py"),
    ],
)
def test_mistakes_get_one_sentence_before_a_run_is_made(tmp_path, monkeypatch, capsys, names, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    for name in ("mine.py", "other/mine.py"):
        (tmp_path / name).write_text(MINE)
    (tmp_path / "empty.py").touch()
    (tmp_path / "broken.py").write_text("\ndef f(:\n")
    (tmp_path / "needs.py").write_text("\ndef load():\n    import nope\n\nload()\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["ppo", "--output_dir", "out", "--reward_funcs", *names]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and message in said[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_reward_that_nothing_has_earned_yet_is_not_blown_up():
    stats = ScoreStats()
    assert stats.normalization("reference", torch.zeros(64)) == (0.0, 1.0)
    assert stats.normalization("reference", torch.ones(64)) == (0.0, 1.0)


def test_a_demo_with_functions_trains_no_reward_model(tmp_path):
    demo = DemoArguments(reward_funcs="length keyword:you@2", output_dir=str(tmp_path))
    assert demo.reward_funcs == ["length", "keyword:you@2"]
    for args in (demo.ppo_arguments(tmp_path, tmp_path), demo.compare_arguments(tmp_path, tmp_path, tmp_path)):
        assert (args.reward_model_path, args.reward_funcs) == (None, demo.reward_funcs)
    run = Run.create(tmp_path / "demo", "demo", {"reward_funcs": demo.reward_funcs})
    assert list(run.stages()) == ["ppo", "compare"]
    both = DemoArguments(reward_funcs="length", reward_model_path="judge")
    assert both.ppo_arguments(None, tmp_path).reward_model_path == "judge"


# A run ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A PPO run with a reward model, a built-in function and two of a file that was changed afterwards."""
    root = tmp_path_factory.mktemp("runs")
    (root / "mine.py").write_text(MINE)
    out = root / "ppo-20260101-000000-0001"
    names = ("length:6@0.5", f"{root / 'mine.py'}:polite@-1", f"{root / 'mine.py'}:long")
    assert main([str(word) for word in (
        "ppo", "--output_dir", out, "--reward_model_path", EXAMPLE, "--reward_funcs", *names, *SMALL,
    )]) == 0  # fmt: skip
    (root / "mine.py").write_text(MINE.replace("float(", "99 + float("))
    return Run(out)


def test_the_score_is_the_weighted_sum_and_each_reward_a_curve(trained):
    for row in trained.metrics():
        model, length, polite, long = (row[f"rewards/{name}/mean"] for name in ("model", "length:6", "polite", "long"))
        assert row["objective/scores_raw"] == pytest.approx(model + 0.5 * length - polite + long, abs=1e-5)
        assert 0 <= polite <= 1 and long > 0
    assert trained.rewards() == [("Reward model", 1.0), ("length:6", 0.5), ("polite", -1.0), ("long", 1.0)]


def test_the_live_view_draws_each_reward_and_then_only_new_points(trained):
    first = live.news(live.Snapshot(trained.path), {})
    figure = first["parts"]["rewards"]["figure"]
    texts = " ".join(note["text"] for note in figure["layout"]["annotations"])
    assert all(name in texts for name in ("Reward model", "length:6", "counts × 0.5", "polite", "counts × −1"))
    assert sum("key" in trace["meta"] and "std" not in trace["meta"] for trace in figure["data"]) == 4
    rows = len(trained.metrics())
    later = live.news(live.Snapshot(trained.path), {**first["seen"], "rewards": rows - 1})["parts"]["rewards"]
    assert later["points"]["rewards/polite/mean"] == [trained.metrics()[-1]["rewards/polite/mean"]]
    assert "rewards" not in live.news(live.Snapshot(EXAMPLE), {})["parts"]  # one reward is the score itself


def test_a_name_cannot_write_into_a_figure():
    rows = [{"rewards/a/mean": 1.0, "rewards/b/mean": 0.0, "episode": 1}]
    one, other = curves.reward_panels(rows, [("regex:<a href='x'>" + "y" * 50, 1.0), ("b", 1.0)])
    assert one.title.startswith("regex:&lt;a href=") and one.title.endswith("…") and other.title == "b"


def test_the_run_keeps_the_code_and_says_so_in_the_card(trained):
    config = trained.config()
    digest = config["reward_files"]["mine.py"]
    assert (trained.path / "rewards" / "mine.py").read_text() == MINE
    assert trained.reward_funcs()[1] == f"{trained.path / 'rewards' / 'mine.py'}:polite@-1"
    card = model_card(trained.path / "model")
    assert f"a reward model; length:6 × 0.5; polite × −1 of mine.py (SHA-256 {digest[:12]}); long of" in card
    assert str(trained.path.parent) not in card and "| reward polite |" in card
    command = export.as_command(trained)
    assert "--reward_funcs length:6@0.5" in command


def test_a_comparison_scores_with_the_same_code_and_has_a_column_for_each(trained, command, tmp_path):
    small = ("--num_prompts", 2, "--samples", 2, "--response_length", 8, "--ceiling_samples", 2)
    done = command("compare", "--models", f"ppo={trained.path}", *small, "--output_dir", "out")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    for row in rows:
        model, length, polite, long = (float(row[f"rewards/{n}"]) for n in ("model", "length:6", "polite", "long"))
        assert polite == float("e" in row["response"])
        assert float(row["score"]) == pytest.approx(model + 0.5 * length - polite + long, abs=1e-4)
    means = json.loads((tmp_path / "out" / "summary.json").read_text())["splits"]["test"]["models"]["ppo"]["rewards"]
    of_ppo = [float(row["rewards/long"]) for row in rows if (row["model"], row["split"]) == ("ppo", "test")]
    assert means["rewards/long"] == pytest.approx(sum(of_ppo) / len(of_ppo))
    assert re.search(r"rewards/length:6 +[-\d.]+ +[-\d.]+\n", done.stdout)
    assert (tmp_path / "out" / "rewards" / "mine.py").read_text() == MINE


def test_chat_shows_what_each_reward_gives(trained):
    *_, (_, answers) = voices.conversation(trained, "How do I clean an oven?", [])
    for answer in answers.values():
        assert [(name, weight) for name, weight, _ in answer["parts"]] == trained.rewards()
        total = sum(weight * value for _, weight, value in answer["parts"])
        assert answer["score"] == pytest.approx(total, abs=1e-4)


def test_the_page_compares_a_run_by_its_own_rewards(trained, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(trained.path.parent))
    launched = []
    monkeypatch.setattr(jobs, "launch", lambda kind, settings, **rest: launched.append(settings))
    start_comparison([trained.id], [], 1, 1)
    [settings] = launched
    assert (settings.reward_model_path, settings.reward_funcs) == (str(EXAMPLE), trained.reward_funcs())
    assert settings.response_length == trained.config()["response_length"] != CompareArguments.response_length


# A reward that fails -------------------------------------------------------------------------------------------------


def test_a_function_that_fails_costs_nothing_that_was_learned(command, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    done = command("ppo", "--output_dir", "out", "--reward_funcs", "mine.py:dies", *SMALL)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said == (
        "error: The reward function dies failed: mine.py, line 14: ZeroDivisionError: division by zero. Saved: the "
        "PPO model as of step 2 of 4. Go on with --resume_from_checkpoint out."
    )
    out = Run(tmp_path / "out")
    assert out.status()["state"] == "failed" and out.status()["message"] == said.removeprefix("error: ")
    assert out.model("policy") and len(out.metrics()) == 2
    # Mended, it goes on, and comes to the weights of a run in which nothing failed.
    (tmp_path / "mine.py").write_text(MINE.replace("calls > 2", "False"))
    again = ("--output_dir", "on", "--reward_funcs", "mine.py:dies", "--resume_from_checkpoint", "out")
    done = command("ppo", *SMALL, *again)
    assert done.returncode == 0 and "mine.py has changed since the run that is resumed" in done.stderr
    assert command("ppo", "--output_dir", "whole", "--reward_funcs", "mine.py:dies", *SMALL).returncode == 0
    resumed, whole = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("on", "whole"))
    assert resumed == whole


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """The README's judge in judge.py, and a server for it that answers as its list `moods` says, one mood a call."""
    section = README.read_text(encoding="utf-8").split("## A judge behind HTTP")[1]
    (tmp_path / "judge.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802  (the name that http.server calls)
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            mood = server.moods.pop(0) if server.moods else server.last
            if mood == "slow":
                pause(0.5)
            body = {"scores": [len(text) / 10 for text in asked["completions"]]}
            answer = {"nonsense": b"<html>", "other": b'{"grade": 1}', "words": b'{"scores": ["good"]}'}
            answer = answer.get(mood, json.dumps(body).encode())
            server.answered.append(mood)
            self.send_response(500 if mood == "fails" else 200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words):
            pass

    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: server.waited.append(seconds))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.moods, server.last, server.answered, server.waited = [], "well", [], []
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/score")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_judge_that_is_slow_or_fails_or_talks_nonsense_is_asked_again(judge, command, tmp_path):
    judge.moods = ["well", "slow", "fails", "nonsense", "other", "words", "well"]
    done = command("ppo", "--output_dir", "out", "--reward_funcs", "judge.py:judge", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert judge.answered == ["well", "slow", "fails", "nonsense", "other", "words", "well", "well"]
    assert judge.waited[:4] == [1, 4, 16, 60] and Run(tmp_path / "out").status()["state"] == "finished"


def test_a_judge_that_is_gone_ends_the_run_with_a_sentence_and_a_checkpoint(judge, command, tmp_path):
    judge.moods, judge.last = ["well", "well"], "fails"
    done = command("ppo", "--output_dir", "out", "--reward_funcs", "judge.py:judge", *SMALL)
    assert done.returncode == 2 and "Traceback" not in done.stderr and judge.answered.count("fails") == 5
    said = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r"error: The reward function judge failed: judge\.py, line \d+: RuntimeError: the judge gave no scores, five "
        r"times; at last HTTPError: HTTP Error 500: Internal Server Error\. Saved: the PPO model as of step 2 of 4\. "
        r"Go on with --resume_from_checkpoint out\.",
        said,
    )
    judge.last = "well"
    done = command("ppo", "--output_dir", "on", "--reward_funcs", "judge.py:judge", *SMALL,
                   "--resume_from_checkpoint", "out")  # fmt: skip
    assert done.returncode == 0 and len(Run(tmp_path / "on").metrics()) == 2


# The page ------------------------------------------------------------------------------------------------------------


def test_a_preview_shows_what_ten_answers_earn_and_makes_no_run(root):
    table = table_of(["length:6@0.5", "regex:<b>"], {"response_length": "8"}, None)
    assert table.count("<tr>") == 12 and "<b>" not in table and "length:6 × 0.5" in table
    cells = re.findall(r"<td data-reward='.*?'>(−?[\d.]+)</td>", table.split("<tfoot>")[0])
    assert len(cells) == 30
    for length, pattern, score in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
        length, pattern, score = (float(cell.replace("−", "-")) for cell in (length, pattern, score))
        assert score == pytest.approx(0.5 * length + pattern, abs=0.01)
    assert not root.exists()
    both = table_of(["length:6"], {"response_length": "8"}, "example")
    assert "Reward model" in both
    with pytest.raises(BadInput, match="no reward to preview"):
        table_of([], {}, None)


def test_the_page_starts_with_functions_alone_and_refuses_them_before_a_folder_is_made(root, monkeypatch):
    launched = []
    monkeypatch.setattr(jobs, "launch", lambda kind, settings, **rest: launched.append(settings))
    start_run("ppo", {"reward_funcs": ["length:6"]}, "")
    assert (launched[0].reward_model_path, launched[0].reward_funcs) == (None, ["length:6"])
    start_run("ppo", {"reward_funcs": ["length:6"]}, "example")
    assert launched[1].reward_model_path == str(EXAMPLE)
    with pytest.raises(BadInput, match="did you mean length"):
        start_run("ppo", {"reward_funcs": ["lengt"]}, "")
    with pytest.raises(BadInput, match="PPO needs a reward model"):
        start_run("ppo", {}, "")
    assert len(launched) == 2


@pytest.mark.parametrize("shared", [{"SPACE_ID": "me/lab"}, {"GRADIO_SERVER_NAME": "0.0.0.0"}])
def test_a_page_that_others_use_runs_no_file(root, tmp_path, monkeypatch, shared):
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mine.py").write_text("raise SystemExit('it was run')")
    names = [f"{tmp_path / 'mine.py'}:polite"]
    for attempt in (
        lambda: start_run("ppo", {"reward_funcs": names}, ""),
        lambda: table_of(names, {}, None),
        lambda: jobs.launch("ppo", DemoArguments(reward_funcs=names)),
    ):
        with pytest.raises(BadInput, match="not offered on a page that others use"):
            attempt()
    assert not root.exists()
