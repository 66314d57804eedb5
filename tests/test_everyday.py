"""The embedded world: enough of it, splits that keep apart, a rubric that grades every text as meant."""

import random
from collections import Counter

import pytest

from rlhf.everyday import (
    gold_score,
    grade,
    load_world,
    prefer,
    prompt_splits,
    questions,
    subject_of,
)
from rlhf.everyday.answers import WRITERS
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
    best = grade(ask, f"{first} {second}")
    assert best.score == pytest.approx(1.0)
    assert grade(ask, f"{WORLD.manners['rude_openers'][0]} {first}").courtesy < 0.5
    assert grade(ask, f"{WORLD.manners['fawning'][0]} {first}").courtesy < 1
    assert grade(ask, f"{first} {WORLD.manners['boasts'][0]}").honesty < 1
    assert grade(ask, f"{first} {WORLD.manners['rambling'][0]} {first}").concision < 0.5
    assert grade(ask, WORLD.topics[5].tips[0]).relevance == 0
    assert grade(ask, topic.brief[0]).helpfulness <= 0.2
    assert grade(ask, first.rstrip(".")).concision < 1  # cut off


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


@pytest.mark.parametrize("kind", WRITERS)
def test_only_good_answers_get_good_grades(kind):
    rng = random.Random(1)
    scores = [gold_score(topic.ask[0], WRITERS[kind](topic, rng)) for topic in WORLD.topics]
    assert min(scores) == pytest.approx(1.0) if kind == "good" else max(scores) <= 0.5


def test_a_salad_of_the_right_words_gets_a_bad_grade():
    topic = WORLD.topics[0]
    words = [word for tip in topic.tips for word in tip.split()]
    random.Random(1).shuffle(words)
    assert gold_score(topic.ask[0], " ".join(words)) <= 0.3


def test_annotators_err_as_bradley_and_terry_say():
    rng = random.Random(0)
    assert prefer(0.5, 0.52, rng) is None
    wrong = sum(not prefer(0.84, 0.70, rng) for _ in range(4000)) / 4000
    assert wrong == pytest.approx(0.294, abs=0.03)  # 1 / (1 + exp(0.14 / 0.16))
    assert sum(not prefer(1.0, 0.2, rng) for _ in range(4000)) < 60  # 1 / (1 + exp(0.8 / 0.16)) of them, about 27
