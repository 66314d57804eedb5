"""Record what the PPOTrainer of TRL 1.12 computes on batches whose responses are given, for test_ppo_parity.py.

TRL 1.12 is the last version with a PPOTrainer, and the tests do without it. To record again:

    python -m venv trl112
    trl112/bin/pip install trl==1.12.0 "transformers==5.23.*" "torch==2.13.*"
    trl112/bin/python tests/record_trl.py

Three cases, all on the same prompts and the same tiny models:

    full     no response ends, one optimizer step: all numbers, the gradient, and the weights after the step
    ended    some responses end before the limit: all numbers of the update
    passes   as full, but two updates of three epochs, so that both losses are clipped; rewards are whitened

The numbers go into fixtures/trl_1_12.json, rows in the order of the prompts, and the weights into
fixtures/trl_1_12.safetensors, those before training too: the test draws no random number.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


FIXTURE = Path(__file__).parent / "fixtures" / "trl_1_12"
PAD, BOS, EOS, VOCAB = 0, 1, 2, 24
MODEL = {
    "vocab_size": VOCAB, "n_positions": 12, "n_embd": 12, "n_layer": 2, "n_head": 2, "initializer_range": 0.3,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "num_labels": 1,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
LIMIT = 7
LENGTHS = [1, 3, LIMIT, LIMIT, 5, LIMIT, 2, 4]
"""Of the responses of "ended". One says the end token as the last it may say; two never do."""
TRUNCATED = (3, 5)
# Adam's epsilon is large because the gradient of the keys' bias is zero but for rounding, which would become steps.
COMMON = {
    "learning_rate": 3e-3, "adam_epsilon": 1e-3, "per_device_train_batch_size": len(LENGTHS),
    "gradient_accumulation_steps": 1, "num_mini_batches": 1, "num_ppo_epochs": 1, "total_episodes": len(LENGTHS),
    "response_length": LIMIT, "temperature": 0.7, "kl_coef": 0.05, "cliprange": 0.2, "cliprange_value": 0.2,
    "vf_coef": 0.1, "gamma": 1.0, "lam": 0.95, "num_sample_generations": 0, "stop_token": None,
}  # fmt: skip
CASES = {
    "full": {},
    "ended": {"stop_token": "eos", "missing_eos_penalty": 1.0, "gamma": 0.98},
    "passes": {"num_ppo_epochs": 3, "total_episodes": 2 * len(LENGTHS), "gamma": 0.98, "whiten_rewards": True},
}
PER_ROW = (
    "logprobs", "ref_logprobs", "values", "scores", "kl", "non_score_reward", "rewards", "advantages", "returns",
    "padding_mask", "padding_mask_p1",
)  # fmt: skip
"""Variables of TRL's loop, with a row or a number for each response."""
PER_STEP = (
    "pg_loss_stats", "vf_loss_stats", "pg_clipfrac_stats", "vf_clipfrac_stats", "approxkl_stats", "entropy_stats",
    "ratio_stats",
)  # fmt: skip
"""Variables of TRL's loop, with a number for each optimizer step of an update."""


class WatchedTrainer(PPOTrainer):
    """TRL's trainer, which notes the variables of its loop when it logs: all of an update is still there then."""

    def log(self, logs, *args, **kwargs):
        seen = sys._getframe(1).f_locals
        self.updates.append(
            {
                "queries": [[token for token in row if token != PAD] for row in seen["queries"].tolist()],
                "rows": {name: seen[name].clone() for name in PER_ROW},
                "steps": {name.removesuffix("_stats"): seen[name].flatten().tolist() for name in PER_STEP},
                "metrics": {name: value for name, value in logs.items() if name != "eps"},
            }
        )
        super().log(logs, *args, **kwargs)


