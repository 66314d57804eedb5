"""Chat: whose answer it is, how it was sampled, and votes that nobody sways and nobody else reads.

Everything is real: the embedded models, the store, the page in a browser.
"""

import json
import math
import random
import shutil
from collections import OrderedDict

import gradio as gr
import pytest
import torch
from processes import fill_unfolded, serving_here
from transformers import LlamaForCausalLM
from worlds import chat_model

from rlhf.config import ASSETS, BadInput
from rlhf.feedback import Store
from rlhf.feedback import ask as ask_module
from rlhf.feedback.ask import Asker
from rlhf.feedback.desk import store_of
from rlhf.feedback.pairs import load_choices
from rlhf.feedback.votes import agreement_with_rewards, matchups
from rlhf.launch import limits
from rlhf.models import context_size, revision
from rlhf.models.prompts import question_prompt
from rlhf.runs.directory import EXAMPLE, Run
from rlhf.runs.files import write_json
from rlhf.ui import feedback, people, voices, votes
from rlhf.ui.chat import ChatTab
from rlhf.ui.voices import Sampling


pytestmark = pytest.mark.process

OTHER = "demo-20260101-000000-0001"
QUESTION = "Tell me how to clean an oven."


def answers_of(run, sampling=voices.DEFAULT, names=("base", "ppo"), turns=()):
    """Prompts and final answers."""
    *_, last = voices.conversation(run, QUESTION, list(turns), sampling, names)
    return last


# Whose answer it is --------------------------------------------------------------------------------------------------


def test_what_stands_under_an_answer_follows_the_weights_when_the_models_are_swapped(tmp_path):
    """The comparison of another program once showed the trained model on both sides, under two names."""
    run = Run(shutil.copytree(EXAMPLE, tmp_path / "run"))
    base = shutil.copytree(ASSETS / "base", tmp_path / "base")
    for folder in (run.path, run.path / "ppo"):
        write_json(folder / "config.json", Run(folder).config() | {"model_name_or_path": str(base)})
    _, before = answers_of(run)
    assert before["base"]["weights"] != before["ppo"]["weights"] and before["base"]["text"] != before["ppo"]["text"]
    assert before["base"]["by"] == f"base, before training · weights {before['base']['weights']}"
    assert before["ppo"]["by"] == f"run, after update 200 · weights {before['ppo']['weights']}"

    weights = base / "model.safetensors", run.model("policy") / "model.safetensors"
    shutil.move(weights[0], tmp_path / "kept")
    shutil.copy(weights[1], weights[0])
    _, same = answers_of(run)
    assert same["base"]["weights"] == same["ppo"]["weights"] == before["ppo"]["weights"]
    assert same["base"]["text"] == same["ppo"]["text"] == before["ppo"]["text"]
    shutil.move(tmp_path / "kept", weights[1])
    _, swapped = answers_of(run)
    for one, other in (("base", "ppo"), ("ppo", "base")):
        assert [swapped[one][what] for what in ("text", "weights")] == [
            before[other][what] for what in ("text", "weights")
        ]


@pytest.mark.parametrize(
    "names", [["base"], ["base", "base"], ["base", "ppo", "run x"], ["run x", "ppo", "base", "run y", "run z"]]
)
def test_two_to_four_models_that_are_there_answer(names):
    with pytest.raises(BadInput, match=r"(Choose two to 4 models|One of the models is gone).*under Settings"):
        answers_of(Run(EXAMPLE), names=names)


# How it is sampled ---------------------------------------------------------------------------------------------------


