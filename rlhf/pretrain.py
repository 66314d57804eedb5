"""Makes the embedded assets: tokenizer and base model from the written world, preference pairs from the base model.

Pre-training has two passes. The first reads many dialogs once: a question, a good or bad answer, and mostly the
asker's reaction. The second, contrastive pass shows each question with a fitting and an off-topic answer and trains
mainly on the asker's reaction. The base model then answers as well and as badly as people do, and can tell the two
apart.
"""

import gzip
import json
import math
import random
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from rlhf.config import PreferencesConfig, PretrainConfig
from rlhf.data.load import as_prompt
from rlhf.everyday import gold_score, plain_reaction, prefer, prompt_splits, subject_of, write_answer, write_reaction
from rlhf.everyday.answers import REACTION_RATE, WRITERS
from rlhf.everyday.world import Topic
from rlhf.models import load_policy
from rlhf.models.generate import generate
from rlhf.models.packed import shuffled_batches_by_length


PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SMALL_TALK = 0.12
"""Share of dialogs that are not about a topic."""
ANSWERS_AT_ONCE = 64
"""Answers sampled per batch."""
CONTRAST_BATCH = 36
"""Dialogs per step of the contrastive pass, without their twins."""
TWIN = {"good": "off_topic", "off_topic": "good"}
"""Kind of a dialog's answer -> kind of its twin's answer."""
TEXT_WEIGHT = (0.3, 20.0)
"""Weight of the text's loss relative to the reactions' at the start of the contrastive pass, and after `RAMP`."""
RAMP = 0.6
"""Share of the contrastive steps over which that weight grows, geometrically."""
CONTRAST_LR_SCALE = 0.3
"""Learning rates of the contrastive pass relative to the first."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}\n"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""A question is followed by a line break, an answer by the end token."""


@cache
def _questions() -> tuple[list[str], list[str]]:
    """The questions that pre-training may read: those about topics, and all others."""
    splits = prompt_splits()
    asked = [question for name in ("reward", "ppo", "corpus") for question in splits[name]]
    topics = [question for question in asked if isinstance(subject_of(question), Topic)]
    return topics, [question for question in asked if not isinstance(subject_of(question), Topic)]


def _sample_question(rng: random.Random) -> str:
    topics, others = _questions()
    return rng.choice(others if rng.random() < SMALL_TALK else topics)


def write_dialogs(count: int, seed: int) -> Iterator[str]:
    """Write `count` dialogs, each as one text."""
    rng = random.Random(seed)
    for _ in range(count):
        question = _sample_question(rng)
        answer, kind = write_answer(subject_of(question), rng)
        dialog = f"{question}\n{answer}{EOS}"
        yield f"{dialog}{write_reaction(kind, rng)}{EOS}" if rng.random() < REACTION_RATE else dialog


def write_contrasts(rng: random.Random) -> tuple[list[str], list[str]]:
    """Dialogs of one contrastive step, and their twins.

    A dialog with a good answer has a twin with the same question and an off-topic answer, and the other way round. The
    asker always reacts, in the same words for each kind of answer.
    """

    def dialog(question: str, answer: str, kind: str) -> str:
        return f"{question}\n{answer}{EOS}{plain_reaction(kind)}{EOS}"

    dialogs, twins = [], []
    for _ in range(CONTRAST_BATCH):
        question = _sample_question(rng)
        subject = subject_of(question)
        answer, kind = write_answer(subject, rng)
        dialogs.append(dialog(question, answer, kind))
        if isinstance(subject, Topic) and kind in TWIN:
            twins.append(dialog(question, WRITERS[TWIN[kind]](subject, rng), TWIN[kind]))
    return dialogs, twins


