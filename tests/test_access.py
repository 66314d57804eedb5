"""The page in a browser, on the shipped example: by keyboard, with axe, and down to every answer."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from processes import chromium, serving_here

from rlhf import models
from rlhf.feedback import Store
from rlhf.feedback.desk import store_of
from rlhf.runs import directory as runs
from rlhf.ui import scores
from rlhf.ui.chat import tally


TABS = ("Train", "Chat", "Feedback", "Scores", "About")
SIZES = {"projector": (1280, 720), "phone": (400, 800)}


@pytest.fixture(scope="module")
def site(tmp_path_factory, base):
    """The address of a served page that shows the example, with enough pairs to choose between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(tmp_path_factory.mktemp("runs")))
        store = Store.open(store_of("everyday"), "everyday", models.revision(base[0]))
        store.add((f"How {n}?\n", f"How {n}?", f"So {n}.", f"No {n}.", ("base", "base")) for n in range(80))
        with serving_here() as address:
            yield address


@pytest.fixture(scope="module")
def browser(site):
    """A page for all tests of this file, with a list of everything that it has asked for."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.asked, page.problems, page.opened = [], [], None
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.set_default_timeout(60_000)
        yield page


@pytest.fixture
def page(site, browser):
    browser.set_viewport_size({"width": 1280, "height": 900})
    yield browser
    assert browser.problems == []


def open_tab(page, site, tab, theme="light", anew=False):
    """Open a tab; the page is loaded only where it has another theme, or has to be loaded anew."""
    address = f"{site}/?run=example&__theme={theme}"
    if anew or page.opened != address:
        page.goto(address)
        page.wait_for_selector(".chart[data-part=ppo] .main-svg", state="attached")
        page.opened = address
    page.get_by_role("tab", name=tab).click()
    if tab == "Feedback":
        page.wait_for_selector(".duel")
    if tab == "Scores":
        page.wait_for_selector("#lengths .main-svg")
    return page


def questions():
    return scores.read_questions(runs.EXAMPLE / "scores.csv", "test", "score", "ppo")


# ---------------------------------------------------------------------------------------------------------------------
# Scores: from a point to its answer


def click_point(page, figure, trace, number):
    """Click a point as Plotly reports it, from the figure's own data."""
    return page.evaluate(
        """([figure, trace, number]) => {
            const node = document.querySelector(figure + ' .plot'), data = node.data[trace];
            node.emit('plotly_click', {points: [{data, customdata: data.customdata[number]}]});
            return data.y[number];
        }""",
        [figure, trace, number],
    )


@pytest.mark.parametrize("side, trace", [("base", 0), ("ppo", 1)])
def test_a_click_on_any_answers_point_shows_that_answer(page, site, side, trace):
    open_tab(page, site, "Scores")
    asked = questions()
    for number in (0, 517, 1023):
        score = click_point(page, "#lengths", trace, number)
        question, nth = divmod(number, 4)
        row = (asked[question].base if side == "base" else asked[question].other)[nth]
        assert row["score"] == pytest.approx(score)
        card = page.locator(".pairs .turn.picked")
        assert card.locator("h4 > span").first.inner_text() == row["prompt"]
        assert card.locator(".answer.picked .text").inner_text() == " ".join(row["response"].split())
        assert card.locator(f".answer.picked.{side}").count() == 1
        assert card.locator(".pager").inner_text().split("\n")[1] == f"Answer {nth + 1} of 4"


def test_a_question_says_the_number_of_its_point_and_every_answer_can_be_reached(page, site):
    open_tab(page, site, "Scores")
    gain = click_point(page, "#differences", 0, 200)
    card = page.locator(".pairs .turn.picked")
    assert card.locator(".gain").inner_text() == f"{gain:+.2f}"
    assert "averages of 4 answers each" in page.locator(".pairs .count").inner_text()
    seen = []
    for _ in range(4):
        seen.append(card.locator(".ppo .score b").all_inner_texts())
        card.get_by_role("button", name="Next answer").click()
    wanted = next(q for q in questions() if q.other[0]["prompt"] == card.locator("h4 > span").first.inner_text())
    assert [[float(one.replace("−", "-")) for one in both] for both in seen] == [
        [pytest.approx(row["score"], abs=0.006), pytest.approx(row["gold"], abs=0.006)] for row in wanted.other
    ]
    assert min(bar.bounding_box()["width"] for bar in card.locator(".score .bar").all()) > 50
    page.get_by_label("Order").select_option("fooled")
    first = page.locator(".pairs .turn").first.locator(".ppo .score")
    score, rubric = (float(bar.locator("b").inner_text()) for bar in first.all())
    assert score > 3 and rubric < 0.5
    page.get_by_label("Order").select_option("gain")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_main_figure_of_scores_is_whole_on_a_projector_and_begins_on_a_phone(page, site, size, theme):
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    open_tab(page, site, "Scores", theme)
    page.evaluate("window.scrollTo(0, 0)")
    box = page.locator("#distributions .plot").bounding_box()
    assert box["y"] + (box["height"] if size == "projector" else 150) <= height
    assert page.locator(".scores .verdict").bounding_box()["height"] < (35 if size == "projector" else 90)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# ---------------------------------------------------------------------------------------------------------------------
