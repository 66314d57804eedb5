"""Small worlds for the tests of PPO: a few tokens, a tiny GPT-2, and a trainer ready to run."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    set_seed,
)

from rlhf.ppo import PPOConfig, PPOTrainer


PAD, BOS, EOS = 0, 1, 2
"""Ids of the special tokens in every world; ordinary tokens, t3, t4 ..., follow."""


def tokenizer_of(size):
    """A tokenizer of `size` words, special tokens included; texts are words between spaces."""
    vocabulary = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS} | {f"t{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def small_model(size, seed=0, scale=0.5, n_positions=8):
    """A one-layer GPT-2 over `size` tokens; `scale` is the spread of its random weights, so of its choices."""
    set_seed(seed)
    config = GPT2Config(
        vocab_size=size,
        n_positions=n_positions,
        n_embd=32,
        n_layer=1,
        n_head=2,
        initializer_range=scale,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config).eval()


CHAT_TEMPLATE = (
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
    fast.chat_template = CHAT_TEMPLATE if template else None
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
