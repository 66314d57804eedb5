"""The Train tab: what its headline claims, what it says about a run, and how it behaves in a browser."""

import io
import json
import random
import re
import shutil

import pytest
from PIL import Image
from processes import chromium, serving_here

from rlhf import metrics
from rlhf.config import DemoArguments, build
from rlhf.figures import curves
from rlhf.launch import jobs
from rlhf.runs.directory import EXAMPLE, Run, write_json
from rlhf.ui import expect, live
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
    assert "last run on this machine" in expect.expectation({})
    assert expect.expectation({"total_episodes": "many"}) == ""
    assert "first run" in expect.expectation({"model_name_or_path": "openai-community/gpt2"})


@pytest.mark.parametrize("minutes", ["1", "5"])
def test_a_preset_takes_as_long_as_its_name_says(root, minutes):
    args = build(DemoArguments, expect.preset(minutes, {"seed": "7", "seeds": 4}))
    assert expect.pace().seconds(args) == pytest.approx(60 * int(minutes), rel=0.1)
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
    assert both["rows"][0]["values"] == ["0.1", "0.3", "0.1"]
    laid_over = both["over"]["ppo"]
    assert [trace["yaxis"] for trace in laid_over] == ["y", "y2", "y3", "y4"]
    assert list(laid_over[0]["y"]) == [row[metrics.SCORE] for row in PPO_ROWS]
    assert live.beside({"run": "example", "others": ["gone"]})["error"].endswith(".")


def test_curves_that_are_logged_and_not_shown_can_be_asked_for():
    figures = live.details({"run": "example"})
    assert list(figures) == ["Reward model", "PPO"]
    drawn = {trace["meta"]["key"] for trace in figures["PPO"]["data"] if "key" in trace["meta"]}
    assert {"policy/clipfrac_avg", "grad_norm", "lr"} <= drawn and "val/explained_variance" not in drawn
    assert live.details({"run": "gone"}) == {}


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


# In a browser --------------------------------------------------------------------------------------------------------

OTHER, FAILED, ACTIVE = "demo-20260101-000000-0001", "demo-20260101-000000-0002", "demo-20260101-000000-0003"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The served page with two finished runs, a failed one and one under way; yields its address."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(root))
        finished_copy(root / OTHER, kl_coef=0.3)
        failed = Run.create(root / FAILED, "demo", {"total_episodes": 640})
        failed.finish("failed", "The model mine/gpt could not be downloaded: no network.")
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
    page.wait_for_timeout(500)  # what is typed while the fields unfold may be lost
    page.locator("#demo-num_prompts input, #demo-num_prompts textarea").fill("1")
    fold.click()
    page.locator("#demo-num_prompts").wait_for(state="hidden")
    page.locator("#start").click()
    page.locator("#demo-num_prompts .note").wait_for()
    assert focused(page) == "demo-num_prompts"


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
        box = dot.bounding_box()
        across = {"x": box["x"] + 1, "y": box["y"] + box["height"] / 2, "width": box["width"] - 2, "height": 1}
        shot = Image.open(io.BytesIO(page.screenshot(clip=across))).convert("L")
        middle, ring = shot.getpixel((shot.width // 2, 0)), shot.getpixel((2, 0))
        assert abs(middle - ring) > 100, (theme, middle, ring)


def test_a_preset_fills_the_form_and_the_time_is_said(opened):
    page = opened()
    page.locator("#expected", has_text=re.compile("Takes about")).wait_for()
    page.get_by_role("button", name="1-minute run").click()
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
    page.locator(".others button").click()
    page.wait_for_function(f"{over} === 0")
    page.locator(".detail-curves summary").click()
    page.locator(".detail-curves .main-svg").first.wait_for()