# Figures and their tools


def test_no_tool_of_a_figure_uploads_it_and_the_page_asks_nobody_else(page, site):
    for tab in TABS:
        open_tab(page, site, tab)
    open_tab(page, site, "Scores")
    tools = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    assert {"Save as PNG", "Save as SVG"} <= set(tools)
    assert not any(word in tool.lower() for tool in tools for word in ("share", "cloud", "studio", "upload"))
    assert page.evaluate("[...document.querySelectorAll('.drawn')].map(node => node._context.plotlyServerURL)") == (
        [""] * page.locator(".drawn").count()
    )
    assert {urlsplit(url).netloc for url in page.asked if url.startswith("http")} == {urlsplit(site).netloc}


def focused(page):
    return page.evaluate(
        "(({tagName, textContent, ariaLabel, className, type}) => ({tagName, words: ariaLabel || textContent.trim(), "
        "className, type}))(document.activeElement)"
    )


def test_the_tools_of_a_figure_are_one_stop_of_the_tab_key_and_arrows_go_through_them(page, site):
    open_tab(page, site, "Scores")
    stops = page.evaluate(
        "[...document.querySelectorAll('.drawn')].map(n => [...n.querySelectorAll('*')]"
        ".filter(x => x.tabIndex >= 0).length)"
    )
    assert set(stops) == {1}
    labels = page.evaluate("[...document.querySelectorAll('.drawn')].map(n => [n.role, n.ariaLabel])")
    assert all(role == "figure" and len(label) > 10 for role, label in labels), labels
    page.locator("#differences .modebar-btn").first.focus()
    page.keyboard.press("ArrowRight")
    assert focused(page)["className"].startswith("modebar-btn")
    page.keyboard.press("Tab")
    assert page.evaluate("!document.activeElement.closest('#differences')")
    page.get_by_role("link", name="Read the answers").press("Enter")
    page.keyboard.press("Tab")
    assert focused(page)["words"] == "Find a word"


# ---------------------------------------------------------------------------------------------------------------------
# Chat


def ask(page, question):
    turns = page.locator(".turns .turn").count()
    page.get_by_label("Your question").fill(question)
    page.get_by_label("Your question").press("Enter")
    page.locator(f".turns .turn:nth-child({turns + 1}) .ppo .score b").wait_for()


def test_a_conversation_outlives_a_reload_until_it_is_cleared(page, site):
    open_tab(page, site, "Chat")
    ask(page, "Hi there!")
    ask(page, "How do I clean an oven?")
    page.locator("#clear").wait_for()
    before = page.locator(".turns .text").all_inner_texts(), page.locator(".dialogue .verdict").inner_text()
    assert len(before[0]) == 4 and "of 2 questions" in before[1]
    open_tab(page, site, "Chat", anew=True)
    page.locator(".turns .turn").nth(1).wait_for()
    assert (page.locator(".turns .text").all_inner_texts(), page.locator(".dialogue .verdict").inner_text()) == before
    ask(page, "Thanks!")
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('.turns .turn')")
    open_tab(page, site, "Chat", anew=True)
    page.wait_for_timeout(500)
    assert page.locator(".turns .turn").count() == 0


def test_how_long_a_question_may_be_is_said_before_and_nothing_of_it_is_cut_off(page, site):
    open_tab(page, site, "Chat")
    hint = page.locator("#room p")
    most = int(hint.inner_text().removeprefix("A question may have up to about ").split()[0])
    box = page.get_by_label("Your question")
    box.fill("word " * 1000)
    assert hint.inner_text() == f"4,999 of about {most} characters: probably too long"
    page.locator("#ask").click()
    note = page.locator("#chat-note .note")
    note.wait_for()
    assert note.inner_text() == "The question has 4,999 characters; Chat takes 2,000 at most. Please shorten it."
    assert len(box.input_value()) == 5000
    box.fill("How do I clean an oven? " * 40)
    page.locator("#ask").click()
    page.locator("#chat-note .note", has_text="959 characters; this model reads about").wait_for()
    assert 0.5 * most < int(note.inner_text().split("about ")[1].split()[0]) < 2 * most