def make_tokenizer():
    words = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS} | {f"t{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def make_models():
    """Four different models: policy, reference not far from it, reward model and value model."""
    torch.manual_seed(0)
    policy, reference = (GPT2LMHeadModel(GPT2Config(**MODEL)) for _ in range(2))
    made = {"policy": policy, "ref": reference}
    made |= {name: GPT2ForSequenceClassification(GPT2Config(**MODEL)) for name in ("reward", "value")}
    with torch.no_grad():
        for near, own in zip(reference.parameters(), policy.parameters(), strict=True):
            near.copy_(own + 0.2 * near)
    for model in made.values():
        model.set_attn_implementation("eager")
    return made


def make_tokens():
    """Prompts of several lengths, and the responses of each case; only those of "ended" hold an end token."""
    generator = torch.Generator().manual_seed(1)

    def words(count):
        return torch.randint(3, VOCAB, (count,), generator=generator).tolist()

    prompts = [[BOS, *words(1 + row % 3)] for row in range(len(LENGTHS))]
    whole = [words(LIMIT) for _ in LENGTHS]
    ended = [
        row if number in TRUNCATED else [*row[: length - 1], EOS]
        for number, (row, length) in enumerate(zip(whole, LENGTHS, strict=True))
    ]
    return prompts, {"full": whole, "ended": ended, "passes": whole}


def say(answers):
    """A stand-in for TRL's sampling: each prompt gets its answer, padded, and the policy's logits for it."""

    def batch_generation(policy, queries, size, pad_id, generation_config):
        said = [answers[tuple(token for token in row if token != pad_id)] for row in queries.tolist()]
        responses = torch.tensor([[*answer, *[pad_id] * (LIMIT - len(answer))] for answer in said])
        whole = torch.cat([queries, responses], dim=1)
        with torch.no_grad():
            logits = ppo_trainer.forward(policy, whole, pad_id).logits[:, queries.size(1) - 1 : -1]
        return whole, logits / generation_config.temperature

    return batch_generation


def weights_of(made, *names):
    """Copies of the weights of some models, each named after its model."""
    return {f"{name}.{key}": value.detach().clone() for name in names for key, value in made[name].named_parameters()}


def run(settings, prompts, responses):
    """Train as a case says; returns what was seen of each update, the first gradient, and the models."""
    made = make_models()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    ppo_trainer.batch_generation = say({tuple(p): answer for p, answer in zip(prompts, responses, strict=True)})
    with tempfile.TemporaryDirectory() as folder:
        trainer = WatchedTrainer(
            args=PPOConfig(
                folder,
                **settings,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                logging_steps=1,
            ),
            processing_class=tokenizer,
            model=made["policy"],
            ref_model=made["ref"],
            reward_model=made["reward"],
            value_model=made["value"],
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
        )
        trainer.updates, gradient = [], {}

        def note_gradient(*_):
            for name in ("policy", "value") if not gradient else ():
                for key, value in made[name].named_parameters():
                    gradient[f"{name}.{key}"] = value.grad.clone()

        trainer.optimizer.optimizer.register_step_pre_hook(note_gradient)
        trainer.train()
    return trainer.updates, gradient, made


def in_order(update, prompts):
    """What was seen of an update, as plain lists with its rows in the order of the prompts."""
    order = [update["queries"].index(prompt) for prompt in prompts]
    rows = {name: values[order].tolist() for name, values in update["rows"].items()}
    metrics = {name: None if value != value else value for name, value in update["metrics"].items()}  # NaN is no JSON
    return {**rows, "steps": update["steps"], "metrics": metrics}


def main():
    prompts, responses = make_tokens()
    tensors = weights_of(make_models(), "policy", "ref", "reward", "value")
    cases = {}
    for name, own in CASES.items():
        settings = COMMON | own
        updates, gradient, made = run(settings, prompts, responses[name])
        cases[name] = {
            "settings": settings,
            "responses": responses[name],
            "updates": [in_order(update, prompts) for update in updates],
        }
        if name == "full":
            tensors |= {f"full.gradient.{key}": value for key, value in gradient.items()}
        if name != "ended":
            tensors |= {f"{name}.after.{key}": value for key, value in weights_of(made, "policy", "value").items()}
    FIXTURE.parent.mkdir(exist_ok=True)
    fixture = {
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "model": MODEL,
        "tokenizer": json.loads(make_tokenizer().to_str()),
        "prompts": prompts,
        "cases": cases,
    }
    FIXTURE.with_suffix(".json").write_text(json.dumps(fixture) + "\n", encoding="utf-8")
    save_file(tensors, FIXTURE.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
