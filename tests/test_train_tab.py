"""The Train tab: what its headline claims, what it says about a run, and how it behaves in a browser."""

import io
import json
import random
import re
import shutil
from dataclasses import asdict
from urllib.parse import quote

import gradio as gr
import pytest
from PIL import Image
from processes import chromium, fill_unfolded, serving_here

from rlhf import metrics
from rlhf.config import BadInput, DemoArguments, build
from rlhf.figures import curves
from rlhf.kinds import KINDS, startable
from rlhf.launch import jobs, start
from rlhf.runs.directory import EXAMPLE, Run, find_run, list_runs, runs_root
from rlhf.runs.files import write_json
from rlhf.ui import describe, expect, live, train
from rlhf.ui.headline import headline, margin
from rlhf.words import number


PPO_ROWS, REWARD_ROWS = Run(EXAMPLE / "ppo").metrics(), Run(EXAMPLE / "reward").metrics()
RUNNING, ENDED = {"state": "running"}, {"state": "finished"}


def scored(values):
    """Updates of the example with other scores."""
    return [{**PPO_ROWS[n], metrics.SCORE: value} for n, value in enumerate(values)]


# One number for one thing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 30, 200])
def test_headline_curve_and_path_say_the_same_average(count):
    rows = PPO_ROWS[:count]
    shown = curves.recent(rows, metrics.SCORE)
    figure = curves.ppo_curves(rows)
    label = next(trace for trace in figure.data if trace.meta.get("end") == metrics.SCORE)
    assert label.text[-1].strip() == number(shown, 2)
    assert f"to {number(shown, 2)}" in headline(RUNNING, {"ppo": rows})["text"]


def test_a_growing_curve_ends_in_the_same_average_as_one_that_is_drawn_anew(root):
    example = live.Snapshot(EXAMPLE)
    seen = live.news(example, {})["seen"]
    part = live.news(example, {**seen, "ppo": 150, "ceiling": 150})["parts"]
    figure = live.news(example, {})["parts"]["ppo"]["figure"]
    ends = {trace["meta"]["end"]: trace for trace in figure["data"] if "end" in trace["meta"]}
    assert len(part["ppo"]["points"][metrics.SCORE]) == 50
    for key, end in part["ppo"]["ends"].items():
        assert end == {name: list(ends[key][name]) for name in ("x", "y", "text")}
    path = live.news(example, {})["parts"]["ceiling"]["figure"]["data"][-1]
    assert part["ceiling"]["ends"][metrics.SCORE]["y"] == list(path["y"])


# Nothing is claimed that chance alone could have made ----------------------------------------------------------------


def test_four_updates_are_too_short_to_tell():
    said = headline(ENDED, {"ppo": scored([1.40, 1.5, 1.2, 1.13])})
    assert said["tone"] == "short" and said["text"].startswith("Too short to tell")
    assert headline(RUNNING, {"ppo": PPO_ROWS[:4]})["text"].startswith("Too early to tell")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_point_of_a_curve_is_not_learning(count):
    for rows in ({"reward": REWARD_ROWS[: count + 1]}, {"ppo": PPO_ROWS[:count]}):
        assert headline(RUNNING, rows)["tone"] in ("short", "none")


def test_a_score_that_only_jumps_is_seldom_called_a_change():
    dice, claims = random.Random(0), 0
    for _ in range(200):
        said = headline(ENDED, {"ppo": scored([dice.gauss(1, 0.3) for _ in range(40)])})
        claims += said["tone"] in ("good", "bad")
    assert claims <= 20  # one in twenty, and the luck of the dice


def test_a_trend_does_not_count_as_noise():
    dice = random.Random(1)
    still = [dice.gauss(0, 0.3) for _ in range(100)]
    rising = [value + 0.05 * n for n, value in enumerate(still)]
    assert margin(rising, 8, 8) == pytest.approx(margin(still, 8, 8), rel=0.05)
    said = headline(ENDED, {"ppo": scored(rising)})
    assert said["tone"] == "good" and "95 % interval +" in said["details"]


