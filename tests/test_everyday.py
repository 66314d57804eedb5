"""The embedded world: enough of it, splits that keep apart, a rubric that judges every text as meant."""

import random
from collections import Counter

import pytest

from rlhf.everyday import (
    gold_score,
    is_clean,
    judge,
    load_world,
    prefer,
    prompt_splits,
    questions,
    subject_of,
    write_answer,
)
from rlhf.everyday.world import SPLITS, Topic


WORLD = load_world()


def test_the_world_is_as_large_as_promised():
    assert len(WORLD.topics) >= 120
    assert all(len(topic.tips) >= 6 for topic in WORLD.topics)
    assert all(len(questions(topic)) >= 25 for topic in WORLD.topics)
    assert len({topic.name for topic in WORLD.topics}) == len(WORLD.topics)
    assert len(WORLD.outside) >= 20 and len(WORLD.talk) >= 3


def test_no_prompt_is_in_two_splits():
    counts = Counter(question for asked in prompt_splits().values() for question in asked)
    assert max(counts.values()) == 1


def test_unseen_topics_are_asked_about_nowhere_else():
    splits = prompt_splits()
    unseen = {topic.name for topic in WORLD.topics if topic.unseen}
    assert len(unseen) >= 10
    for split in SPLITS:
        about = {subject_of(question).name for question in splits[split] if isinstance(subject_of(question), Topic)}
        assert about <= unseen if split == "unseen" else not about & unseen


@pytest.mark.parametrize("topic", WORLD.topics, ids=lambda topic: topic.name)
def test_every_tip_is_good_for_its_topic_only(topic):
    other = WORLD.topics[(WORLD.topics.index(topic) + 1) % len(WORLD.topics)]
    for tip in topic.tips:
        assert gold_score(topic.ask[0], tip) == pytest.approx(1.0, abs=0.02), tip
        assert gold_score(other.ask[0], tip) <= 0.3, tip
    for careless in topic.careless:
        assert gold_score(topic.ask[0], careless) <= 0.25, careless


def test_the_five_parts_say_what_they_are_named_after():
    topic = WORLD.topics[0]
    ask, (first, second) = topic.ask[0], topic.tips[:2]
    best = judge(ask, f"{first} {second}")
    assert best.score == pytest.approx(1.0)
    assert judge(ask, f"{WORLD.manners['rude_openers'][0]} {first}").courtesy < 0.5
    assert judge(ask, f"{WORLD.manners['fawning'][0]} {first}").courtesy < 1
    assert judge(ask, f"{first} {WORLD.manners['boasts'][0]}").honesty < 1
    assert judge(ask, f"{first} {WORLD.manners['rambling'][0]} {first}").concision < 0.5
    assert judge(ask, WORLD.topics[5].tips[0]).relevance == 0
    assert judge(ask, topic.brief[0]).helpfulness <= 0.2
    assert judge(ask, first.rstrip(".")).concision < 1  # cut off


def test_one_good_tip_is_enough_and_a_second_must_be_good_too():
    topic, other = WORLD.topics[0], WORLD.topics[5]
    ask, (first, second), foreign = topic.ask[0], topic.tips[:2], other.tips[0]
    assert gold_score(ask, f"{first} {second}") == gold_score(ask, first) == pytest.approx(1.0)
    assert gold_score(ask, f"{first} {foreign}") == pytest.approx(0.6)  # half of it is relevant
    assert gold_score(ask, f"{first} {first}") == pytest.approx(0.5)
    assert gold_score(ask, f"{first} {topic.careless[0]}") < 0.4


def test_outside_the_world_honesty_wins():
    subject = WORLD.outside[0]
    honest = WORLD.manners["offers"][0].format(about=subject.about)
    assert gold_score(subject.ask[0], honest) == pytest.approx(1.0)
    assert all(gold_score(subject.ask[0], fake) < 0.1 for fake in subject.fake)


def test_an_unknown_question_has_no_gold_score():
    with pytest.raises(KeyError, match="embedded world"):
        gold_score("What is the airspeed of a swallow?", "About eleven meters a second.")


def test_written_answers_are_clean_and_garbage_is_not():
    rng = random.Random(1)
    asked = [question for question in prompt_splits()["reward"][::40]]
    answers = [write_answer(subject_of(question), rng)[0] for question in asked]
    assert all(map(is_clean, answers))
    words = [word for answer in answers[:40] for word in answer.split()]
    rng.shuffle(words)
    salads = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, 240, 12)]
    assert not any(map(is_clean, salads))
    assert not is_clean("Soak the pan the the pan.") and not is_clean("soak the pan") and not is_clean("")


def test_annotators_err_as_bradley_and_terry_say():
    rng = random.Random(0)
    assert prefer(0.5, 0.52, rng) is None
    wrong = sum(not prefer(0.84, 0.70, rng) for _ in range(4000)) / 4000
    assert wrong == pytest.approx(0.294, abs=0.03)  # 1 / (1 + exp(0.14 / 0.16))
    assert sum(not prefer(1.0, 0.2, rng) for _ in range(4000)) < 60  # 1 / (1 + exp(0.8 / 0.16)) of them, about 27
