"""The page: what it serves, and how it behaves in a browser.

The browser tests run on made-up run directories and a made-up pair of voices; nothing is trained or loaded here.
"""

import asyncio
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import gradio as gr
import pytest
from gradio.state_holder import SessionState
from processes import fill_unfolded, forget, free_port, serving_here
from scipy import stats
from starlette.middleware import Middleware
from starlette.requests import Request

import app
from rlhf.compare import table as comparison
from rlhf.config import BadInput, DemoArguments, SweepArguments, build
from rlhf.everyday import prompt_splits
from rlhf.figures import style
from rlhf.figures.scores import distributions
from rlhf.launch import jobs
from rlhf.models.prompts import Prompt
from rlhf.runs import directory as runs
from rlhf.runs.directory import Run
from rlhf.runs.files import write_json
from rlhf.ui import chat, live, scores, voices
from rlhf.ui.headline import headline
from rlhf.ui.train import Form


ROOT = Path(__file__).resolve().parent.parent
LIVE_ID = "demo-20260101-000000-0001"
FAILED_ID = "ppo-20260101-000000-0002"
PPO_ROWS = Run(runs.EXAMPLE / "ppo").metrics()


def reward_row(step):
    return {"step": step, "loss": 0.7 - 0.003 * step, "accuracy": 0.5 + 0.003 * step, "margin": 0.02 * step}


def ppo_row(step):
    return PPO_ROWS[step - 1]


def make_run(path, kind, state, **status):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"kind": kind, "seed": 0, "total_episodes": 2560}))
    now = time.time()
    run = Run(path)
    run.set_status(state=state, kind=kind, created=now, started=now, pid=os.getpid(), message="", **status)
    return run


def make_demo(path, state):
    demo = make_run(path, "demo", state, phase="ppo", step=1, total_steps=3)
    reward = make_run(path / "reward", "reward", "finished", step=100, total_steps=100)
    ppo = make_run(path / "ppo", "ppo", state, step=10, total_steps=40)
    for step in range(5, 101, 5):
        reward.log(reward_row(step))
    reward.log({"step": 100, "eval_accuracy": 0.85, "eval_loss": 0.4, "eval_margin": 1.0, "label_ceiling": 0.93})
    for step in range(1, 11):
        ppo.log(ppo_row(step))
    for step, answer in ((0, "Throw the pan away."), (10, "Soak the pan overnight.")):
        ppo.log_samples(step, [{"index": 0, "prompt": "How do I save a pan?", "response": answer, "score": step / 5}])
    return demo


def copy_of_the_example(path, state):
    """The example, with PPO at update 100 of 160 where it is still running."""
    shutil.copytree(runs.EXAMPLE, path, ignore=shutil.ignore_patterns("*.safetensors"))
    demo = Run(path)
    if state == "running":
        demo.set_status(state="running", phase="ppo", step=1)
        demo.stages()["ppo"].set_status(state="running", step=100, seconds_left=30)
        (path / "compare" / "status.json").unlink()
        for name in ("scores.csv", "summary.json", "compare/summary.json"):
            (path / name).unlink()
    return demo


def make_comparison(path, count=30):
    """A finished comparison: PPO scores higher on all questions but the first."""
    with comparison.Writer(path / "scores.csv") as file:
        for split in ("test", "unseen"):
            for model, score in (("base", 0.1), ("ppo", 0.9)):
                for number in range(count):
                    said = f"{model} answer number {number} <b>bold</b>"
                    row = (f"{split} question {number}", split, model, 0, said, (score if number else 0.1 - score / 9))
                    rest = (0.5, 1.0, 8 + number % 3, True, 4.0)
                    file.write([dict(zip(comparison.COLUMNS, (*row, *rest), strict=True))])
    splits = comparison.summarize(comparison.read_rows(path / "scores.csv"), "base")
    for found in splits.values():
        found["against_base"]["ppo"]["cautions"] = ["Beware of <b>this</b>."]
    bins = [{"confidence": 0.6, "correct": 0.62, "count": 15}, {"confidence": 0.9, "correct": 0.85, "count": 15}]
    judge = {"size_mb": 11.5, "reliability": bins, "ece": 0.03}
    summary = {"splits": splits, "size_mb": {"base": 11.4, "ppo": 11.4}, "reward_model": judge}
    (path / "summary.json").write_text(json.dumps(summary))


