"""Reward training reads packed pairs: the same loss, gradients and metrics as TRL's RewardTrainer on padded ones."""

import copy
import random

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    set_seed,
)
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rlhf.config import ASSETS
from rlhf.models.packed import PackedPairs, reading_pairs
from rlhf.reward import PackedRewardTrainer


SMALL = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
FAMILIES = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **SMALL),
    "llama": LlamaConfig(**LLAMA, **SMALL),
    "mistral": MistralConfig(sliding_window=5, **LLAMA, **SMALL),
}
PAIRS = (
    (12, 8, 5),  # tokens of the prompt and of both answers
    (1, 3, 9),
    (20, 1, 1),  # answers of the end token only: the texts are the same
    (0, 4, 6),  # nothing in common
    (4, 11, 2),
)


def classifier(family):
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(FAMILIES[family], attn_implementation="sdpa")
    return model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)


def pairs(margin=False):
    rng = random.Random(0)
    rows = []
    for prompt, *answers in PAIRS:
        asked = rng.choices(range(3, 50), k=prompt)
        first, second = ([*asked, *rng.choices(range(3, 50), k=length - 1), 2] for length in answers)
        rows.append({"chosen_ids": first, "rejected_ids": second})
    rows.append({"chosen_ids": [*rows[0]["chosen_ids"][:9], 2], "rejected_ids": [*rows[0]["chosen_ids"][:9], 7, 2]})
    rows.append({"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6]})  # one text is the beginning of the other
    return Dataset.from_list([{**row, **({"margin": i / 4} if margin else {})} for i, row in enumerate(rows)])


def trainer_of(kind, model, folder, data, peft_config=None, **settings):
    args = RewardConfig(
        str(folder), per_device_train_batch_size=3, per_device_eval_batch_size=4, num_train_epochs=2, logging_steps=1,
        eval_strategy="steps", eval_steps=2, gradient_checkpointing=False, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", learning_rate=1e-2, disable_tqdm=True, **settings,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "base")
    return kind(
        model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, peft_config=peft_config
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_padded_texts(family):
    model = classifier(family)
    batch = DataCollatorForPreference(pad_token_id=0)(list(pairs()))
    weights = torch.randn(len(batch["input_ids"]), 1)

    def scores_and_gradients():
        model.zero_grad()
        scores = model(**batch, use_cache=False).logits
        (scores * weights).sum().backward()
        return scores.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    scores, gradients = scores_and_gradients()
    with reading_pairs(model):
        packed_scores, packed_gradients = scores_and_gradients()
    torch.testing.assert_close(packed_scores, scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores_and_gradients()[0], scores)  # outside it reads as before


def test_what_both_texts_begin_with_is_read_once():
    rows = pairs()
    batch = DataCollatorForPreference(pad_token_id=0)(list(rows))
    packed = PackedPairs(**batch)
    lengths = [len(row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    assert len(packed.ids) == sum(lengths) - (12 + 1 + 20 + 0 + 4 + 9 + 1)
    assert packed.ids[packed.last].tolist() == [
        row[side][-1] for side in ("chosen_ids", "rejected_ids") for row in rows
    ]
    assert packed.ids[packed.token_of_cell].view_as(batch["input_ids"])[batch["attention_mask"].bool()].tolist() == [
        token for side in ("chosen_ids", "rejected_ids") for row in rows for token in row[side]
    ]


@pytest.mark.process
@pytest.mark.parametrize("settings", [{}, {"margin": True, "center_rewards_coefficient": 0.05}])
def test_training_and_its_metrics_are_trls(tmp_path, settings):
    data = pairs(settings.pop("margin", False))
    data = data.select([0, 1, 3, 4, 5, 6])  # between equal texts the accuracy is decided by rounding
    model = classifier("gpt2")
    logs = []
    for kind in (RewardTrainer, PackedRewardTrainer):
        trainer = trainer_of(kind, copy.deepcopy(model), tmp_path / kind.__name__, data, **settings)
        trainer.train()
        logs.append(trainer.state.log_history)
    for theirs, ours in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            if not name.endswith(("runtime", "per_second", "flos")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name


@pytest.mark.process
def test_adapters_learn_from_packed_pairs_as_from_padded_ones(tmp_path):
    from peft import LoraConfig

    data = pairs()
    model = classifier("llama")
    losses = []
    for kind in (RewardTrainer, PackedRewardTrainer):
        adapters = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"])
        trainer = trainer_of(kind, copy.deepcopy(model), tmp_path / kind.__name__, data, adapters)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[1][0] == pytest.approx(losses[0][0], abs=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # Adam magnifies rounding where gradients are near zero
    assert losses[0][0] != pytest.approx(losses[0][-1], abs=1e-3)
