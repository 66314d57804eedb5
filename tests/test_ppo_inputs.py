"""Prompts and models: every shape in which they may be given, and what is refused before time is spent."""

import copy

import pytest
import torch
from datasets import Dataset, IterableDataset
from worlds import (
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
    weights_after,
)

from rlhf.config import BadInput
from rlhf.ppo import PPOTrainer


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_call_written_for_trl_runs_unchanged(tmp_path):
    tokenizer = tokenizer_of(SIZE)
    tokenizer.padding_side = "left"
    padded = tokenizer(list(PROMPTS), padding=True)
    data = Dataset.from_dict({"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]})
    policy = undecided()
    trainer = PPOTrainer(
        args=settings_for(
            tmp_path, num_ppo_epochs=1, num_mini_batches=1, missing_eos_penalty=1.0, stop_token="eos",
            kl_estimator="k1", whiten_rewards=False, local_rollout_forward_batch_size=4,
            sft_model_path="x", reward_model_path="y", dataset_num_proc=2, ds3_gather_for_generation=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=classifier(seed=1),
        value_model=classifier(seed=2),
        train_dataset=data,
        eval_dataset=data,
        peft_config=None,
        data_collator=None,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.generate_completions()
    line = updates_of(trainer)[0]
    of_trl = {
        "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
        "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
        "val/clipfrac_avg", "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
    }  # fmt: skip
    assert of_trl <= line.keys()
    assert line["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_pads_of_tokenised_prompts_are_told_by_the_mask_alone(tmp_path):
    """The same prompts as text, as ids, and as ids padded on the left with the end token, train the same policy."""
    tokenizer = tokenizer_of(SIZE)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    padded = tokenizer(list(PROMPTS), padding=True)
    rows = [
        {"input_ids": ids, "attention_mask": mask}
        for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)
    ]
    plain = [{"input_ids": ids} for ids in tokenizer(list(PROMPTS))["input_ids"]]
    tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
    formatted = Dataset.from_list(rows).with_format("torch")
    found = [
        weights_after(quick(tmp_path, train_dataset=given, total_episodes=16))
        for given in (PROMPTS, plain, rows, tensors, formatted)
    ]
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_conversations_go_through_the_chat_template(tmp_path):
    tokenizer = tokenizer_of(SIZE)
    tokenizer.chat_template = (
        "<bos> {% for message in messages %}{{ message['content'] }} {% endfor %}"
        "{% if deep %}t9 {% endif %}{% if add_generation_prompt %}t3{% endif %}"
    )
    conversations = [[{"role": "user", "content": "t5"}], [{"role": "user", "content": "t6 t7"}]]
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [float(len(completion[0]["content"])) for completion in completions]

    trainer = quick(
        tmp_path, reward_funcs=reward, processing_class=tokenizer, chat_template_kwargs={"deep": True},
        train_dataset=[{"prompt": messages} for messages in conversations],
    )  # fmt: skip
    assert [prompt.ids for prompt in trainer.prompts.prompts] == [[1, 5, 9, 3], [1, 6, 7, 9, 3]]
    trainer.train()
    prompts, completions = seen[0]
    assert all(prompt in conversations for prompt in prompts)
    assert all(completion[0]["role"] == "assistant" for completion in completions)
    with pytest.raises(BadInput, match="chat template"):
        quick(tmp_path, train_dataset=[{"prompt": messages} for messages in conversations])


def test_a_stream_of_prompts_needs_a_number_of_updates(tmp_path):
    def rows():
        for number in range(6):
            yield {"prompt": f"t{3 + number}"}

    class Stream:
        __iter__ = staticmethod(rows)

    for stream in (IterableDataset.from_generator(rows), Stream()):
        asked = Listener()
        args = settings_for(tmp_path, total_episodes=None, max_steps=2)
        trainer = PPOTrainer(undecided(), args, tokenizer_of(SIZE), asked, train_dataset=stream)
        trainer.train()
        assert trainer.state.global_step == 2
        assert asked.prompts == [f"t{3 + number % 6}" for number in range(16)]
    with pytest.raises(BadInput, match="max_steps"):
        args = settings_for(tmp_path, total_episodes=None)
        PPOTrainer(undecided(), args, tokenizer_of(SIZE), Listener(), train_dataset=Stream())


def test_a_generator_is_read_once_and_its_end_is_told_from_emptiness(tmp_path):
    def trainer_of(count):
        stream = ({"prompt": f"t{3 + number % 9}"} for number in range(count))
        return PPOTrainer(
            undecided(), settings_for(tmp_path, max_steps=2), tokenizer_of(SIZE), Listener(), train_dataset=stream
        )

    trainer_of(16).train()
    with pytest.raises(BadInput, match="empty"):
        trainer_of(0).train()
    with pytest.raises(BadInput, match="ended|ran out|exhausted"):
        trainer_of(10).train()


def test_the_old_order_of_arguments_is_a_type_error_that_names_the_fix(tmp_path):
    args, tokenizer, model = settings_for(tmp_path), tokenizer_of(SIZE), undecided()
    with pytest.raises(TypeError, match="model first"):
        PPOTrainer(args, tokenizer, model, reward_model=fours, train_dataset=list(PROMPTS))
    with pytest.raises(TypeError, match="model first|keyword"):
        PPOTrainer(args, tokenizer, model, None, classifier(), list(PROMPTS), classifier())


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"text": "t3"}], "prompt.*input_ids.*text"),
        ([], "empty"),
        (["t3", ""], "empty"),
        ([{"prompt": None}], "prompt"),
        ([{"input_ids": []}], "empty"),
        ([{"input_ids": [3, 4], "attention_mask": [0, 0]}], "empty"),
        (["t3 " * 12], "no room"),
        ([{"prompt": []}], "prompt"),
        ([7], "prompt"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_answered_are_refused_at_once(rows, reason, tmp_path):
    with pytest.raises(BadInput, match=reason):
        quick(tmp_path, train_dataset=rows)
    if rows:
        with pytest.raises(BadInput, match=reason):
            quick(tmp_path, eval_dataset=rows)


def test_a_data_set_of_another_kind_is_refused(tmp_path):
    with pytest.raises(BadInput, match="train_dataset"):
        PPOTrainer(undecided(), settings_for(tmp_path), tokenizer_of(SIZE), Listener())
    with pytest.raises(BadInput, match="no room"):
        quick(tmp_path, response_length=16)


def test_models_that_do_not_belong_together_are_refused(tmp_path):
    model = undecided()
    with pytest.raises(BadInput, match="do not belong together"):
        quick(tmp_path, model, processing_class=tokenizer_of(SIZE + 2))
    quick(tmp_path, undecided(40), processing_class=tokenizer_of(SIZE), total_episodes=16).train()  # room to spare
    with pytest.raises(BadInput, match="ref_model"):
        quick(tmp_path, undecided(40), processing_class=tokenizer_of(SIZE), ref_model=undecided())
    with pytest.raises(BadInput, match="processing_class"):
        quick(tmp_path, model, processing_class=None)
    with pytest.raises(BadInput, match="ref_model must not be"):
        quick(tmp_path, model, ref_model=model)
    with pytest.raises(BadInput, match="ref"):
        quick(tmp_path, model, ref_model=undecided(SIZE + 4)).train()


def test_value_models_that_cannot_value_are_refused(tmp_path):
    for critic in (undecided(), classifier(num_labels=2), classifier(SIZE - 4), torch.nn.Linear(2, 1)):
        with pytest.raises(BadInput, match="value"):
            quick(tmp_path, value_model=critic)
    judge = classifier()
    with pytest.raises(BadInput, match="value_model"):
        quick(tmp_path, reward_model=judge, value_model=judge)  # it would change while it judges


def test_a_model_that_is_no_language_model_is_refused(tmp_path):
    for model in (classifier(), torch.nn.Linear(2, 1)):
        with pytest.raises((BadInput, TypeError), match="model"):
            PPOTrainer(model, settings_for(tmp_path), tokenizer_of(SIZE), Listener(), train_dataset=list(PROMPTS))