# What the page asks for -------------------------------------------------------------------------------------------


def test_poll_sends_a_figure_once_and_then_only_new_points(root):
    demo = make_demo(root / LIVE_ID, "running")
    first = live.poll({"run": demo.id})
    assert set(first["parts"]) == {"reward", "ppo"}
    assert "figure" in first["parts"]["ppo"]
    assert len(first["samples"]) == 2
    with (root / LIVE_ID / "ppo" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(ppo_row(11)) + '\n{"step": 12, "obj')  # the second line is still being written
    second = live.poll({"run": demo.id, "seen": first["seen"]})
    assert second["parts"]["ppo"]["points"]["episode"] == [64 * 11]
    assert "figure" not in second["parts"]["ppo"]
    assert second["samples"] == []
    assert len(json.dumps(second)) < 2_000


def test_poll_tells_the_speed_that_the_trainer_logged(root):
    demo = copy_of_the_example(root / LIVE_ID, "running")
    assert live.poll({"run": demo.id})["speed"] == PPO_ROWS[-1]["eps"] > 1


def test_a_poll_of_a_running_demo_reads_each_status_and_each_config_once(root, monkeypatch):
    demo, read = copy_of_the_example(root / LIVE_ID, "running"), []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *args, **kw: read.append(path) or read_text(path, *args, **kw))
    first = live.poll({"run": demo.id})
    assert [phase["state"] for phase in first["phases"]] == ["finished", "running", "waiting"]
    assert first["left"] == 30 and "leave" in first
    read = [path for path in read if path.suffix == ".json"]
    assert len(read) == len(set(read)) <= 2 + 2 * 3 + 4  # and where a ceiling may lie: the run and its stages


def test_the_more_pages_look_at_runs_the_less_often_each_looks(monkeypatch):
    now = 1e9
    monkeypatch.setattr(live, "_looked", {})
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    pauses = [live.poll({"run": None, "page": f"page {number}"})["again"] for number in range(30)]
    assert pauses[:6] == [1.0] * 6 and pauses[17] == 3.0 and pauses == sorted(pauses)
    assert max(live.poll({"run": None, "page": f"{number}"})["again"] for number in range(999)) == 5.0
    now += 60  # all but one have gone
    assert live.poll({"run": None, "page": "page 0"})["again"] == 1.0


def test_poll_answers_nonsense_with_a_sentence(root):
    for request in ({"run": "../../etc"}, {"run": "demo-20260101-000000-ffff"}, {"run": 7}, {"run": "x", "seen": 3}):
        assert live.poll(request)["error"].endswith(".")
    assert live.poll({"run": None})["state"] == "none"


def test_the_headline_follows_from_the_numbers():
    running, ended = {"state": "running"}, {"state": "finished"}
    rising = [ppo_row(step) for step in range(1, 31)]
    flat = [{**row, "objective/scores_raw": 0.1} for row in rising]
    falling = [{**row, "objective/scores_raw": -row["objective/scores_raw"]} for row in rising]
    assert headline(running, {"ppo": rising})["text"].startswith("Yes, it is learning: the average score went")
    assert headline(running, {"ppo": flat})["text"].startswith("Not so far")
    assert headline(running, {"ppo": falling})["tone"] == "bad"
    assert (
        "Guessing is right in 50 %"
        in headline(ended, {"reward": [reward_row(step) for step in range(100)]})["details"]
    )
    failed = {"state": "failed", "message": "The disk is full."}
    assert headline(failed, {})["text"] == "The run failed. The disk is full."
    preparing = {"state": "running", "kind": "demo", "preparing": [1024, 2048]}
    assert headline(preparing, {})["text"].endswith("the base model has answered 1,024 of 2,048 questions.")
    live = {"state": "running", "kind": "live", "verdict": "The class prefers the new answers in 62 % of 8 pairs."}
    assert headline(live, {"ppo": rising})["text"] == live["verdict"]  # each state has another reward model