def test_seed_temperature_and_length_are_those_of_the_settings():
    run = Run(EXAMPLE)
    likeliest = [answers_of(run, Sampling(seed, temperature=0))[1]["ppo"]["text"] for seed in (1, 2)]
    assert likeliest[0] == likeliest[1]
    varied = [answers_of(run, Sampling(seed, temperature=1.0))[1]["ppo"]["text"] for seed in (1, 1, 2)]
    assert varied[0] == varied[1] != varied[2]
    short = answers_of(run, Sampling(1, max_new_tokens=3))[1]["ppo"]["text"]
    assert short and len(short.split()) <= 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "whole number from 0"),
        ({"temperature": 2.5}, "from 0 to 2"),
        ({"temperature": float("nan")}, "from 0 to 2"),
        ({"max_new_tokens": 0}, "1 to 256 tokens"),
        ({"system": "x" * 2_001}, "2,001 characters"),
    ],
)
def test_a_setting_out_of_range_is_told(settings, message):
    with pytest.raises(BadInput, match=message):
        Sampling(**settings)


def test_a_system_prompt_stays_when_old_turns_are_dropped(base):
    history = [{"role": role, "content": "word " * 20} for role in ("user", "assistant")] * 3
    prompt = question_prompt(base[1], "Why?", 100, history, None, "Be brief.<eos>")
    assert [message["role"] for message in prompt.raw][0] == "system" and len(prompt.raw) < 8
    assert prompt.raw[0]["content"] == "Be brief." and prompt.raw[-1]["content"] == "Why?"


SPOKEN = (
    "Як почистити піч?", "Как почистить духовку?", "Πώς καθαρίζω τον φούρνο;", "איך מנקים תנור?", "كيف أنظف الفرن؟",
    "فر را چطور تمیز کنم؟", "ओवन कैसे साफ करें?", "ஓவனை எப்படி சுத்தம் செய்வது?", "ওভেন কীভাবে পরিষ্কার করব?",
    "เตาอบทำความสะอาดอย่างไร", "どうやってオーブンを掃除しますか。", "怎么清洁烤箱？", "오븐은 어떻게 청소하나요?",
    "Ինչպե՞ս մաքրել վառարանը", "როგორ გავწმინდო ღუმელი?", "ምድጃ እንዴት ይጸዳል?", "Làm sao để lau lò nướng?",
    "Fırını nasıl temizlerim?", "Hvordan rengjør jeg ovnen?", "Jak wyczyścić piekarnik?", "Kiel mi purigu la fornon?",
    "Hogyan tisztítsam a sütőt?", "Miten puhdistan uunin?", "Ako vyčistím rúru?", "Cum curăț cuptorul?",
    "Wie putze ich einen Ofen?", "¿Cómo limpio el horno?", "Comment nettoyer un four ?", "Com netejo el forn?",
    "Hoe maak ik een oven schoon?",
)  # fmt: skip
"""One question in thirty languages."""
STRANGE = (
    "🍞🔥", "👩\u200d👩\u200d👧", "\u202eevil\u202c", "a\u0301" * 20, "\0\1\x1b[31m", "\t \n", "\u200b", "\ufeff",
    "<eos>", "<bos><pad>", "<|im_end|>", "### Response:", "\\n", "{{ 7 * 7 }}", "%s %d", "A" * 300, "1" * 100, "?",
    "'; --", "$x^2$", "```",
)  # fmt: skip


def test_any_question_is_answered_or_refused_in_a_sentence(base, long, tries):
    run, rng, short = Run(EXAMPLE), random.Random(0), Sampling(max_new_tokens=8)
    room, reader = context_size(base[0]) - short.max_new_tokens, voices.ppo_voice(run).reader()
    words = " ".join(["oven"] * 400)

    def tokens(question):
        return len(reader.encode([{"role": "user", "content": question}]))

    most = max(n for n in range(1, len(words)) if tokens(words[:n]) <= room)
    asked = [*SPOKEN[:: 1 if long else 10], *STRANGE[:: 1 if long else 5], " ", words[: most - 1], words[:most], words]
    asked += ["".join(rng.choices((*SPOKEN, *STRANGE, " "), k=3)) for _ in range(300 - len(asked) if long else 2)]
    special = [token.content for token in base[1].added_tokens_decoder.values() if token.special]
    for question in asked:
        left = question
        for token in special:
            left = left.replace(token, " ")
        try:
            *_, (_, answers) = voices.conversation(run, voices.tidy(question), [], short, ("base", "ppo"))
        except BadInput as error:
            assert str(error).endswith(".")
            assert not left.strip() or tokens(left.strip()) > room, question
        else:
            assert question != words
            for answer in answers.values():
                assert answer["done"] and math.isfinite(answer["score"])
                assert not any(token in answer["text"] for token in special)
    tries(len(asked))


