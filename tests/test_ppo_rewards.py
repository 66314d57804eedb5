"""Rewards: functions and models, alone and added up, and answers that are no scores."""

import asyncio
import copy

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from worlds import (
    EOS,
    PROMPTS,
    SIZE,
    Listener,
    classifier,
    fours,
    quick,
    settings_for,
    tokenizer_of,
    undecided,
    updates_of,
    weights,
    weights_after,
)

from rlhf.config import BadInput
from rlhf.ppo import PPOTrainer


pytestmark = pytest.mark.usefixtures("one_thread")


def test_reward_functions_are_told_what_they_ask_for(tmp_path):
    seen = {}

    def curious(prompts, completions, completion_ids, wanted, trainer_state, log_metric, log_extra):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, wanted=wanted)
        seen["step"] = trainer_state.global_step
        log_metric("share", 0.25)
        log_extra("note", ["x"] * len(prompts))
        return [0.5] * len(prompts)

    def incurious(completions, **kwargs):
        seen["all"] = set(kwargs)
        return [0.0] * len(completions)

    rows = [{"prompt": prompt, "wanted": number} for number, prompt in enumerate(PROMPTS)]
    trainer = quick(tmp_path, reward_funcs=[curious, incurious], train_dataset=rows, total_episodes=16)
    trainer.train()
    assert seen["wanted"] == [PROMPTS.index(prompt) for prompt in seen["prompts"]]
    assert seen["step"] == 0
    assert {"prompts", "completion_ids", "wanted", "trainer_state"} <= seen["all"]
    tokenizer = tokenizer_of(SIZE)
    assert seen["completions"] == tokenizer.batch_decode(seen["ids"], skip_special_tokens=True)
    line = updates_of(trainer)[0]
    assert line["rewards/curious/mean"] == 0.5 and line["objective/scores"] == 0.5
    assert any(line.get(name) == 0.25 for name in ("share", "share/mean"))


def numbers(kind):
    """The score `fours`, in the shapes in which a function may give it."""

    def reward(completion_ids):
        scores = [fours(ids) for ids in completion_ids]
        by_token = [[float(token == 4) - 0.1 for token in ids] for ids in completion_ids]
        return {
            "list": scores,
            "tuple": tuple(scores),
            "tensor": torch.tensor(scores, dtype=torch.double),
            "numpy": torch.tensor(scores, dtype=torch.double).numpy(),
            "list of tensors": list(torch.tensor(scores, dtype=torch.double)),
            "generator": (score for score in scores),
            "by token": by_token,
            "tuples by token": [tuple(row) for row in by_token],
            "tensors by token": [torch.tensor(row) for row in by_token],
            "numpy by token": [torch.tensor(row).numpy() for row in by_token],
        }[kind]

    return reward


@pytest.mark.parametrize("kind", ["tuple", "tensor", "numpy", "list of tensors", "generator"])
def test_scores_may_come_in_any_sequence_of_numbers(kind, tmp_path):
    settings = {"total_episodes": 16}
    expected = quick(tmp_path, reward_funcs=numbers("list"), **settings)
    found = quick(tmp_path, reward_funcs=numbers(kind), **settings)
    assert torch.allclose(weights_after(expected), weights_after(found), atol=1e-7)
    assert updates_of(found)[0]["rewards/reward/mean"] == pytest.approx(
        updates_of(expected)[0]["rewards/reward/mean"], abs=1e-6
    )


@pytest.mark.parametrize("kind", ["by token", "tuples by token", "tensors by token", "numpy by token"])
def test_rewards_may_be_given_by_token(kind, tmp_path):
    """A reward by token says which token earned it; the sum is the score all the same."""
    whole = quick(tmp_path, reward_funcs=numbers("list"), total_episodes=16)
    by_token = quick(tmp_path, reward_funcs=numbers(kind), total_episodes=16)
    assert not torch.equal(weights_after(whole), weights_after(by_token))
    for name in ("objective/scores", "objective/scores_raw", "rewards/reward/mean", "rewards/reward/std"):
        assert updates_of(by_token)[0][name] == pytest.approx(updates_of(whole)[0][name], abs=1e-5)
    expected = quick(tmp_path, reward_funcs=numbers("by token"), total_episodes=16)
    assert torch.allclose(weights_after(expected), weights(by_token), atol=1e-6)


def test_with_gae_off_rewards_by_token_reach_only_what_came_before_them(tmp_path):
    """With gamma and lambda 0, a token's advantage is its own reward, so the returns show where it was earned."""

    def reward(completion_ids):
        return [[2.0 if place == 0 else 0.0 for place in range(len(ids))] for ids in completion_ids]

    trainer = quick(tmp_path, reward_funcs=reward, gamma=0.0, lam=0.0, stop_token="none", total_episodes=16)
    trainer.train()
    line = updates_of(trainer)[0]
    assert line["returns/mean"] == pytest.approx(2.0 / 5, abs=1e-5)
    assert line["returns/var"] == pytest.approx(4.0 / 5 - 0.16, abs=1e-4)