def test_a_model_that_learned_its_few_pairs_by_heart_has_not_learned():
    """Right on all pairs it trains on, and on 3 of 4 that it does not know."""
    rows = [{"step": n, "accuracy": 1.0, "loss": 0.01} for n in range(20)]
    rows.append({"step": 20, "eval_accuracy": 0.75, "eval_runtime": 0.5, "eval_samples_per_second": 8.0})
    said = headline(ENDED, {"reward": rows})
    assert said["tone"] == "short" and "75 % of 4 held-out pairs" in said["text"]
    rows.append({"step": 20, "eval_accuracy": 0.75, "eval_pairs": 1000})
    assert headline(ENDED, {"reward": rows})["tone"] == "good"


def test_a_run_that_failed_before_it_logged_anything_keeps_nothing_and_says_so():
    failed = {"state": "failed", "message": "The model could not be downloaded."}
    assert "below" not in json.dumps(headline(failed, {}) | headline(failed, {"ppo": []}))
    assert "below" in headline(failed, {"ppo": PPO_ROWS[:1]})["details"]


# Axes ----------------------------------------------------------------------------------------------------------------


def test_a_first_point_of_no_size_is_drawn_on_an_axis_of_some():
    figure = curves.ppo_curves(PPO_ROWS[:1], total_episodes=1_000_000_000)
    assert abs(PPO_ROWS[0][metrics.KL]) < 1e-6 and figure.layout.yaxis2.autorangeoptions.include == 1.0
    assert figure.layout.xaxis.exponentformat == "B" and not figure.layout.xaxis.tickformat  # 500M, not 500,000,000


def test_a_score_of_a_thousand_million_is_written_short():
    figure = curves.ppo_curves(scored([1e9, 1.5e9]))
    label = next(trace for trace in figure.data if trace.meta.get("end") == metrics.SCORE)
    assert label.text[-1].strip() == "1.5e+09" and figure.layout.yaxis.exponentformat == "power"


# What a person asks before Start, and about a run --------------------------------------------------------------------


def finished_copy(path, **settings):
    """The example as a run of this machine, with other settings."""
    shutil.copytree(EXAMPLE, path, ignore=shutil.ignore_patterns("*.safetensors"))
    run = Run(path)
    write_json(path / "config.json", {**run.config(), **settings})
    return run


def test_the_time_before_start_is_that_of_the_last_run_here_else_of_the_example(root):
    pace, seconds = expect.pace(), Run(EXAMPLE).summary()["seconds"]["total"]
    assert not pace.own and pace.seconds(DemoArguments(seeds=3)) == pytest.approx(seconds, rel=0.02)
    assert "example run" in expect.expectation({})
    run = finished_copy(root / "demo-20260101-000000-0001")
    slow = [{**row, "eps": row["eps"] / 10} for row in run.stages()["ppo"].metrics()]
    (run.path / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slow))
    assert expect.pace().own and expect.pace().episode == pytest.approx(10 * pace.episode)
    assert "the last one on this machine" in expect.expectation({})
    assert expect.expectation({"total_episodes": "many"}) == ""
    assert "first run" in expect.expectation({"model_name_or_path": "openai-community/gpt2"})


def ended(kind, path, seconds, metrics=(), **settings):
    """A run of this kind that took so many seconds."""
    run = Run.create(path, kind, {**asdict(build(KINDS[kind].settings, settings)), **settings})
    for row in metrics:
        run.log(row)
    run.set_status(state="finished", created=1000.0, ended=1000.0 + seconds)
    return run


def test_the_example_took_as_many_steps_as_the_time_before_start_counts_on():
    reward = Run(EXAMPLE / "reward")
    config = reward.config()
    assert (config["per_device_train_batch_size"], config["num_train_epochs"], config["max_steps"]) == (32, 1, -1)
    assert reward.status()["total_steps"] == expect.REWARD_STEPS