def test_scores_sentence_says_how_sure_it_is(root):
    demo = make_demo(root / LIVE_ID, "finished")
    make_comparison(demo.path)
    of_split = demo.summary()["splits"]["test"]
    against = of_split["against_base"]["ppo"]["score"]
    said = scores.sentence(against, "score", "PPO")
    assert said == "PPO scores higher than the base model in 97 % of comparisons, 0.77 higher on average."
    assert scores.interval_words(against, "test").endswith("to +0.80, from 30 new questions.")
    assert "it is 90 to 100 %" in scores.certainty(of_split, "score", "ppo")
    gain = {"value": -0.1, "ci_low": -0.4, "ci_high": 0.2}
    said = scores.sentence({**against, "gain": gain}, "gold", "PPO")
    assert said.startswith("By the rubric, too close to call: PPO") and said.endswith("0.10 lower on average.")
    same = scores.sentence({**against, "gain": dict.fromkeys(gain, 0.0)}, "score", "PPO")
    assert same == "PPO and the base model score the same on every question."


def test_the_scores_tab_shows_the_numbers_of_the_summary_and_computes_no_interval(root, monkeypatch):
    monkeypatch.setattr(stats, "bootstrap", lambda *args, **kwargs: pytest.fail("intervals were computed"))
    monkeypatch.setattr(stats, "permutation_test", lambda *args, **kwargs: pytest.fail("a test was computed"))
    with gr.Blocks():
        tab = scores.ScoresTab()
    splits = Run(runs.EXAMPLE).summary()["splits"]
    assert set(splits) == {"test", "unseen"}
    for split, of_split in splits.items():
        for measure in ("score", "gold"):
            shown = tab.view("example", measure, split, "ppo")
            against, model = of_split["against_base"]["ppo"][measure], of_split["models"]["ppo"]
            assert f"from {against['n']} " in shown[tab.sentence]
            assert f"in {100 * against['win_rate']['value']:.0f} % of comparisons" in shown[tab.sentence]
            for end in ("ci_low", "ci_high"):
                assert f"{against['gain'][end]:+.2f}" in shown[tab.sentence]
            for number in [model["median"], model["std"]] if measure == "score" else [model["gold_mean"]]:
                assert f"<td>{number:.2f}</td>" in shown[tab.table].replace(' colspan="1"', "")
            assert len(shown[tab.pairs]["rows"]) == against["n"]


def test_the_scores_of_reward_functions_are_called_so(root):
    with gr.Blocks():
        tab = scores.ScoresTab()
    for run, words in ((runs.EXAMPLE, "score by the reward model"), (runs.RECORD, "score by the reward functions")):
        shown = tab.view(run.name, "score", "test", "ppo")
        assert words in json.dumps(shown[tab.figure])


def test_fields_of_the_settings_make_the_form(root):
    import app

    demo = app.build_app()
    labels = {getattr(block, "label", None) for block in demo.blocks.values()}
    assert {"Episodes", "KL coefficient", "Seed", "num prompts", "reward learning rate"} <= labels
    assert "output dir" not in labels
    assert DemoArguments().total_episodes == 12_800


def test_several_prices_of_kl_are_read_from_one_line(root):
    with gr.Blocks():
        form = Form("sweep")
    entered = form.entered({knob: knob.value for knob in form.knobs.values()}) | {"reward_model_path": "x"}
    assert build(SweepArguments, entered) == SweepArguments(reward_model_path="x")
    settings = build(SweepArguments, entered | {"kl_coefs": "0 0.1"})
    assert settings == SweepArguments(reward_model_path="x", kl_coefs=["0", "0.1"])
    with pytest.raises(BadInput, match="kl_coefs needs a value"):
        build(SweepArguments, entered | {"kl_coefs": " "})
    with pytest.raises(BadInput, match="kl_coefs must be numbers"):
        build(SweepArguments, entered | {"kl_coefs": "0, much"})


