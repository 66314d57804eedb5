"""Making the embedded assets: the tokenizer and the base model from the written world.

The base model reads each dialog once: question, an answer good or bad, and mostly what the asker writes back. It thus
speaks as many people do, and has seen what people think of it.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import TrainerCallback


from rlhf.config import PretrainConfig
from rlhf.everyday import prompt_splits, subject_of, write_answer, write_reaction
from rlhf.everyday.answers import REACTION_RATE
from rlhf.everyday.world import Topic


PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SMALL_TALK = 0.12
"""Share of the dialogs that are not about a topic."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}\n"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""A question is its text and a line break; an answer is its text and the end token."""


def write_dialogs(count: int, seed: int) -> Iterator[str]:
    """`count` dialogs as one text each, from the questions that pre-training may read."""
    rng = random.Random(seed)
    splits = prompt_splits()
    asked = [question for name in ("reward", "ppo", "corpus") for question in splits[name]]
    topics = [question for question in asked if isinstance(subject_of(question), Topic)]
    others = [question for question in asked if not isinstance(subject_of(question), Topic)]
    for _ in range(count):
        question = rng.choice(others if rng.random() < SMALL_TALK else topics)
        answer, kind = write_answer(subject_of(question), rng)
        dialog = f"{question}\n{answer}{EOS}"
        yield f"{dialog}{write_reaction(kind, rng)}{EOS}" if rng.random() < REACTION_RATE else dialog


def train_tokenizer(dialogs: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose pad, bos and eos are three different tokens; a text begins with bos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((dialog.replace(EOS, "\n") for dialog in dialogs), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pad dialogs on the right, (B, T). Causal attention needs no mask there: no token looks at a later pad."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=0),
        "labels": pad(ids, batch_first=True, padding_value=-100),
    }


def pretrain(config: PretrainConfig, callbacks: list[TrainerCallback] | None = None) -> Path:
    """Train tokenizer and base model and save both as one Transformers folder; returns the folder."""
    dialogs = list(write_dialogs(config.num_dialogs, config.seed))
    tokenizer = train_tokenizer(dialogs[:40_000], config.vocab_size)
    data = Dataset.from_dict({"input_ids": tokenizer(dialogs)["input_ids"]})
    data = data.map(lambda row: {"length": len(row["input_ids"])})
    set_seed(config.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            # The same function as GPT-2's "gelu_new", in one fused kernel: a step takes a quarter less time.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    args = TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=config.per_device_train_batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.02,
        weight_decay=0.05,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        seed=config.seed,
    )
    trainer = Trainer(model=model, args=args, train_dataset=data, data_collator=collate, callbacks=callbacks)
    trainer.train()
    model.save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)
    return Path(config.output_dir)