def test_every_kind_says_how_long_it_takes_if_one_has_ended(root):
    usual = {kind: expect.expectation({}, kind) for kind in startable()}
    took = Run(EXAMPLE).summary()["seconds"]
    assert (
        usual["reward"].startswith(f"Takes {expect.in_words(took['reward'])}, ") and "example run" in usual["reward"]
    )
    assert usual["ppo"].startswith(f"Takes {expect.in_words(took['ppo'])}, ")
    twice = expect.expectation({"total_episodes": "25600", "ceiling_samples": "128"}, "ppo")
    assert twice.startswith(f"Takes {expect.in_words(2 * took['ppo'])}, ")
    assert "not known yet" in usual["dpo"]
    assert "not known yet" in expect.expectation({"dataset_name": "mine.jsonl"}, "reward")
    assert all(expect.expectation({"seed": "x"}, kind) == "" for kind in startable())
    # A run here counts more than the example, and one of a demo as much as one by itself.
    finished_copy(root / "demo-20260101-000000-0001")
    assert "last one on this machine" in expect.expectation({}, "reward")
    ended("dpo", root / "dpo-20260102-000000-0001", 112, [{"step": 50, "epoch": 0.25}], max_steps=50)
    assert expect.expectation({"max_steps": "50"}, "dpo").startswith("Takes about 2 minutes")
    assert expect.expectation({"max_steps": "100"}, "dpo").startswith("Takes about 4 minutes")
    assert expect.expectation({"max_steps": "-1"}, "dpo").startswith("Takes about 8 minutes")
    given = {"reward_model_path": "everyday"}
    ended("sweep", root / "sweep-20260102-000000-0001", 600, **given, dataset_name="mine.jsonl")
    told = expect.expectation({"dataset_name": "mine.jsonl", "seeds": "2", "ceiling_samples": "0"}, "sweep")
    assert told.startswith("Takes about 18 minutes") and "last one" in told