def test_a_start_before_the_page_has_loaded_shows_its_run(root):
    """The list of runs is still empty then, so what the page shows cannot go by it."""
    run = make_demo(root / LIVE_ID, "running")
    page = app.build_app()
    events = [event for event in page.fns.values() if len(event.outputs) > 20]
    events = [event for event in events if event.targets and event.targets[0][1] == "change"]
    assert len(events) == 2  # a training, a comparison
    for event in events:
        state = SessionState(page)
        state[event.targets[0][0]] = {"run": run.id, "said": "Twice."}
        given = [run.id, *(part.value for part in event.inputs[1:])]
        request = gr.Request(Request({"type": "http", "headers": []}))
        shown = asyncio.run(page.process_api(event, given, state=state, request=request))["data"]
        values = dict(zip((part.elem_id for part in event.outputs), shown, strict=True))
        assert values["run"]["value"] == run.id and values["live"] == run.id
        assert values["train-note"] == {"text": "Twice."}


@pytest.mark.process
def test_page_comes_up_in_ten_seconds_and_without_training_code(tmp_path):
    script = f"""
import sys, time, urllib.request
import app
page = app.build_app()
url = page.launch(**app.launch_options(), prevent_thread_lock=True, server_port={free_port()}, quiet=True)[1]
assert b"RLHF Lab" in urllib.request.urlopen(url).read()
assert time.process_time() < 10, time.process_time()  # not by the clock: the machine may be busy with other work
heavy = {{"torch", "transformers", "trl", "datasets"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "RLHF_RUNS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_machine_too_busy_to_answer_in_three_seconds_serves_the_page_all_the_same():
    import app

    class Slow:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope.get("method") == "HEAD":
                await asyncio.sleep(3.5)
            await self.app(scope, receive, send)

    options = app.launch_options()
    options["app_kwargs"]["middleware"].append(Middleware(Slow))
    with gr.Blocks() as demo:
        pass
    try:
        demo.launch(**options, prevent_thread_lock=True, server_port=free_port(), quiet=True)
    finally:
        demo.close()


# The served page --------------------------------------------------------------------------------------------------


class Fake:
    """A model that says a fixed text; `voices.all_answers` only iterates over it."""

    def __init__(self, text):
        self.text = text


PROMPT = Prompt("How do I save a pan?\n", [1], {})


def speak(voice, prompt, sampling):
    words = voice.model.text.split(" ")
    for count in range(1, len(words) + 1):
        time.sleep(0.1)
        yield " ".join(words[:count]), []


def fake_scores(reward_model, voice, prompts, answers, ids, *functions):
    for name, score in (("base", -0.5), ("ppo", 1.5)):
        answers[name]["score"] = score


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A served page with an example run, a run under way and a failed one; yields (address, root)."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(root))
        example = make_demo(root / "shipped" / "example", "finished")
        make_comparison(example.path)
        (example.path / "ppo" / "model").mkdir()
        (example.path / "ppo" / "model" / "config.json").write_text("{}")
        patch.setattr(runs, "EXAMPLE", example.path)
        failed = make_run(root / FAILED_ID, "ppo", "failed")
        failed.set_status(message="The disk is full.")
        make_demo(root / LIVE_ID, "running")
        patch.setattr(
            voices, "base_voice", lambda run: voices.Voice(Fake("<img src=x onerror=alert(1)> " * 3), 0, "B7")
        )
        patch.setattr(voices, "ppo_voice", lambda run: voices.Voice(Fake("one two three four"), 0, f"{run.id} P9"))
        patch.setattr(voices, "reward_model_of", lambda run: (None, None))
        patch.setattr(voices, "give_scores", fake_scores)
        patch.setattr(voices, "ask", lambda voices, question, turns, sampling: dict.fromkeys(voices, PROMPT))
        patch.setattr(voices, "_answer", speak)
        with serving_here() as address:
            yield address, root


def status_of(request):
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code


def test_foreign_hosts_large_bodies_and_run_files_are_refused(site):
    address, root = site
    assert status_of(urllib.request.Request(address, headers={"Host": "evil.example"})) == 400
    large = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    large.putrequest("POST", "/gradio_api/queue/join")
    large.putheader("Content-Length", "3000000")
    large.endheaders()  # refused by its announced size, before a byte of it is sent
    assert large.getresponse().status == 413
    assert status_of(f"{address}/gradio_api/file={root / LIVE_ID / 'config.json'}") in (403, 404)
    assert status_of(f"{address}/gradio_api/monitoring/summary") in (403, 404)


@pytest.fixture(scope="module")
def window(browser):
    """A page for all tests of this file, with a list of what went wrong in it."""
    page = browser.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: page.problems.append("a dialog opened") or dialog.accept())
    page.set_default_timeout(60_000)
    return page


@pytest.fixture
def page(site, window):
    window.set_viewport_size({"width": 1280, "height": 720})
    yield window
    forget(window, site[0])
    assert window.problems == []


PPO_PLOT = ".chart[data-part=ppo] .plot"


def open_page(page, site, query=""):
    page.goto(f"{site[0]}/{query}")
    page.wait_for_selector(f"{PPO_PLOT} .main-svg")


def points(page):
    return page.evaluate(f"document.querySelector('{PPO_PLOT}').data.find(t => t.meta.key && !t.meta.sign).x.length")


def test_page_attaches_to_the_run_under_way_and_keeps_zoom_while_it_grows(page, site):
    open_page(page, site)
    assert page.locator(".pill").inner_text() == "Running"
    assert page.get_by_role("button", name="Stop").is_enabled()
    assert "episodes/s" in page.locator("#live .clock").inner_text()
    before = points(page)
    page.evaluate(
        f"window.kept = document.querySelector('{PPO_PLOT} .main-svg');"
        f"Plotly.relayout(document.querySelector('{PPO_PLOT}'), {{'xaxis.range': [100, 900]}})"
    )
    run = Run(site[1] / LIVE_ID / "ppo")
    for step in range(before + 1, before + 4):
        run.log(ppo_row(step))
    page.wait_for_function(
        f"document.querySelector('{PPO_PLOT}').data.find(t => t.meta.key && !t.meta.sign).x.length >= {before + 3}"
    )
    assert page.evaluate(f"document.querySelector('{PPO_PLOT}').layout.xaxis.range") == [100, 900]
    assert page.evaluate("window.kept.isConnected")
    page.reload()
    page.wait_for_selector(f"{PPO_PLOT} .main-svg")
    assert points(page) == before + 3
    assert page.get_by_role("button", name="Stop").is_enabled()


def test_slider_shows_the_answers_of_an_earlier_update(page, site):
    open_page(page, site, "?run=example")
    answer = page.locator(".card .ppo .text")
    assert answer.inner_text().strip() == "Soak the pan overnight."
    assert answer.locator("mark").all_inner_texts() == ["Soak", "overnight."]
    page.locator(".when input").fill("0")
    assert answer.inner_text().strip() == "Throw the pan away."


def test_bad_input_is_answered_with_a_sentence_and_starts_nothing(page, site, monkeypatch):
    monkeypatch.setattr(jobs, "launch", lambda *args, **visitor: pytest.fail("a run was started"))
    open_page(page, site, "?run=example")
    page.get_by_label("Learning rate of PPO").fill("abc")
    page.locator("#start").click()
    note = page.locator("#demo-learning_rate .note")
    note.wait_for()
    assert note.inner_text() == "“Learning rate of PPO” must be a number such as 0.0003 or 3e-4, not 'abc'."


def test_a_data_set_can_be_looked_at_before_anything_is_started(page, site, tmp_path):
    rows = [{"prompt": f"<b>How {n}?</b>", "chosen": "Like so.", "rejected": "No." if n else " "} for n in range(10)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    open_page(page, site, "?run=example")
    page.locator(".advanced:visible button").first.click()
    fill_unfolded(page.get_by_label("dataset name").locator("visible=true"), str(tmp_path / "pairs.jsonl"))
    page.get_by_role("button", name="Preview data").locator("visible=true").click()
    shown = page.locator(".block.preview:visible")
    shown.locator("dl").wait_for()
    assert "read without the chat template" in shown.locator("p.note").inner_text()
    assert shown.locator("p:not(.note)").inner_text() == (
        "10 rows of texts: 8 to train on, 1 held out; left out, empty answer: 1."
    )
    assert shown.locator("dd").all_inner_texts()[:3] == ["<b>How 2?</b>", "Like so.", "No."]
    assert shown.locator("tr", has_text="chosen").inner_text().split() == ["chosen", *["8"] * 5]
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_label("dataset name").locator("visible=true").fill("nowhere.csv")
    page.get_by_role("button", name="Preview data").locator("visible=true").click()
    shown.get_by_text("There is no file nowhere.csv; check the path.").wait_for()
    assert shown.locator("dl").count() == 0


def test_start_launches_what_the_form_says_and_stop_stops_it(page, site, monkeypatch):
    started, stopped = [], []
    monkeypatch.setattr(jobs, "launch", lambda *args, visitor, upload: started.append(args) or Run(site[1] / LIVE_ID))
    monkeypatch.setattr(jobs, "stop", lambda run, visitor: stopped.append(run.id))
    open_page(page, site, "?run=example")
    page.get_by_label("Seed").fill("3")
    page.locator("#start").click()
    page.wait_for_selector('.pill[data-state="running"]')
    assert started == [("demo", DemoArguments(seed=3))]
    page.locator("#stop").click()
    deadline = time.monotonic() + 30  # a note may still stand there from before
    while not stopped and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert stopped == [LIVE_ID]
    page.wait_for_selector("#train-note .note")


def test_a_run_can_be_copied_and_downloaded_while_it_is_under_way(page, site):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_page(page, site, f"?run={LIVE_ID}")
    page.get_by_role("button", name="Copy as command").click()
    page.wait_for_selector(".leave .said code")
    assert page.evaluate("navigator.clipboard.readText()") == "python -m rlhf demo --total_episodes 2560 --seed 0"
    page.get_by_role("button", name="Copy as Python").click()
    page.wait_for_function(
        "navigator.clipboard.readText().then(text => text.includes('DemoArguments(total_episodes'))"
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Download run").click()
    assert download.value.suggested_filename == f"{LIVE_ID}.zip"
    with zipfile.ZipFile(download.value.path()) as file:
        packed = file.read(f"{LIVE_ID}/ppo/metrics.jsonl").decode()
    assert packed == (site[1] / LIVE_ID / "ppo" / "metrics.jsonl").read_text()
    assert "without checkpoints" in page.locator(".leave .said").inner_text()


def test_a_failed_run_says_what_happened(page, site):
    page.goto(f"{site[0]}/?run={FAILED_ID}")
    page.wait_for_selector('.live .verdict[data-tone="bad"]')
    assert "The disk is full." in page.locator(".live .verdict").inner_text()


def test_a_failed_run_is_gone_on_with_by_its_button(page, site, monkeypatch):
    run = Run(site[1] / FAILED_ID)
    before = run.status()
    page.goto(f"{site[0]}/?run={FAILED_ID}")
    page.locator("#resume").click()
    page.wait_for_selector('.live .pill[data-state="waiting"]')  # another one is under way
    assert "Next in line, behind" in page.locator(".live .verdict").inner_text()
    monkeypatch.setattr(jobs, "active_run", lambda: None)
    monkeypatch.setattr(jobs, "_begin", lambda run: run.start(10))
    jobs.advance()
    page.wait_for_selector('.live .pill[data-state="running"]')
    page.locator("#stop").wait_for()
    assert not page.locator("#resume").is_visible()
    write_json(run.path / "status.json", before)


def test_both_models_answer_at_once_and_their_words_stay_words(page, site):
    open_page(page, site, "?run=example")
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Your question").fill("How do I save a pan?")
    page.locator("#ask").click()
    page.wait_for_function(
        "['base', 'ppo'].every(name => {"
        "const box = document.querySelector('.turn .' + name);"
        "return box && box.classList.contains('writing') && box.querySelector('.text').textContent.length > 3})"
    )
    page.wait_for_selector(".turn .ppo .score b")
    assert page.locator(".turn .ppo .text").inner_text() == "one two three four"
    assert "<img src=x" in page.locator(".turn .base .text").inner_text()
    assert page.locator(".turn .score b").all_inner_texts() == ["−0.50", "1.50"]
    assert page.locator(".turn .by").all_inner_texts() == ["B7", "example P9"]
    assert page.locator(".dialogue .verdict").inner_text().startswith("PPO scored higher on 1 of 1 question")


def test_scores_can_be_searched_switched_and_downloaded(page, site):
    open_page(page, site, "?run=example")
    page.get_by_role("tab", name="Scores").click()
    page.wait_for_selector("#distributions .main-svg")
    assert page.locator(".scores .verdict").inner_text().startswith("PPO scores higher than the base model")
    assert page.locator(".scores .note").inner_text() == "Beware of <b>this</b>."
    page.wait_for_selector("#reliability .main-svg")
    assert page.locator("#sweep").count() == 0  # no sweep lies in this run's directory
    # A click on the one point below zero shows that question.
    page.evaluate(
        "document.querySelector('#differences .plot').emit('plotly_click', {points: ["
        "{data: {meta: {pick: true}}, customdata: [0]}]})"
    )
    assert page.locator(".pairs .turn.picked h4").inner_text().startswith("test question 0")
    page.get_by_label("Find a word").fill("number 17")
    assert page.locator(".pairs .turn").count() == 1
    assert "<b>bold</b>" in page.locator(".pairs .base .text").inner_text()
    page.get_by_text("Unseen topics", exact=True).click()
    page.wait_for_function("document.querySelector('.scores .sure').textContent.includes('unseen topics')")
    for _ in range(2):
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").click()
        assert Path(download.value.path()).read_text() == (runs.EXAMPLE / "scores.csv").read_text()
        # What was served is cleared after an hour, under a page that is still open.
        for file in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.csv"):
            file.unlink()


def test_own_questions_come_from_a_file_and_what_is_wrong_is_said(page, site, tmp_path):
    open_page(page, site, "?run=example")
    page.get_by_role("tab", name="Scores").click()
    page.get_by_text("Compare other models, or on your own questions").click()
    (tmp_path / "own.csv").write_text("prompt\nHow?\nWhy?\n")
    (tmp_path / "other.csv").write_text("question\nHow?\n")
    upload = page.locator("input[type=file]")
    upload.set_input_files(tmp_path / "own.csv")
    page.wait_for_function("document.querySelector('#own-questions textarea').value === 'How?\\nWhy?'")
    upload.set_input_files(tmp_path / "other.csv")
    page.locator("#compare-note .note", has_text="no column prompt").wait_for()
    page.locator("#compare-start").click()
    page.locator("#compare-note .note", has_text="reward model that this run was trained against is gone").wait_for()


def test_a_figure_drawn_out_of_sight_fits_its_place_when_it_is_seen(page, site):
    page.goto(f"{site[0]}/?run=example")
    page.get_by_role("tab", name="Scores").click()
    page.wait_for_selector(f"{PPO_PLOT} .main-svg", state="attached")
    page.get_by_role("tab", name="Train").click()
    fits = "node => Math.abs(node.querySelector('.main-svg').clientWidth - node.clientWidth) < 2"
    page.wait_for_function(f"[...document.querySelectorAll('.live .plot.drawn')].every({fits})", timeout=5000)


def test_dark_page_draws_in_dark_colours_and_nothing_overflows_a_phone(page, site):
    page.set_viewport_size({"width": 400, "height": 820})
    open_page(page, site, "?run=example&__theme=dark")
    assert style.DARK[style.INK] == page.evaluate(f"document.querySelector('{PPO_PLOT}')._fullLayout.font.color")
    for tab in ("Train", "Chat", "Scores", "About"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_figures_follow_the_page_into_the_dark_and_back_and_words_that_look_like_colours_stay(page, site):
    open_page(page, site, "?run=example&__theme=light")
    figure = distributions([0.0, 1.0], [1.0, 2.0], "score of #0072B2", "color:#D55E00")
    drawn = """() => {
        const node = document.querySelector('#probe'), [box, bar] = node._fullData, words = node._fullLayout;
        return {text: [box.name, bar.name, bar.hovertemplate, words.xaxis.title.text, words.annotations[0].text],
                colors: [box.line.color, bar.marker.color, words.font.color, words.yaxis2.gridcolor],
                painted: node.querySelector('.boxlayer path').style.stroke};
    }"""
    page.evaluate(
        """async figure => {
            const node = document.body.appendChild(document.createElement('div'));
            node.id = 'probe';
            await window.lab.plot(node, figure);
        }""",
        figure.to_plotly_json(),
    )
    light = page.evaluate(drawn)
    assert light["colors"] == [style.BASE, style.BASE, style.INK, style.GRID]
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_function("document.querySelector('#probe')._fullLayout.font.color !== '#1F2328'")
    dark = page.evaluate(drawn)
    assert dark["colors"] == [style.DARK[color] for color in light["colors"]]
    assert dark["painted"] != light["painted"]
    assert dark["text"] == light["text"]
    assert "#0072B2" in dark["text"][3] and "color:#D55E00" in dark["text"][4]
    page.evaluate("document.body.classList.remove('dark')")
    page.wait_for_function("document.querySelector('#probe')._fullLayout.font.color === '#1F2328'")
    assert page.evaluate(drawn) == light


def test_evaluation_on_held_out_prompts_appears_on_the_score_curve_while_the_run_is_shown(page, site):
    open_page(page, site, f"?run={LIVE_ID}&__theme=dark")
    plot = f"document.querySelector('{PPO_PLOT}')"
    dots = f"{plot}.data.find(trace => trace.meta.key === 'eval/score')"
    assert page.evaluate(f"{dots}.x.length") == 0
    ppo = Run(site[1] / LIVE_ID / "ppo")
    for step, score in ((8, 0.5), (10, 0.75)):
        ppo.log({"step": step, "episode": 64 * step, "eval/score": score, "eval/base_score": 0.1})
        page.wait_for_function(f"{dots}.y.at(-1) === {score}")
    assert page.evaluate(f"{dots}.x") == [512, 640]
    assert "held out" in page.evaluate(f"{plot}.layout.annotations[0].text")


def test_a_question_is_text_that_a_tokenizer_reads_and_keeps_its_lines():
    """B10."""
    assert voices.tidy(" def f(x):\r\n    return x\n") == "def f(x):\n    return x"
    with pytest.raises(BadInput, match="write a question"):
        voices.tidy(" \n")


@pytest.mark.process
def test_a_chat_question_is_answered_without_loading_datasets():
    script = """
import sys
from rlhf.ui import voices
voices.warm_up()
assert voices._load.cache_info().currsize == 3  # base, PPO and the reward model have answered
*_, (_, answers) = voices.conversation(voices.shown_run("example"), "Hi there!", [])
assert all(answer["text"] and answer["score"] is not None for answer in answers.values())
assert "datasets" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_questions_to_click_are_test_questions_of_the_world():
    assert set(chat.QUESTIONS) <= set(prompt_splits()["test"])