def test_no_opinion_counts_for_nothing(tmp_path):
    def sometimes(completion_ids):
        return [10.0 if len(ids) == 5 else None for ids in completion_ids]

    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=[asked, sometimes], reward_weights=[1.0, 0.5], total_episodes=16)
    trainer.train()
    opinions = sum(len(ids) == 5 for ids in asked.ids)
    assert 0 < opinions < 16
    line = updates_of(trainer)[0]
    assert line["rewards/sometimes/mean"] == 10.0
    expected = (sum(map(fours, asked.ids)) + 5.0 * opinions) / 16
    assert line["objective/scores_raw"] == pytest.approx(expected, abs=1e-5)


def test_async_reward_functions_are_awaited_also_beside_a_running_loop(tmp_path):
    """B36"""
    loops = set()

    async def slow(prompts, completions, completion_ids):
        loops.add(id(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        return [fours(tuple(ids)) for ids in completion_ids]

    class Judge:
        async def __call__(self, completion_ids, **columns):
            return [1.0 for _ in completion_ids]

    async def wrong(completion_ids, **columns):
        return [0.0]

    async def notebook():
        trainer = quick(tmp_path, reward_funcs=[slow, Judge()])
        trainer.train()
        with pytest.raises(BadInput, match="wrong returned 1 scores"):
            quick(tmp_path, reward_funcs=wrong).train()
        return trainer

    line, plain = updates_of(asyncio.run(notebook()))[0], quick(tmp_path)
    plain.train()
    expected = updates_of(plain)[0]["objective/scores"] + 1.0
    assert line["objective/scores"] == pytest.approx(expected, abs=1e-5)
    assert len(loops) == 1


def test_a_judge_with_fewer_rows_than_the_policy_reads_what_it_knows(tmp_path):
    """B09"""
    policy = undecided(40)
    quick(tmp_path, policy, processing_class=tokenizer_of(SIZE), reward_funcs=classifier()).train()


def test_functions_and_models_add_up_by_their_weights(tmp_path):
    judge, asked = classifier(), Listener()
    judge.config._name_or_path = "some/judge"
    # A seed whose responses do not end in the pad token, which Transformers' own pooling would pass over.
    trainer = quick(tmp_path, reward_funcs=[asked, judge], reward_weights=[0.5, 2.0], total_episodes=16, seed=0)
    trainer.train()
    prompts = tokenizer_of(SIZE)(asked.prompts)["input_ids"]
    plain = copy.deepcopy(judge)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        scores = [
            plain(torch.tensor([prompt + ids])).logits.item() for prompt, ids in zip(prompts, asked.ids, strict=True)
        ]
    line = updates_of(trainer)[0]
    assert line["rewards/judge/mean"] == pytest.approx(sum(scores) / 16, abs=1e-5)
    expected = (0.5 * sum(map(fours, asked.ids)) + 2.0 * sum(scores)) / 16
    assert line["objective/scores_raw"] == pytest.approx(expected, abs=1e-5)
    assert line["rewards/Listener/mean"] == pytest.approx(sum(map(fours, asked.ids)) / 16, abs=1e-5)


def test_rewards_of_one_name_are_reported_apart(tmp_path):
    one, other = (lambda completions, number=number: [number] * len(completions) for number in (1.0, 5.0))
    trainer = quick(tmp_path, reward_funcs=[one, other], total_episodes=16)
    trainer.train()
    line = updates_of(trainer)[0]
    means = [value for name, value in line.items() if name.startswith("rewards/") and name.endswith("/mean")]
    assert sorted(means) == [1.0, 5.0] and line["objective/scores"] == 6.0


def letters_tokenizer(letters, end="<eos>"):
    """A tokenizer that reads letter by letter, so that texts can be put together."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<bos>", end, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token=end)


def test_a_reward_model_with_a_tokenizer_of_its_own_reads_the_text(tmp_path):
    policys, judges = letters_tokenizer("abcdefghi"), letters_tokenizer("zyxwvutsrqponmlkjihgfedcba", end="</s>")
    judge, asked = classifier(len(judges)), Listener(lambda ids: 0.0)
    trainer = quick(
        tmp_path, reward_funcs=[judge, asked], processing_class=policys, reward_processing_classes=[judges, None],
        train_dataset=["ab", "c", "defg"], total_episodes=16,
    )  # fmt: skip
    trainer.train()
    scores = []
    for prompt, text, ids in zip(asked.prompts, asked.texts, asked.ids, strict=True):
        whole = judges(prompt + text + ("</s>" if ids[-1] == EOS else ""), return_tensors="pt")["input_ids"]
        assert 0 not in whole
        with torch.no_grad():
            scores.append(judge(whole).logits.item())
    assert updates_of(trainer)[0]["objective/scores_raw"] == pytest.approx(sum(scores) / 16, abs=1e-5)
    assert len(set(scores)) > 8


def test_a_judge_without_a_pad_token_reads_texts_of_different_lengths(tmp_path):
    judges = letters_tokenizer("zyxwvutsrqponmlkjihgfedcba", end="</s>")
    judges.pad_token = None
    judge = classifier(len(judges))
    judge.config.pad_token_id = None
    asked = Listener(lambda ids: 0.0)
    trainer = quick(
        tmp_path, reward_funcs=[judge, asked], processing_class=letters_tokenizer("abcdefghi"),
        reward_processing_classes=[judges, None], train_dataset=["ab", "c", "defg"], total_episodes=16,
    )  # fmt: skip
    trainer.train()
    scores = []
    for prompt, text, ids in zip(asked.prompts, asked.texts, asked.ids, strict=True):
        whole = judges(prompt + text + ("</s>" if ids[-1] == EOS else ""), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores.append(judge(whole).logits.item())
    assert updates_of(trainer)[0]["objective/scores_raw"] == pytest.approx(sum(scores) / 16, abs=1e-5)


def test_models_and_rewards_may_be_given_as_folders(tmp_path):
    policy, judge = undecided(), classifier()
    for model, name in ((policy, "policy"), (judge, "judge")):
        model.save_pretrained(tmp_path / name)
        tokenizer_of(SIZE).save_pretrained(tmp_path / name)
    trainer = PPOTrainer(
        str(tmp_path / "policy"), settings_for(tmp_path / "run"), reward_funcs=str(tmp_path / "judge"),
        ref_model=str(tmp_path / "policy"), value_model=str(tmp_path / "judge"), train_dataset=list(PROMPTS),
    )  # fmt: skip
    assert len(trainer.processing_class) == SIZE
    trainer.train()
    same = PPOTrainer(
        policy, settings_for(tmp_path / "run"), tokenizer_of(SIZE), judge, value_model=classifier(),
        train_dataset=list(PROMPTS),
    )  # fmt: skip
    same.train()
    assert torch.equal(weights(trainer), weights(same))
    assert "rewards/judge/mean" in updates_of(trainer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda ids: [1.0], "1 scores for 16"),
        (lambda ids: [None] * len(ids), "None for every"),
        (lambda ids: [1.0] * 15 + [float("nan")], "nan"),
        (lambda ids: [float("inf")] * 16, "inf"),
        (lambda ids: [[1.0]] * 15 + [[1.0] * 9], "tokens of completion"),
        (lambda ids: [[float("nan")] * len(row) for row in ids], "nan"),
        (lambda ids: ["good"] * 16, "number"),
        (lambda ids: [None, *[[None] * len(row) for row in ids[1:]]], "number|None"),
        (lambda ids: None, "list|None"),
        (lambda ids: 1.0, "list|number"),
        (lambda ids: torch.ones(16, 3), "tokens of completion"),
    ],
)  # fmt: skip
def test_scores_that_are_none_are_refused_by_the_functions_name(answer, reason, tmp_path):
    def strange(completion_ids):
        return answer(completion_ids)

    trainer = quick(tmp_path, reward_funcs=strange, score=None)
    before = weights(trainer)
    with pytest.raises(BadInput, match="strange") as raised:
        trainer.train()
    raised.match(reason)
    assert torch.equal(weights(trainer), before)


def test_rewards_that_cannot_judge_are_refused(tmp_path):
    for reward, reason in (
        (torch.nn.Linear(2, 1), "wrap it in a function"),
        (classifier(num_labels=2), "num_labels=1"),
        (undecided(), "sequence classifier"),
        (classifier(SIZE - 4), "reward_processing_classes"),
        (3, "function"),
        ([], "reward"),
        (None, "reward"),
    ):
        with pytest.raises(BadInput, match=reason):
            quick(tmp_path, reward_model=reward)
    with pytest.raises(BadInput, match="reward_weights"):
        quick(tmp_path, reward_weights=[1.0, 2.0])
    with pytest.raises(BadInput, match="reward_processing_classes"):
        quick(tmp_path, reward_processing_classes=[None, None])


def test_two_rewards_at_once_are_not_chosen_from_in_silence(tmp_path):
    with pytest.raises(BadInput, match="reward_model"):
        PPOTrainer(
            undecided(), settings_for(tmp_path), tokenizer_of(SIZE), Listener(), reward_model=classifier(),
            train_dataset=list(PROMPTS),
        )  # fmt: skip