def test_a_space_says_how_long_a_run_takes(root, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    with gr.Blocks() as page:
        tab = train.TrainTab()
    values = {knob: knob.value for form in tab.forms.values() for knob in form.knobs.values()}
    assert tab.expected.visible and not tab.presets.visible
    for kind in startable():
        assert "akes" in tab._expect({tab.mode: kind, **values}), kind
    assert page


@pytest.mark.parametrize("minutes", ["1", "5"])
def test_a_preset_takes_as_long_as_its_name_says(root, minutes):
    args = build(DemoArguments, expect.preset(minutes, {"seed": "7", "seeds": 4}))
    seconds, most = expect.pace().seconds(args), DemoArguments.total_episodes
    assert (
        seconds == pytest.approx(60 * int(minutes), rel=0.1)
        or seconds < 60 * int(minutes)
        and most == args.total_episodes
    )
    assert args.seed == 7 and args.total_episodes % args.per_device_train_batch_size == 0
    assert args.total_episodes >= 10 * args.per_device_train_batch_size  # else there is nothing to see


def test_lengths_of_time_as_people_say_them():
    said = [expect.in_words(seconds) for seconds in (20, 60, 200, 4 * 3600)]
    assert said == ["under a minute", "about a minute", "about 3 minutes", "about 4 hours"]


def test_settings_that_differ_come_first(root):
    alone = live.beside({"run": "example"})
    first, second = alone["rows"][:2]
    assert (first["name"], first["values"], first["differs"]) == ("seeds", ["3", "1"], True) and not second["differs"]
    other = finished_copy(root / "demo-20260101-000000-0001", kl_coef=0.3)
    both = live.beside({"run": "example", "others": [other.id]})
    assert [row["name"] for row in both["rows"] if row["differs"]] == ["KL coefficient"]
    assert both["rows"][0]["values"] == ["0.12", "0.3", "0.12"]
    laid_over = both["over"]["ppo"]
    assert [trace["yaxis"] for trace in laid_over] == ["y", "y2", "y3", "y4"]
    assert list(laid_over[0]["y"]) == [row[metrics.SCORE] for row in PPO_ROWS]
    assert live.beside({"run": "example", "others": ["gone"]})["error"].endswith(".")


def test_curves_that_are_logged_and_not_shown_can_be_asked_for():
    figures = live.details({"run": "example"})
    assert list(figures) == ["Reward model", "PPO"]
    drawn = {trace["meta"]["key"] for trace in figures["PPO"]["data"] if "key" in trace["meta"]}
    assert {"policy/clipfrac_avg", "grad_norm", "lr"} <= drawn and "val/explained_variance" not in drawn
    assert live.details({"run": "gone"}) == {"error": "There is no such run; choose one from the list."}


@pytest.mark.parametrize("kind", ["reward", "ppo", "dpo"])
def test_every_metric_that_a_run_logs_has_a_curve_and_another_runs_is_laid_over_it(root, kind):
    rows = {"reward": REWARD_ROWS, "ppo": PPO_ROWS}.get(kind) or [
        {"step": n, "loss": 0.6, "rewards/margins": 0.1 * n, "logps/chosen": -9.0, "eval_logps/chosen": -8.0}
        for n in range(4)
    ]
    ids = []
    for seed in range(2):
        run = Run.create(root / f"{kind}-20260101-000000-000{seed}", kind, {"seed": seed})
        for row in rows:
            run.log(row)
        ids.append(run.id)
    first, other = ids
    found = live.details({"run": first, "others": [other]})
    (details,) = found.values()
    main = live.figure_of(kind, Run(root / first), rows).to_plotly_json()
    drawn = {trace["meta"].get(name) for part in (main, details) for trace in part["data"] if trace["meta"]
             for name in ("key", "std")}  # fmt: skip
    logged = {key for row in rows for key in row if sum(key in line for line in rows) > 1}
    assert logged - drawn == logged & {"step", "episode", "epoch", "time"}
    over = [trace for trace in details["data"] if trace["meta"].get("over") == "B"]
    curves_drawn = [trace for trace in details["data"] if trace["meta"].get("key") and trace["mode"] == "lines"]
    assert len(over) == len(curves_drawn) and [list(trace["y"]) for trace in over] == [
        list(trace["y"]) for trace in curves_drawn
    ]
    axes = [axis["domain"] for name, axis in details["layout"].items() if name.startswith("yaxis")]
    assert all(0 <= low < high <= 1 for low, high in axes) and len(axes) == len(over)
    laid_over = live.beside({"run": first, "others": [other]})["over"][kind]
    assert len(laid_over) == len(curves.PANELS[kind])


def test_sample_answers_show_the_rubric_only_where_there_is_one(root):
    samples = live.news(live.Snapshot(EXAMPLE), {})["samples"]
    off_topic = next(s for s in samples if s["score"] > 3 and s["response"].startswith("You could leave the root end"))
    assert off_topic["gold"] == pytest.approx(0.2)  # a high score for an answer about onions
    other = finished_copy(root / "demo-20260101-000000-0001", dataset_name="mine.jsonl")
    write_json(other.path / "ppo" / "config.json", {**other.stages()["ppo"].config(), "dataset_name": "mine.jsonl"})
    assert all("gold" not in sample for sample in live.news(live.Snapshot(other.path), {})["samples"])


def test_a_stopped_run_says_what_was_kept_and_a_stopped_comparison_is_not_called_done():
    message = "Stopped. Saved: the reward model as of step 2 of 282."
    said = headline({"state": "stopped", "message": message}, {"reward": REWARD_ROWS[:3]})
    assert said["details"].startswith(message) and message not in said["text"]
    for kind, rows in (("compare", {}), ("sweep", {}), ("demo", {"reward": []})):
        said = headline({"state": "stopped", "kind": kind, "step": 3, "message": message}, rows)
        assert (said["text"], said["details"]) == (message, "")


def test_a_preview_says_that_letters_were_guessed(tmp_path):
    rows = [f"Où est {n}?,là,ici" for n in range(20)]
    (tmp_path / "pairs.csv").write_bytes("\n".join(["prompt,chosen,rejected", *rows]).encode("cp1252"))
    shown = train._preview(str(tmp_path / "pairs.csv"), "everyday")
    assert "pairs.csv is not in UTF-8 and was read as Windows-1252" in shown and "20 rows of texts" in shown


@pytest.mark.parametrize("kind", ["demo", "ppo"])
def test_an_answer_too_long_for_a_runs_model_is_told_before_a_run_is_made(root, tmp_path, monkeypatch, kind):
    """As for a folder with a model: a run's, one in the cache of the Hub, one that also reads images."""
    run = Run.create(tmp_path / "mine", "demo", {})
    cached = tmp_path / "hub" / "models--someone--small" / "snapshots" / ("0" * 40)
    (tmp_path / "images").mkdir()
    for folder in (run.path / "ppo" / "model", cached):
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {"max_position_embeddings": 100})
    write_json(tmp_path / "images" / "config.json", {"text_config": {"max_position_embeddings": 100}})
    (cached.parents[1] / "refs").mkdir()
    (cached.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in (str(run.path), "someone/small", str(tmp_path / "images")):
        with pytest.raises(BadInput, match="response_length must be at most 99: .* reads 100 tokens") as told:
            start.start_run(kind, {"model_name_or_path": name, "response_length": "100"}, "example")
        assert told.value.field == "response_length"
    assert list(list_runs()) == []


def test_the_head_of_the_page_says_whose_preferences_they_are(root):
    assert describe("example") == "Example run, seed 0, preferences of simulated people"
    own = finished_copy(root / "demo-20260101-000000-0001")
    assert describe(own.id) == f"{own.id}, seed 0, simulated people"
    other = finished_copy(root / "demo-20260101-000000-0002", dataset_name="mine.jsonl")
    assert describe(other.id) == f"{other.id}, seed 0"
    alone = finished_copy(root / "demo-20260101-000000-0003", feedback="choices", feedback_only=True)
    assert describe(alone.id) == f"{alone.id}, seed 0, your own choices"
    both = finished_copy(root / "demo-20260101-000000-0004", feedback="choices")
    assert describe(both.id) == f"{both.id}, seed 0, your own choices, simulated people"


# In a browser --------------------------------------------------------------------------------------------------------

OTHER, FAILED, ACTIVE = "demo-20260101-000000-0001", "demo-20260101-000000-0002", "demo-20260101-000000-0003"
NAMED = "a&b <i>#1 50 % sure?"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The served page with two finished runs, a failed one and one under way; yields its address."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(root))
        finished_copy(root / OTHER, kl_coef=0.3)
        failed = Run.create(root / FAILED, "demo", {"total_episodes": 640})
        failed.finish("failed", "The model mine/gpt could not be downloaded: no network.")
        finished_copy(root / NAMED)
        active = finished_copy(root / ACTIVE)
        active.set_status(state="running")
        active.stages()["ppo"].set_status(state="running")
        patch.setattr(jobs, "active_run", lambda: None)
        with serving_here() as address:
            yield f"{address}/"


@pytest.fixture(scope="module")
def browser(site):
    """One page for all tests; each goes to an address of its own."""
    with chromium() as browser:
        page = browser.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.set_default_timeout(60_000)
        yield page


@pytest.fixture
def opened(browser, site):
    """Opens the page at a query and a size of the window; returns the page."""

    def go(query="run=example", width=1280, height=720):
        browser.set_viewport_size({"width": width, "height": height})
        browser.goto(f"{site}?{query}")
        browser.wait_for_selector(".live .verdict:not(:empty)", state="attached")
        return browser

    yield go
    assert browser.problems == []


def focused(page):
    return page.evaluate("document.activeElement.closest('.block[id]')?.id")


def test_an_error_stands_beside_its_field_also_under_advanced_and_goes_when_it_is_mended(opened):
    page = opened()
    page.locator("#demo-learning_rate input, #demo-learning_rate textarea").fill("abc")
    page.locator("#start").click()
    page.locator("#demo-learning_rate .note").wait_for()
    assert "“Learning rate of PPO” must be a number" in page.locator(".field-note").inner_text()
    assert focused(page) == "demo-learning_rate" and page.locator("[aria-invalid=true]").count() == 1
    page.keyboard.press("Control+A")
    page.keyboard.type("0.0003")
    page.locator(".field-note").wait_for(state="detached")
    fold = page.locator("#knobs-demo .advanced button").first
    fold.click()
    page.locator("#demo-num_prompts").wait_for()
    fill_unfolded(page.locator("#demo-num_prompts :is(input, textarea)"), "1")
    fold.click()
    page.locator("#demo-num_prompts").wait_for(state="hidden")
    page.locator("#start").click()
    page.locator("#demo-num_prompts .note").wait_for()
    assert focused(page) == "demo-num_prompts"


def test_what_is_wrong_with_a_reward_stands_beside_it_also_when_it_was_folded_away(opened, tmp_path):
    page = opened()
    page.locator("#mode label", has_text="PPO only").click()
    fold = page.get_by_role("button", name="Rewards of your own")
    fold.click()
    rewards = tmp_path / "my rewards.py"
    rewards.write_text("def polite(completions, **kwargs):\n    return [0.0 for _ in completions]\n")
    wrong = {
        "reward-regex": ("(", r"\?$", "is no regular expression"),
        "reward-length": ("many", "12", "takes a number of words"),
        "reward-length-weight": ("heavy", "0.5", "“About so many words” must be a number"),
        "reward-file": (f"{rewards}:polit", f"{rewards}:polite@-1", "did you mean polite?"),
        "ppo-kl_coef": ("x", "0.1", "must be a number"),  # all rewards are well by now, and nothing has been started
    }
    for name in ("reward-regex", "reward-length"):
        page.locator(f"#{name} :is(input, textarea)").fill(wrong[name][0])
    fold.click()
    page.locator("#reward-regex").wait_for(state="hidden")
    for name in ("reward-length", *wrong):
        text, right, said = wrong[name]
        page.locator(f"#{name} :is(input, textarea)").fill(text, force=True)
        page.locator("#start").click()
        page.locator(f"#{name} .note", has_text=said).wait_for()
        assert focused(page) == name
        page.locator(f"#{name} :is(input, textarea)").fill(right)
        page.locator(".field-note").wait_for(state="detached")


def test_the_address_names_run_and_tab_and_a_reload_comes_back(opened):
    page = opened(f"run={OTHER}")
    page.get_by_role("tab", name="Scores").click()
    page.wait_for_function("location.search.includes('tab=scores')")
    assert f"run={OTHER}" in page.url
    page.reload()
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('Scores')")
    page.get_by_role("tab", name="Train").click()
    page.locator("#run input").click()
    page.get_by_role("option", name="Example run").click()
    page.wait_for_function("location.search.includes('run=example') && location.search.includes('tab=train')")


def test_a_run_with_signs_in_its_name_can_be_shown_taken_along_and_come_back_to(opened):
    page = opened(f"run={quote(NAMED)}")
    for tab, button in (("Train", "Download run"), ("Scores", "Download CSV")):
        page.get_by_role("tab", name=tab).click()
        with page.expect_download() as download:
            page.get_by_role("button", name=button).click()
        assert download.value.failure() is None and download.value.suggested_filename.startswith(
            "a_b _i__1 50 _ sure_"
        )
    page.reload()
    page.wait_for_selector("#lengths .main-svg")
    assert page.locator("#run input").input_value().startswith(f"{NAMED} · Reward and PPO · ")


def test_a_run_that_was_started_from_far_down_comes_into_sight(opened, monkeypatch):
    page = opened(width=1280, height=500)
    monkeypatch.setattr(train, "start_run", lambda *given: find_run(ACTIVE))
    page.locator("#knobs-demo .advanced button").first.click()
    page.locator("#demo-num_prompts").wait_for()
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    assert page.locator(".live .verdict").bounding_box()["y"] < 0
    page.locator("#start").evaluate("button => button.click()")
    page.wait_for_function(f"location.search.includes('run={ACTIVE}')")
    page.wait_for_function("(({top, bottom}) => top >= 0 && bottom <= innerHeight)"
                           "(document.querySelector('.live .verdict').getBoundingClientRect())")  # fmt: skip


def test_a_run_gets_a_name_and_is_deleted_by_a_second_click(opened):
    extra = finished_copy(runs_root() / "demo-20260101-000000-0009")
    page = opened(f"run={extra.id}")
    page.locator("#own-run button").first.click()
    page.locator("#own-name").wait_for()
    fill_unfolded(page.locator("#own-name :is(input, textarea)"), "Polite & <i>short</i>")
    page.locator("#own-save").click()
    page.locator("#own-said", has_text="Saved.").wait_for()
    assert page.locator("#run input").input_value().startswith("Polite & <i>short</i> · Reward and PPO")
    assert page.locator(".noted").inner_text() == "Polite & <i>short</i>"
    page.locator("#own-delete").click()
    page.locator("#own-said", has_text="Delete Polite & <i>short</i> · ").wait_for()
    page.locator("#own-no").click()
    page.locator("#own-yes").wait_for(state="hidden")
    page.locator("#own-delete").click()
    page.locator("#own-yes").click()
    page.locator("#train-note", has_text="was deleted.").wait_for()
    page.wait_for_function("location.search.includes('run=example')")
    assert not extra.path.exists() and not page.locator("#own-run").is_visible()


def test_a_figure_is_one_stop_of_the_tab_key_and_uploads_nothing(opened):
    page = opened()
    page.wait_for_selector(".chart[data-part=ceiling] .modebar-btn", state="attached")
    bars = page.evaluate(
        "[...document.querySelectorAll('.live .modebar')].filter(bar => bar.offsetParent).map(bar => "
        "[...bar.querySelectorAll('.modebar-btn')].filter(button => button.tabIndex === 0).length)"
    )
    assert bars and set(bars) == {1}
    first = page.locator(".live .modebar-btn[tabindex='0']").first
    first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.matches('.modebar-btn[tabindex=\"0\"]')")
    assert not first.evaluate("node => node === document.activeElement && node.previousElementSibling === null")
    assert page.locator("[data-title*='Share'], [aria-label*='Share']").count() == 0


def test_a_list_closes_when_the_tab_key_leaves_it(opened):
    page = opened()
    for name in ("#recipe", "#run"):
        page.locator(f"{name} input").click()
        page.locator("ul[role=listbox]").wait_for()
        page.keyboard.press("Tab")
        page.locator("ul[role=listbox]").wait_for(state="detached")


def test_the_form_is_folded_on_a_phone_and_during_a_run(opened):
    page = opened(width=400, height=800)
    assert not page.locator("#mode").is_visible()
    assert page.locator(".live .verdict").bounding_box()["y"] < 400
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_role("button", name="Show settings").click()
    assert page.locator("#mode").is_visible()
    page = opened(f"run={ACTIVE}")
    page.wait_for_selector(".train.folded")
    assert page.locator("#stop").is_enabled() and not page.locator("#mode").is_visible()
    # The two figures share the width that the form leaves.
    assert page.locator(".chart[data-part=ppo]").bounding_box()["width"] > 0.4 * 1280
    page = opened()
    page.wait_for_selector(".train:not(.folded)")
    assert page.locator("#mode").is_visible()


def test_a_run_that_failed_before_its_first_step_shows_no_empty_figures(opened):
    page = opened(f"run={FAILED}")
    page.wait_for_selector('.verdict[data-tone="bad"]')
    assert "could not be downloaded" in page.locator(".live .verdict").inner_text()
    assert "below" not in page.locator(".live").inner_text()
    assert page.locator(".live .chart:visible").count() == 0


def test_words_of_the_trade_are_explained_where_they_stand(opened):
    page = opened()
    gloss = page.locator(".simulated")
    gloss.wait_for()
    assert "Typing errors are part of the questions. People are simulated here" in gloss.inner_text()
    length = page.locator("#demo-response_length")
    if not length.is_visible():
        page.locator("#knobs-demo .advanced button").first.click()
        length.wait_for()
    assert "64 tokens are about 45 words" in length.inner_text()


def test_a_sample_answer_stands_with_its_score_and_its_grade(opened):
    page = opened()
    page.locator(".card .answer .score").first.wait_for()
    kinds = [answer.locator(".score").all_inner_texts() for answer in page.locator(".card .answer").all()]
    assert kinds and all("score" in both[0] and "rubric" in both[1] for both in kinds)
    assert "that is called reward hacking" in page.locator(".simulated").inner_text()


def test_a_radio_shows_its_dot_in_the_dark_and_stays_round_in_focus(opened):
    for theme in ("light", "dark"):
        page = opened(f"run=example&__theme={theme}")
        dot = page.locator("#mode input:checked")
        dot.focus()
        assert dot.evaluate("node => getComputedStyle(node).borderRadius") == "9999px"
        for _ in range(50):  # the browser may draw it a little later, on a busy machine
            shot = Image.open(io.BytesIO(dot.screenshot())).convert("L")
            middle, ring = (shot.getpixel((x, shot.height // 2)) for x in (shot.width // 2, 3))
            if abs(middle - ring) > 100:
                break
            page.wait_for_timeout(100)
        assert abs(middle - ring) > 100, (theme, middle, ring)


def test_a_preset_fills_the_form_and_the_time_is_said(opened):
    page = opened()
    page.locator("#expected", has_text=re.compile("Takes about")).wait_for()
    page.get_by_role("button", name="1-minute run").click()
    page.locator("#expected", has_text="about a minute").wait_for()
    page.locator("#mode label", has_text="DPO").click()
    page.locator("#expected", has_text="not known yet").wait_for()
    page.locator("#mode label", has_text="Reward model only").click()
    page.locator("#expected", has_text="last one on this machine").wait_for()
    page.locator("#mode label", has_text="Reward model, then PPO").click()
    page.locator("#expected", has_text="about a minute").wait_for()
    episodes = page.locator("#demo-total_episodes input, #demo-total_episodes textarea").input_value()
    assert 640 <= int(episodes) < 6400


def test_another_run_is_laid_over_the_curves_and_what_differs_is_said(opened):
    page = opened()
    page.locator(".given-settings summary").click()
    page.locator(".given tbody tr.differs", has_text="seeds").wait_for()
    page.locator(".given-settings select").select_option(OTHER)
    page.locator(".given tr.differs", has_text="KL coefficient").wait_for()
    over = "document.querySelector('.chart[data-part=ppo] .plot').data.filter(t => t.meta?.over).length"
    page.wait_for_function(f"{over} === 4")
    page.locator(".detail-curves summary").click()
    page.locator(".detail-curves .main-svg").first.wait_for()
    more = "[...document.querySelectorAll('.detail .plot')].at(-1).data.filter(t => t.meta?.over).length"
    page.wait_for_function(f"{more} > 20")
    page.locator(".others button").click()
    page.wait_for_function(f"{over} === 0 && {more} === 0")
