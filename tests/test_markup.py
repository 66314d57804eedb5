"""Texts of models, people and files that a browser would take for markup or code stay texts, wherever they appear.

Every place gets every text; with --long each in four more spellings.
"""

import csv
import json
import shutil

import pytest
from processes import fill_unfolded, serving_here
from test_access import UNFOLD, ask, click_point
from test_app import PROMPT, Fake, fake_scores

from rlhf import models
from rlhf.feedback import Store
from rlhf.feedback.desk import store_of
from rlhf.runs.directory import EXAMPLE, Run, find_run
from rlhf.runs.files import read_json, write_json
from rlhf.ui import api, voices


OUTSIDE = "http://203.0.113.9"
"""An address that nobody has (RFC 5737)."""
MARKUP = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    f"<img src={OUTSIDE}/1.png>",
    "<svg onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<details open ontoggle=alert(1)>more</details>",
    "<input autofocus onfocus=alert(1)>",
    "<video src=x onerror=alert(1)></video>",
    f"<audio autoplay src={OUTSIDE}/2.mp3></audio>",
    "<object data=javascript:alert(1)></object>",
    f"<embed src={OUTSIDE}/3>",
    f"<link rel=stylesheet href={OUTSIDE}/4.css>",
    f"<style>@import '{OUTSIDE}/5.css';</style>",
    f"<b style='background:url({OUTSIDE}/6.png)'>bold</b>",
    f"<meta http-equiv=refresh content='0;url={OUTSIDE}/7'>",
    f"<base href={OUTSIDE}/8/>",
    f"<form action={OUTSIDE}/9><button autofocus onfocus=alert(1)>go</button></form>",
    "<math><mtext><img src=x onerror=alert(1)></mtext></math>",
    "<a href=javascript:alert(1)>here</a>",
    "[here](javascript:alert(1))",
    f"![picture]({OUTSIDE}/10.png)",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    "</textarea></script></style><img src=x onerror=alert(1)>",
    "&lt;img src=x onerror=alert(1)&gt;",
    "&#60;img src=x onerror=alert(1)&#62;",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[><img src=x onerror=alert(1)>]]>",
    "$\\href{javascript:alert(1)}{here}$",
    "{{alert(1)}} ${alert(1)} <%= alert(1) %>",
    "`<img src=x onerror=alert(1)>`",
    "javascript:alert(1)",
)
SPELLINGS = (
    str.upper,
    lambda text: text.replace(" ", "/").replace("script:", "scr\tipt:"),
    lambda text: f"<{text}>",
    lambda text: text.replace("<", "%3C").replace(">", "%3E"),
)
RUN, FAILED = "demo-20260101-000000-0001", "ppo-20260101-000000-0002"
OTHER = f"<a href='{OUTSIDE}/11'>%{{y}}</a>"
"""What a third model of the comparison is called, and a metric of the run's own."""

MADE = """() => [...document.querySelectorAll(`[onerror], [onload], [onfocus], [ontoggle], [onbegin], iframe, object,
    embed, math, meta[http-equiv=refresh], [*|href^="javascript:"], [*|href*="203.0.113.9"], [src*="203.0.113.9"],
    [action*="203.0.113.9"]`)].map(node => node.outerHTML.slice(0, 200))"""
"""What of the page a text has made."""


@pytest.fixture(scope="module")
def texts(long):
    """Each with a number, so that no two are the same."""
    more = [spell(text) for spell in SPELLINGS for text in MARKUP] if long else []
    return [f"{number} {text}" for number, text in enumerate([*MARKUP, *more])]


