"""Small worlds for the tests of PPO: a few tokens, a tiny GPT-2, and a trainer ready to run."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from rlhf.models.generate import generate
from rlhf.ppo import PPOConfig, PPOTrainer


PAD, BOS, EOS = 0, 1, 2
"""Ids of the special tokens in every world; ordinary tokens, t3, t4 ..., follow."""


def tokenizer_of(size):
    """A tokenizer of `size` words, special tokens included; texts are words between spaces."""
    vocabulary = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS} | {f"t{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def small_gpt2(size, kind=GPT2LMHeadModel, *, seed=0, scale=0.5, **config):
    """A GPT-2 over `size` tokens; `scale` is the spread of its random weights, so of its choices."""
    set_seed(seed)
    shape = {"n_positions": 8, "n_embd": 32, "n_layer": 1, "n_head": 2, "tie_word_embeddings": False, **config}
    without_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"vocab_size": size, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return kind(GPT2Config(**tokens, **shape, **without_dropout, initializer_range=scale)).eval()


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_model(folder, template=True):
    """A tiny Llama with random weights over bytes, saved with a tokenizer whose chat template is ChatML, or with none.

    Without one it is as GPT-2: one special token, which begins, ends and pads.
    """
    special = ["<|im_end|>", "<|im_start|>", "<pad>"] if template else ["<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(special + letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_end|>")
    fast.add_special_tokens(
        {"additional_special_tokens": special[1:2], **({"pad_token": "<pad>"} if template else {})}
    )
    fast.chat_template = CHATML if template else None
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def trainer_for(model, score, folder, *, train_dataset=("<bos>",), **settings):
    """A `PPOTrainer` of a small model against score(ids), ids being a response as a tuple.

    Keywords that `PPOTrainer` itself takes go to it, all others to `PPOConfig`; `processing_class` and `reward_funcs`
    may be given to replace the world's own. Nothing is printed, saved or reported unless asked for.
    """
    of_trainer = (
        "processing_class", "reward_funcs", "reward_model", "eval_dataset", "reward_processing_classes", "value_model",
        "ref_model", "callbacks", "optimizers", "peft_config", "data_collator",
    )  # fmt: skip
    given = {name: settings.pop(name) for name in of_trainer if name in settings}

    def reward(prompts, completions, completion_ids):
        return [score(tuple(ids)) for ids in completion_ids]

    if "reward_model" not in given:
        given.setdefault("reward_funcs", reward)
    given.setdefault("processing_class", tokenizer_of(model.get_input_embeddings().weight.size(0)))
    defaults = {
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "total_episodes": 16 * 4,
        "response_length": 5,
        "temperature": 1.0,
        "num_sample_generations": 0,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    args = PPOConfig(output_dir=str(folder), **{**defaults, **settings})
    trainer = PPOTrainer(model, args, train_dataset=list(train_dataset), **given)
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---------------------------------------------------------------------------------------------------------------------
# The world of most tests of the trainer: prompts of different lengths, a policy that is sure of nothing


PROMPTS = ("<bos>", "<bos> t3", "t5 t4 t3", "t7 t6", "<bos> t8 <eos> t9")
SIZE = 12
"""Tokens of the vocabulary."""


def undecided(size=SIZE, seed=0):
    """A model that is sure of nothing, so that lengths differ and some responses end."""
    return small_gpt2(size, seed=seed, scale=0.1, n_positions=16)


def classifier(size=SIZE, num_labels=1, seed=1):
    return small_gpt2(size, GPT2ForSequenceClassification, seed=seed, scale=0.3, n_positions=32, num_labels=num_labels)


def fours(ids):
    """A score that differs between responses and is easily learnt."""
    return float(ids.count(4)) - 0.1 * len(ids)


def quick(folder, model=None, score=fours, **settings):
    """A trainer of 16 responses an update, four updates, to prompts of different lengths."""
    return trainer_for(model or undecided(), score, folder, **{"train_dataset": PROMPTS, **settings})


def settings_for(folder, **changes):
    """Settings of a short silent run, for tests that call `PPOTrainer` themselves."""
    settings = {
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "num_sample_generations": 0,
        "learning_rate": 3e-3, "per_device_train_batch_size": 8, "response_length": 4, "total_episodes": 16,
    }  # fmt: skip
    return PPOConfig(output_dir=str(folder), **{**settings, **changes})


LONG_MEMORY = {
    "kl_controller": "adaptive", "kl_target": 0.05, "kl_horizon": 100, "reward_normalization": "running",
    "num_mini_batches": 2, "save_strategy": "steps", "save_steps": 2, "kl_coef": 0.2,
}  # fmt: skip
"""Settings under which an update depends on all updates before it."""


def mask_of(*lengths, width):
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def weights(trainer):
    """All that is trained."""
    return torch.cat([flat(trainer.model), flat(trainer.value_model)])


def weights_after(trainer):
    trainer.train()
    return weights(trainer)


def updates_of(trainer):
    """The lines of metrics that updates wrote."""
    return [line for line in trainer.state.log_history if "objective/scores" in line]


UNTIMED = ("time/", "tokens_per_second/", "eps")
"""How the metrics begin that tell the time."""


def assert_same_run(one, other):
    """Two runs of four updates with the same weights and, the time apart, the same metrics."""
    assert torch.equal(weights(one), weights(other))
    assert len(updates_of(one)) == len(updates_of(other)) == 4
    for line, again in zip(updates_of(one), updates_of(other), strict=True):
        for name in line:
            assert name.startswith(UNTIMED) or line[name] == again[name], name


class Listener:
    """A reward function that remembers what it was asked."""

    def __init__(self, score=fours):
        self.score, self.prompts, self.ids, self.texts = score, [], [], []

    def __call__(self, prompts, completions, completion_ids):
        self.prompts += prompts
        self.ids += completion_ids
        self.texts += completions
        return [self.score(tuple(ids)) for ids in completion_ids]


class AfterStep(TrainerCallback):
    """Calls action(state, control) after each update."""

    def __init__(self, action):
        self.action = action

    def on_step_end(self, args, state, control, **kwargs):
        self.action(state, control)


# ---------------------------------------------------------------------------------------------------------------------
# What tests replace inside the trainer


WHERE = {
    "MICRO_BATCH_TOKENS": "rlhf.ppo.logprobs",
    "LOGITS_AT_ONCE": "rlhf.ppo.logprobs",
    "generate": "rlhf.ppo.trainer",
    "logits_at": "rlhf.ppo.logprobs",
    "compute_rewards": "rlhf.ppo.algorithm",
}
"""The module in which PPO looks up each name."""


def replace(monkeypatch, name, value):
    """Let PPO find something else under a name."""
    monkeypatch.setattr(f"{WHERE[name]}.{name}", value)


def rearrange(monkeypatch, change):
    """Let `change` have the responses between sampling and learning."""
    replace(monkeypatch, "generate", lambda *args, **settings: change(generate(*args, **settings)))