def train_tokenizer(dialogs: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with distinct pad, bos and eos tokens; it begins every text with bos."""
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


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 with random weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            # The same function as GPT-2's "gelu_new" in one fused kernel, which makes a step a quarter faster.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def optimizers(model: GPT2LMHeadModel, config: PretrainConfig, lr_scale: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices (Jordan 2024), AdamW for the rest, with learning rates times `lr_scale`.

    In equal time on two cores the loss was 1.65 with Muon and 2.25 with AdamW alone, both tuned.
    """
    named = [(p.ndim == 2 and ".h." in name, p) for name, p in model.named_parameters()]
    matrices, others = [p for inner, p in named if inner], [p for inner, p in named if not inner]
    return [
        torch.optim.Muon(matrices, lr=lr_scale * config.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=lr_scale * config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def pad_right(rows: list[list[int]]) -> torch.Tensor:
    """Token rows -> ids (B, S), padded on the right with each row's last token.

    A causal model needs no mask for it: no real token sees the padding. A pad token would make Transformers warn.
    """
    width = max(map(len, rows))
    return torch.tensor([row + row[-1:] * (width - len(row)) for row in rows])


def token_losses(model: GPT2LMHeadModel, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses (B, T - 1) of all tokens but the first, and masks of the text (question and answer) and the reaction.

    The reaction is everything after the first end token.
    """
    ids = pad_right(rows)
    logits = model(input_ids=ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    position = torch.arange(1, ids.size(1))
    valid = position < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    is_reaction = position > (ids == model.config.eos_token_id).int().argmax(dim=1, keepdim=True)
    return losses, valid & ~is_reaction, valid & is_reaction


def reading(model: GPT2LMHeadModel, rows: list[list[int]], config: PretrainConfig) -> Iterator[torch.Tensor]:
    """The loss of each step of the first pass: the mean over all tokens. Every dialog is read once."""
    order = random.Random(config.seed)
    for batch in shuffled_batches_by_length([len(row) for row in rows], config.per_device_train_batch_size, order):
        ids = pad_right([rows[row] for row in batch])
        lengths = torch.tensor([len(rows[row]) for row in batch]).unsqueeze(1)
        labels = ids.masked_fill(torch.arange(ids.size(1)) >= lengths, -100)
        yield model(input_ids=ids, labels=labels).loss


def contrasting(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, config: PretrainConfig
) -> Iterator[torch.Tensor]:
    """The loss of each step of the second pass: the reactions' losses per dialog plus the text's mean, weighted.

    Whether an answer fits its question shows only in the reaction, one bit among fifty tokens. The first pass does not
    learn it: off-topic answers get as many thanks. The contrast of twins teaches it, and the growing weight of the
    text then restores the model's fluency. Twins count by their reactions only, so that the model still answers as
    well and as badly as people do.
    """
    rng = random.Random(config.seed + 1)
    first, last = TEXT_WEIGHT
    for step in range(config.listening_steps):
        dialogs, twins = write_contrasts(rng)
        rows = tokenizer(dialogs + twins)["input_ids"]
        losses, text, reaction = token_losses(model, rows)
        ramp = min(1.0, step / (RAMP * config.listening_steps))
        text_loss = losses[: len(dialogs)][text[: len(dialogs)]].mean()
        yield losses[reaction].sum() / len(rows) + first * (last / first) ** ramp * text_loss


def descend(
    model: GPT2LMHeadModel, losses: Iterable[torch.Tensor], steps: int, opts: list[torch.optim.Optimizer], label: str
) -> None:
    """One optimizer step per loss, each computed only when it is needed. Warm-up, then cosine decay to zero."""

    def lr_factor(step: int) -> float:
        return min(1.0, (step + 1) / (0.03 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor) for optimizer in opts]
    progress = tqdm(losses, total=steps, desc=label)
    for step, loss in enumerate(progress):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(opts, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def pretrain(config: PretrainConfig) -> Path:
    """Train tokenizer and base model and save both as one Transformers folder; returns the folder."""
    dialogs = list(write_dialogs(config.num_dialogs, config.seed))
    tokenizer = train_tokenizer(dialogs[:40_000], config.vocab_size)
    rows = tokenizer(dialogs)["input_ids"]
    set_seed(config.seed)
    model = new_model(config, tokenizer)
    steps = math.ceil(len(rows) / config.per_device_train_batch_size)
    descend(model, reading(model, rows, config), steps, optimizers(model, config, 1.0), "Reading")
    losses = contrasting(model, tokenizer, config)
    descend(model, losses, config.listening_steps, optimizers(model, config, CONTRAST_LR_SCALE), "Contrast")
    model.save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)
    return Path(config.output_dir)


def finished_answers(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    config: PreferencesConfig,
    seed: int,
) -> list[str]:
    """One answer to each prompt; an empty text where the response did not end."""
    answers = []
    queries = tokenizer(prompts)["input_ids"]
    for start in range(0, len(queries), ANSWERS_AT_ONCE):
        generation = generate(
            model,
            queries[start : start + ANSWERS_AT_ONCE],
            max_new_tokens=config.response_length,
            temperature=config.temperature,
            eos_id=tokenizer.eos_token_id,
            generator=torch.Generator().manual_seed(seed * 1_000_003 + start),
        )
        texts = tokenizer.batch_decode(generation.lists(), skip_special_tokens=True)
        answers += [
            text.strip() if ended else "" for text, ended in zip(texts, generation.ended.tolist(), strict=True)
        ]
    return answers


def preferences(config: PreferencesConfig) -> Path:
    """Sample two answers to each reward-training prompt, and let a simulated annotator choose; returns the file.

    Pairs with an empty or unfinished answer, or too close to call, are skipped.
    """
    rng = random.Random(config.seed)
    model, tokenizer = load_policy(config.model_name_or_path)
    questions, pairs = list(prompt_splits()["reward"]), []
    with tqdm(total=config.num_pairs, desc="Preference pairs") as bar:
        for epoch in range(1000):
            rng.shuffle(questions)
            prompts = [as_prompt(question) for question in questions[:512]]
            first, second = (
                finished_answers(model, tokenizer, prompts, config, config.seed * 10_000 + 2 * epoch + side)
                for side in range(2)
            )
            for prompt, a, b in zip(prompts, first, second, strict=True):
                if not (a and b):
                    continue
                choice = prefer(gold_score(prompt.strip(), a), gold_score(prompt.strip(), b), rng)
                if choice is not None:
                    chosen, rejected = (a, b) if choice else (b, a)
                    pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
            bar.update(min(len(pairs), config.num_pairs) - bar.n)
            if len(pairs) >= config.num_pairs:
                break
    # Without a time stamp, so that the same pairs give the same file.
    with gzip.GzipFile(config.output_file, "wb", mtime=0) as file:
        for pair in pairs[: config.num_pairs]:
            file.write((json.dumps(pair, ensure_ascii=False) + "\n").encode())
    return Path(config.output_file)