# The store -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(root):
    """The example, with a folder for choices of its own."""
    return Run(EXAMPLE)


def served(run, visitor, seed, names=("base", "ppo"), blind=False):
    """The id of an exchange that the server has just answered, and its answers as they are shown."""
    prompts, answers = answers_of(run, Sampling(seed), names)
    shown = [{"name": name, "who": name.title(), **answers[name]} for name in names]
    prompt = prompts[names[0]].raw
    exchange = votes.Exchange(limits.mark(visitor), run.id, QUESTION, prompt, shown, Sampling(seed), blind)
    return votes.serve(exchange), shown


def vote(key, choice, visitor="ada", run=EXAMPLE.name):
    return votes.vote({"run": run, "visitor": visitor, "id": key, "choice": choice})


def test_a_vote_counts_once_with_all_that_it_needs_and_a_reward_model_can_learn_from_it(example, tmp_path):
    keys = []
    for seed in range(5):
        key, shown = served(example, "ada", seed, blind=seed % 2)
        keys.append(key)
        answer = vote(key, "b")
        assert answer["said"].startswith("Thanks, ") and answer == vote(key, "b")
        assert "that vote stands" in vote(key, "a")["said"]
    store = Store(store_of("everyday"))
    pair = store.pairs[f"{key}-ab"]
    assert (pair.prompt, pair.question) == (f"{QUESTION}\n", QUESTION)
    assert (pair.a, pair.b) == tuple(each["text"] for each in shown)
    assert pair.models == tuple(each["by"] for each in shown) and pair.chat["seed"] == 4 and not pair.chat["blind"]
    assert [side["weights"] for side in pair.chat["sides"]] == [each["weights"] for each in shown]
    assert len(store.choices()) == 5
    assert store.preferences()[-1] == {"prompt": pair.prompt, "chosen": pair.b, "rejected": pair.a}
    store.vote([(pair, "b")], "grace")
    question = pair.prompt
    store.add([("How?\n", "How?", "So.", "No.", ("base", "base"))])
    assert [given.question for given in store.next("grace", 5)] == ["How?"] and store.waiting() == 0
    with pytest.raises(BadInput, match="one prompt only"):  # to be held out
        load_choices(str(store.path))
    store.choose(store.next("grace")[0].id, "a", "grace")
    learned = load_choices(str(store.path))
    assert {*learned.train["prompt"], *learned.held_out["prompt"]} == {question, "How?\n"}


def test_only_what_was_answered_can_be_voted_on_by_who_asked(example):
    key, _ = served(example, "ada", 0)
    for refused in (vote("0123456789abcdef", "a"), vote(key, "a", "eve"), vote(key, "c"), vote(key, "skip")):
        assert set(refused) == {"refused"}
    assert "keeps no name" in vote(key, "a", "")["refused"]
    assert not store_of("everyday").exists()
    seen = votes.look({"run": EXAMPLE.name, "visitor": "eve", "ids": [key]})
    assert seen["open"] == [] and seen["votes"] == {} and seen["tiles"] == []
    assert votes.look({"run": EXAMPLE.name, "visitor": "ada", "ids": [key]})["open"] == [key]


def test_after_a_restart_an_open_vote_is_said_to_be_gone_and_a_given_one_stands(example, monkeypatch):
    given, waits = (served(example, "ada", seed)[0] for seed in (0, 1))
    vote(given, "a")
    monkeypatch.setattr(votes, "_served", OrderedDict())
    seen = votes.look({"run": EXAMPLE.name, "visitor": "ada", "ids": [given, waits]})
    assert seen["open"] == [] and seen["votes"][given]["choice"] == "a" and seen["closed"] == {waits: votes.GONE}
    assert vote(waits, "a")["refused"] == votes.GONE


