"""Making the embedded assets: tokenizer and base model from the written world, preference pairs from the base model.

The base model reads each dialog once: question, an answer good or bad, and mostly what the asker writes back. It thus
speaks as many people do, and has seen what people think of it.
"""

import gzip
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from rlhf.config import PreferencesConfig, PretrainConfig
from rlhf.data import as_prompt
from rlhf.evaluate import answer_prompts
from rlhf.everyday import gold_score, prefer, prompt_splits, subject_of, write_answer, write_reaction
from rlhf.everyday.answers import REACTION_RATE
from rlhf.everyday.world import Topic
from rlhf.generate import pad_right
from rlhf.models import load_policy


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


def batches(rows: list[list[int]], size: int, rng: random.Random) -> Iterator[list[list[int]]]:
    """Every row once, in batches of rows of like length: sorted within a stretch of forty batches, then shuffled."""
    for start in range(0, len(rows), 40 * size):
        stretch = sorted(rows[start : start + 40 * size], key=len)
        cut = [stretch[first : first + size] for first in range(0, len(stretch), size)]
        rng.shuffle(cut)
        yield from cut


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 of the given size with random weights."""
    return GPT2LMHeadModel(
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


def optimizers(model: GPT2LMHeadModel, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices (Jordan 2024), AdamW for the rest.

    After the same time on two cores the loss was 1.65 with Muon and 2.25 with AdamW alone at its best.
    """
    named = [(p.ndim == 2 and ".h." in name, p) for name, p in model.named_parameters()]
    matrices, others = [p for inner, p in named if inner], [p for inner, p in named if not inner]
    return [
        torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def pretrain(config: PretrainConfig) -> Path:
    """Train tokenizer and base model and save both as one Transformers folder; returns the folder."""
    dialogs = list(write_dialogs(config.num_dialogs, config.seed))
    tokenizer = train_tokenizer(dialogs[:40_000], config.vocab_size)
    rows = tokenizer(dialogs)["input_ids"]
    set_seed(config.seed)
    model = new_model(config, tokenizer)
    opts = optimizers(model, config)
    steps = sum(1 for _ in batches(rows, config.per_device_train_batch_size, random.Random(config.seed)))

    def pace(step: int) -> float:
        """A short warm-up, then a cosine to zero."""
        return min(1.0, (step + 1) / (0.03 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, pace) for optimizer in opts]
    progress = tqdm(batches(rows, config.per_device_train_batch_size, random.Random(config.seed)), total=steps)
    for step, batch in enumerate(progress):
        ids = pad_right(batch)
        lengths = torch.tensor([len(row) for row in batch]).unsqueeze(1)
        labels = ids.masked_fill(torch.arange(ids.size(1)) >= lengths, -100)
        # Right padding under causal attention: no token looks at a later pad, so no mask is needed.
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(opts, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)
    return Path(config.output_dir)


def preferences(config: PreferencesConfig) -> Path:
    """Let the base model answer each reward-training prompt twice, let a simulated annotator choose; returns the file.

    Unfinished answers and pairs too close to call are left out, as a person would skip them.
    """
    rng = random.Random(config.seed)
    model, tokenizer = load_policy(config.model_name_or_path)
    questions, pairs = list(prompt_splits()["reward"]), []
    with tqdm(total=config.num_pairs, desc="Preference pairs") as bar:
        for turn in range(1000):
            rng.shuffle(questions)
            prompts = [as_prompt(question) for question in questions[:512]]
            first, second = (
                answer_prompts(
                    model,
                    tokenizer,
                    prompts,
                    max_new_tokens=config.response_length,
                    temperature=config.temperature,
                    seed=config.seed * 10_000 + 2 * turn + side,
                )
                for side in range(2)
            )
            finished = [a and b for a, b in zip(first.ended, second.ended, strict=True)]
            for prompt, a, b, both in zip(prompts, first.texts, second.texts, finished, strict=True):
                scores = [gold_score(prompt.strip(), text) for text in (a, b)]
                choice = prefer(*scores, rng) if both else None
                if choice is not None:
                    chosen, rejected = (a, b) if choice else (b, a)
                    pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
            bar.update(min(len(pairs), config.num_pairs) - bar.n)
            if len(pairs) >= config.num_pairs:
                break
    # No time stamp inside: the same pairs make the same file.
    with gzip.GzipFile(config.output_file, "wb", mtime=0) as file:
        for pair in pairs[: config.num_pairs]:
            file.write((json.dumps(pair, ensure_ascii=False) + "\n").encode())
    return Path(config.output_file)