def turn(base, ppo, scores):
    sides = [{"text": text, "score": score} for text, score in zip((base, ppo), scores, strict=True)]
    return {"question": "", "base": sides[0], "ppo": sides[1]}


def test_the_same_answer_is_called_the_same():
    same, other = turn("Hello.", "Hello.", (1.0, 1.0)), turn("No.", "Yes.", (0.5, 1.5))
    assert tally([same]) == "Base and PPO gave the very same answer."
    assert tally([same, same]) == "Base and PPO gave the very same answer to all 2 questions."
    assert tally([same, other]).endswith("is 0.50 higher. To 1 of them both gave the same answer.")
    assert tally([turn("No.", "Yes.", (1.0, 1.001))]).endswith("on 0 of 1 question; on average both score the same.")


# ---------------------------------------------------------------------------------------------------------------------
# For everybody


def test_text_runs_the_way_its_script_does(page, site):
    """B42: an answer in Arabic or Hebrew begins at the right, in every tab."""
    open_tab(page, site, "Train")
    page.locator(".card").first.wait_for()
    assert page.locator(".card :is(h4, .text):not([dir=auto])").count() == 0
    page.get_by_role("tab", name="Chat").click()
    ask(page, "\u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da?")
    assert page.locator(".turns :is(h3, .text):not([dir=auto])").count() == 0
    assert page.locator(".turns h3").last.evaluate("node => getComputedStyle(node).direction") == "rtl"
    box = page.get_by_label("Your question")
    assert box.evaluate("node => getComputedStyle(node).unicodeBidi") == "plaintext"
    page.locator("#clear").click()
    page.get_by_role("tab", name="Scores").click()
    page.locator(".pairs .turn").first.wait_for()
    assert page.locator(".pairs :is(h4 > :first-child, .text):not([dir=auto])").count() == 0
    assert page.locator(".mistakes article bdi").count() == 3 * page.locator(".mistakes article").count() > 0


def stops(page, most=80):
    """What the Tab key reaches from the top of the page, and whether each shows that it has the focus."""
    page.evaluate("document.activeElement?.blur(); window.scrollTo(0, 0)")
    page.locator(".brand").focus()
    reached = []
    for _ in range(most):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => {
                const node = document.activeElement;
                const isMarked = one => {
                    const style = getComputedStyle(one);
                    return style.outlineStyle === 'solid' && style.opacity > 0;
                };
                const around = [node, node.closest('label'), node.closest('.wrap'), node.parentElement];
                const words = node.ariaLabel || node.textContent.trim() || node.value || node.placeholder;
                return {node: node.tagName, words, marked: around.some(one => one && isMarked(one))};
            }"""
        )
        if seen["node"] == "BODY":
            break
        reached.append(seen)
    return reached


@pytest.mark.parametrize("tab", TABS)
def test_every_stop_of_the_tab_key_can_be_seen(page, site, tab):
    open_tab(page, site, tab)
    reached = stops(page)
    assert [one for one in reached if not one["marked"]] == []
    words = [one["words"] for one in reached]
    if tab == "Scores":
        assert "Read the answers" in words[:12], words


UNFOLD = """() => {
    for (const fold of document.querySelectorAll("button.label-wrap:not(.open)")) if (fold.offsetParent) fold.click();
    for (const fold of document.querySelectorAll("details")) fold.open = true;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation_in_any_tab_folded_or_unfolded(page, site, theme):
    axe = pytest.importorskip("axe_playwright_python", reason="pip install -r tests/requirements.txt")
    options = {"resultTypes": ["violations"]}
    if theme == "dark":  # only colours are others there
        options["runOnly"] = ["color-contrast", "link-in-text-block"]
    open_tab(page, site, "Train", theme)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = []
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        if tab == "Chat":
            ask(page, "Hi there!")
        if tab == "Feedback":
            page.wait_for_selector(".duel")
        if tab == "Scores":
            page.wait_for_selector("#lengths .main-svg")
        for unfolded in (False, True) if theme == "light" else (True,):
            if unfolded:
                page.evaluate(UNFOLD)
            page.wait_for_timeout(700)  # what fades in has its colours then
            # What stands around the tabs is looked at with everything unfolded.
            looked_at = "document" if unfolded else "document.querySelector('.tabitem:not([style*=none])')"
            for fault in page.evaluate(f"options => axe.run({looked_at}, options)", options)["violations"]:
                found += [(tab, unfolded, fault["id"], node["html"][:200]) for node in fault["nodes"]]
        if tab == "Chat":
            page.locator("#clear").click()
    assert found == []