def test_an_open_vote_can_be_taken_back_and_a_blind_one_stands(example):
    for blind in (False, True):
        key, _ = served(example, "ada", 0, blind=blind)
        vote(key, "a")
        told = votes.take_back({"run": EXAMPLE.name, "visitor": "ada", "id": key})
        assert "stands" in told["refused"] if blind else told["votes"] == {key: None}
    assert len(Store(store_of("everyday")).choices()) == 1


def test_the_best_of_several_is_chosen_over_each_other_one(example, root):
    shutil.copytree(EXAMPLE, root / OTHER)
    names = ("base", "ppo", f"run {OTHER}")
    key, shown = served(example, "ada", 1, names)
    assert [each["text"] for each in shown][1] == shown[2]["text"] != shown[0]["text"]  # the same weights
    assert vote(key, "b")["said"].startswith("Thanks") and "stands" in vote(key, "c")["said"]
    store = Store(store_of("everyday"))
    # There is no choice between two answers that are the same.
    assert [(choice.id, choice.choice) for choice in store.choices()] == [(f"{key}-ab", "b")]
    key, _ = served(example, "ada", 2, names)
    vote(key, "tie")
    assert {choice.choice for choice in store.choices() if choice.id.startswith(key)} == {"tie"}
    assert {(found.models, found.votes) for found in matchups(store, EXAMPLE.name)} >= {(("Base", "Ppo"), 2)}


def test_tallies_are_those_of_a_count_by_hand(example):
    wins = scored = ties = 0
    for seed, letter in enumerate(["a", "b", "tie", "b", "b"]):
        names = ("base", "ppo") if seed % 2 else ("ppo", "base")  # the order differs, and what is counted does not
        key, shown = served(example, "ada", seed, names, blind=True)
        vote(key, letter)
        ties += letter == "tie"
        if letter != "tie":
            best, other = shown if letter == "a" else shown[::-1]
            wins += best["name"] == "ppo"
            scored += best["score"] > other["score"]
    store = Store(store_of("everyday"))
    (found,) = matchups(store, EXAMPLE.name)
    assert (found.models, found.blind, found.votes) == (("Base", "Ppo"), True, 5)
    assert found.win_rate.value == pytest.approx((wins + ties / 2) / 5)
    share, of = agreement_with_rewards(store, EXAMPLE.name)
    assert of == 4 and share.value == pytest.approx(scored / 4)
    assert matchups(store, OTHER) == [] and agreement_with_rewards(store, OTHER) is None


def talk(tab, run, question, kept=(), *, blind=False, remember=False, system="", seed=0):
    """What the Chat tab makes of a question: the last update, and the new turn."""
    settings = (["base", "ppo"], 1.0, 16, system, str(seed))
    *_, last = tab._talk(question, {run.id: list(kept)}, run.id, "ada", blind, remember, *settings)
    return last[tab.kept][run.id][-1]