def rewritten(run, texts):
    """The texts of a run, in the files that the program has written, exchanged for these."""
    path = run.path / "ppo" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"prompt": texts[row["index"] % len(texts)], "response": texts[number % len(texts)]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = run.path / "ppo" / "metrics.jsonl"
    rows = [json.loads(line) | {OTHER: 1.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with (run.path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    asked = {
        prompt: f"{texts[number % len(texts)]} {number}"
        for number, prompt in enumerate({r["prompt"]: 0 for r in rows})
    }
    for number, row in enumerate(rows):
        row |= {"prompt": asked[row["prompt"]], "response": texts[number % len(texts)]}
    rows += [row | {"model": OTHER} for row in rows if row["model"] == "ppo"]
    with (run.path / "scores.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)

    summary = run.summary()
    for number, pair in enumerate(summary["reward_model"]["worst"]):
        pair |= dict.fromkeys(("prompt", "chosen", "rejected"), texts[number % len(texts)])
    for split in summary["splits"].values():
        for part in ("models", "against_base"):
            split[part][OTHER] = split[part]["ppo"]
        split["against_base"]["ppo"]["cautions"] = texts
    write_json(run.path / "summary.json", summary)
    config = read_json(run.path / "config.json")
    write_json(run.path / "config.json", config | {"dataset_name": texts[2], "model_name_or_path": texts[1]})


@pytest.fixture(scope="module")
def site(tmp_path_factory, base, texts):
    """The page with a demo all of whose texts are these, a failed run, models that answer so, and a question."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(root))
        shutil.copytree(EXAMPLE, root / RUN, ignore=shutil.ignore_patterns("sweep", "methods", "*.safetensors"))
        rewritten(Run(root / RUN), texts)
        api.annotate(RUN, texts[1], " ".join(texts)[:500])
        failed = Run(root / FAILED)
        failed.path.mkdir()
        write_json(failed.path / "config.json", {"kind": "ppo", "reward_model_path": texts[0]})
        failed.set_status(state="failed", kind="ppo", created=0.0, message=" ".join(texts))
        for name in ("base_voice", "ppo_voice"):
            patch.setattr(voices, name, lambda run: voices.Voice(Fake("\n\n".join(texts)), 0, texts[1]))
        patch.setattr(voices, "reward_model_of", lambda run: (None, None))
        patch.setattr(voices, "give_scores", fake_scores)
        patch.setattr(voices, "ask", lambda voices, question, turns, sampling: dict.fromkeys(voices, PROMPT))
        patch.setattr(voices, "_answer", lambda voice, prompt, sampling: iter([(voice.model.text, [])]))
        store = Store.open(store_of("everyday"), "everyday", models.revision(base[0]))
        words = "\n".join(texts)
        store.add((f"{n}\n", f"{n} {words}", f"{n} {words}", f"{words} {n}", ("base", "base")) for n in range(40))
        with serving_here() as address:
            yield address


@pytest.fixture(scope="module")
def window(site, browser):
    """A page, and what should not have happened in it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: (page.problems.append(dialog.message), dialog.accept()))
    page.on("request", lambda asked: OUTSIDE in asked.url and page.problems.append(asked.url))
    page.context.on("page", lambda other: page.problems.append(other.url))
    page.set_default_timeout(60_000)
    return page


@pytest.fixture
def page(window, site):
    yield window
    window.wait_for_timeout(300)  # what has been made may need a moment to act
    assert window.evaluate(MADE) == [] and window.url.startswith(site)
    assert window.problems == []


def opened(page, site, tab, run=RUN):
    page.goto(f"{site}/?run={run}&tab={tab}")
    return page


def words(text):
    """A text as a browser shows it, without its line breaks."""
    return " ".join(text.split())


def test_sample_answers_of_a_run_its_settings_and_its_note(page, site, texts):
    opened(page, site, "train").locator(".card .ppo .text").first.wait_for()
    page.evaluate(UNFOLD)
    slider, found = page.locator(".when input"), set()
    for step in range(int(slider.get_attribute("max")) + 1):
        slider.fill(str(step))
        found |= set(map(words, page.locator(".card .ppo .text").all_inner_texts()))
    rows = [json.loads(line) for line in (find_run(RUN).path / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert {words(row["response"]) for row in rows} <= found and len(found) > len(MARKUP) // 2
    assert words(texts[1]) in words(page.locator(".noted").inner_text())
    page.locator(".detail-curves .main-svg", has_text=OTHER).first.wait_for(state="attached")


def test_the_reason_why_a_run_failed(page, site, texts):
    opened(page, site, "train", FAILED).locator(".pill", has_text="Failed").wait_for()
    page.evaluate(UNFOLD)
    assert words(texts[0]) in words(page.locator("body").inner_text())


def test_answers_labels_and_hover_texts_of_scores(page, site, texts):
    opened(page, site, "scores").locator("#lengths .main-svg").first.wait_for()
    page.evaluate(UNFOLD)
    for number in range(len(texts)):
        click_point(page, "#lengths", 0, number)
        answer = words(page.locator(".pairs .turn.picked .answer.picked .text").inner_text())
        assert answer in map(words, texts)
    page.locator("#other-model input").click()
    page.get_by_role("option", name=OTHER).click()
    for figure in ("#distributions", "#differences", "#lengths", "#positions"):
        page.locator(f"{figure} .main-svg", has_text=OTHER).first.wait_for()
    figures = page.locator(".scores .plot:has(.main-svg)").count()
    assert figures >= 4
    hovered = []
    for figure in range(figures):
        made, told = page.evaluate(
            f"""async figure => {{
                const node = document.querySelectorAll(".scores .plot:has(.main-svg)")[figure], made = [], shown = [];
                for (const [curveNumber, {{xaxis, yaxis, hoverinfo}}] of node.data.entries()) {{
                    if (hoverinfo === "skip") continue;
                    Plotly.Fx.hover(node, [{{curveNumber, pointNumber: 0}}], (xaxis ?? "x") + (yaxis ?? "y"));
                    await new Promise(resolve => setTimeout(resolve, 80));  // Plotly draws at most every 50 ms
                    shown.push(node.querySelector(".hoverlayer").textContent);
                    made.push(...({MADE})());
                }}
                return [made, shown];
            }}""",
            figure,
        )
        assert made == []
        hovered += told
    assert any(OTHER in said for said in hovered), hovered


def test_answers_names_and_questions_of_chat(page, site, texts):
    opened(page, site, "chat").get_by_label("Your question").wait_for()
    ask(page, " ".join(texts)[:1500])
    for side in ("base", "ppo"):
        said = words(page.locator(f".turn .{side} .text").inner_text())
        assert [text for text in texts if words(text) not in said] == []


def test_questions_and_answers_of_feedback(page, site, texts):
    opened(page, site, "feedback").locator(".duel").wait_for()
    for place in (".question", ".duel .text"):
        said = words(page.locator(place).first.inner_text())
        assert [text for text in texts if words(text) not in said] == []
    page.wait_for_timeout(800)
    page.keyboard.press("1")
    page.locator(".person", has_text="· 1 choice").wait_for()


def test_names_that_were_typed_come_back_in_sentences_and_rows_of_a_file_in_a_table(page, site, texts, tmp_path, long):
    rows = [dict.fromkeys(("prompt", "chosen", "rejected", *texts[:3]), text) for text in texts]
    rows = [row | {"rejected": f"no {row['rejected']}"} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened(page, site, "train").locator(".advanced:visible button").first.click()
    field = page.get_by_label("dataset name").locator("visible=true")
    shown = page.locator(".block.preview:visible")
    fill_unfolded(field, str(tmp_path / "pairs.jsonl"))
    page.get_by_role("button", name="Preview data").locator("visible=true").click()
    shown.locator("dl").wait_for()
    assert words(shown.locator("dd").first.inner_text()) in map(words, texts)
    assert page.evaluate(MADE) == []
    for text in texts if long else texts[:6]:
        field.fill(text)
        page.get_by_role("button", name="Preview data").locator("visible=true").click()
        shown.get_by_text(words(text).split("/")[0][:20]).first.wait_for()
        assert page.evaluate(MADE) == []