def test_a_conversation_is_remembered_or_voted_on_and_a_model_learns_from_it(root):
    chat_model(root / "model")
    run = Run.create(root / "ppo", "ppo", {"model_name_or_path": str(root / "model"), "reward_funcs": ["length:8"]})
    run.finish("finished")
    base = LlamaForCausalLM.from_pretrained(root / "model")
    with torch.no_grad():
        base.lm_head.weight += torch.randn(base.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    shutil.copytree(root / "model", run.path / "model")
    base.save_pretrained(run.path / "model")
    with gr.Blocks():
        tab = ChatTab(gr.BrowserState({}))
    first = talk(tab, run, "Who?", remember=True)
    assert "id" in first and "remembers" in talk(tab, run, "Why?", [first], remember=True)["closed"]
    for number in range(5):
        turn = talk(tab, run, f"Why {number}?", [first], blind=True, remember=True, system="Be brief.", seed=number)
        vote(turn["id"], "ab"[number % 2], run=run.id)
    store = Store(store_of(str(root / "model")))
    pair = store.pairs[f"{turn['id']}-ab"]
    assert [message["role"] for message in pair.prompt] == ["system", "user"] and pair.question == "Why 4?"
    assert None not in [side["score"] for side in pair.chat["sides"]]
    choices = load_choices(str(store.path))
    assert choices.train[0]["prompt"][0]["content"] == "Be brief."
    assert len(choices.train) + len(choices.held_out) >= 4  # an answer of random weights may be empty


def test_on_a_shared_page_nobody_reads_what_another_has_asked(example, tmp_path, monkeypatch):
    key, shown = served(example, "ada", 0)
    vote(key, "a")
    store = Store(store_of("everyday"))
    assert QUESTION in feedback.exported(example, tmp_path).read_text()
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    with pytest.raises(BadInput, match="Nobody has preferred"):
        feedback.exported(example, tmp_path)
    store.copy_to(tmp_path / "copy", chat=not limits.shared())
    assert QUESTION not in (tmp_path / "copy" / "pairs.jsonl").read_text()
    at, person = people.desk_of(example), limits.mark("ada")
    others, own = feedback.standing(at, limits.mark("eve"), 1), feedback.standing(at, person, 1)
    at.close()
    assert "0 choices" in others["train"] and (others["own"], own["own"], own["last"]) == (0, 1, None)
    store.forget(person)
    assert QUESTION not in (store.path / "pairs.jsonl").read_text() and store.choices() == []


def test_what_people_are_asked_next_is_chosen_in_the_light_of_votes_too(example, base, monkeypatch):
    monkeypatch.setattr(ask_module, "FIRST_CHOICES", 3)
    for seed in range(3):
        vote(served(example, "ada", seed)[0], "a")
    at = people.desk_of(example)
    assert at.store.info()["revision"] == revision(base[0])
    made = Asker(*base, at.args).add(at.store, 2)
    assert len(made) == 2 and at.store.order[:2] == [pair.id for pair in made]


def test_nothing_that_leaves_the_server_before_a_blind_vote_says_whose_answer_it_is(example):
    with gr.Blocks():
        tab = ChatTab(gr.BrowserState({}))
    models, orders = ["base", "ppo"], set()
    random.seed(0)
    for seed in range(4):
        *updates, last = tab._talk(QUESTION, {}, "example", "ada", True, True, models, 0.7, 64, "", str(seed))
        (turn,) = last[tab.kept]["example"]
        told = json.dumps([update[tab.dialogue] for update in (*updates, last)] + [turn])
        assert turn["answers"][0]["text"] in told and len(updates) > 1
        asked = {"run": "example", "visitor": "ada", "ids": [turn["id"]]}
        looks = [votes.look(asked), votes.look({**asked, "visitor": "eve"})]
        assert turn["id"] in looks[0]["open"]
        told += json.dumps([look["votes"] for look in looks])  # the tiles are about earlier votes
        assert not any(word in told for word in ("weights", "before training", '"score"', '"base"', '"ppo"', '"who"'))
        sides = vote(turn["id"], "a")["votes"][turn["id"]]["sides"]
        _, answers = answers_of(example, Sampling(seed))
        assert [sides[letter]["score"] for letter in "ab"] == pytest.approx(
            [answers[sides[letter]["name"]]["score"] for letter in "ab"], abs=1e-4
        )
        orders.add(sides["a"]["name"])
        votes.take_back(asked | {"id": turn["id"]})
    assert orders == {"base", "ppo"}


# The page ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The served page, with the example and a copy of it."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(root))
        shutil.copytree(EXAMPLE, root / OTHER)
        with serving_here() as address:
            yield address


@pytest.fixture
def page(site, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(f"{site}/?run=example&tab=chat")
    page.locator(".turns").wait_for()
    yield page
    context.close()
    assert problems == []


def ask(page, question=QUESTION):
    turns = page.locator(".turns .turn").count()
    page.get_by_label("Your question").fill(question)
    page.get_by_label("Your question").press("Enter")
    page.locator(f".turns .turn:nth-child({turns + 1}) .again:visible").wait_for()
    return page.locator(f".turns .turn:nth-child({turns + 1})")


def test_votes_by_click_and_key_are_kept_shown_and_taken_back(page):
    turn = ask(page)
    assert [who.split(" · ") for who in turn.locator(".who").all_inner_texts()] == [["A", "Base"], ["B", "PPO"]]
    assert turn.locator(".by").all_inner_texts()[1].startswith("example, after update 200 · weights ")
    turn.locator(".choices button").first.click()
    turn.locator(".result", has_text="You voted for A, Base.").wait_for()
    assert page.locator(".saved").first.inner_text().startswith("Thanks, ")
    page.locator("#votes .tiles", has_text="PPO better than Base").wait_for()
    page.keyboard.press("2")  # this one is decided
    turn.get_by_role("button", name="Undo").click()
    turn.locator(".choices:visible").wait_for()
    page.get_by_label("Your question").press("1")  # where a person types, keys write
    assert page.get_by_label("Your question").input_value() == "1" and turn.locator(".choices").is_visible()
    page.get_by_label("Your question").evaluate("node => node.blur()")
    page.keyboard.press("0")
    turn.locator(".result", has_text="You voted for a tie.").wait_for()
    page.reload()
    page.locator(".turn .result", has_text="You voted for a tie.").wait_for()
    votes._served.clear()  # as a restart does
    page.get_by_role("button", name="Undo").click()
    page.locator(".turn .result", has_text="can no longer be voted on: the server was restarted").wait_for()


def test_names_and_scores_come_with_a_blind_vote_and_stay(page):
    page.get_by_label("Blind").check()
    turn = ask(page)
    page.reload()
    turn.locator(".choices:visible").wait_for()
    assert turn.locator(".who").all_inner_texts() == ["A", "B"] and turn.locator(".base, .ppo, .score b").count() == 0
    assert "weights" not in page.locator("#dialogue").inner_html()
    assert page.locator(".dialogue .verdict").inner_text().startswith("Which answer is better?")
    turn.locator(".choices button").first.click()
    turn.locator(".by", has_text="before training").wait_for()
    names = turn.locator(".who").all_inner_texts()
    assert sorted(name.split(" · ")[1] for name in names) == ["Base", "PPO"]
    assert turn.locator(".score b").count() == 2 and not turn.get_by_role("button", name="Undo").is_visible()
    page.reload()
    turn.locator(".by", has_text="before training").wait_for()
    assert turn.locator(".who").all_inner_texts() == names


def test_regenerate_asks_again_copy_copies_a_seed_repeats_and_more_models_answer(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    turn = ask(page)
    seed, first = turn.locator(".asked").inner_text(), turn.locator(".text").all_inner_texts()
    turn.get_by_role("button", name="Regenerate").click()
    page.wait_for_function("seed => document.querySelector('.turn .asked').textContent !== seed", arg=seed)
    turn.locator(".again:visible").wait_for()
    assert page.locator(".turn").count() == 1 and turn.locator("h3").inner_text() == QUESTION
    page.get_by_role("button", name="Settings").click()
    fill_unfolded(page.locator("#chat-settings").get_by_label("Seed"), seed.split()[-1])
    again = ask(page)
    assert again.locator(".text").all_inner_texts() == first
    again.get_by_role("button", name="Copy").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == first[0]
    page.locator("#chat-settings").get_by_label("Seed").fill("seven")
    page.get_by_label("Your question").fill(QUESTION)
    page.locator("#ask").click()
    page.locator("#chat-note .note", has_text="The seed must be a whole number, not 'seven'.").wait_for()
    # A third model
    page.locator("#chat-settings").get_by_label("Seed").fill("")
    page.locator("#chat-models input").click()
    page.locator("[role=option]:not(.selected)").first.click()
    page.keyboard.press("Escape")
    turn = ask(page)
    assert turn.locator(".answer").count() == 3
    assert turn.locator(".by").all_inner_texts()[2].startswith(f"{OTHER}, after update 200")
    assert turn.locator(".choices button").all_inner_texts()[:1] == ["A is best 1"]
    page.set_viewport_size({"width": 400, "height": 820})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
