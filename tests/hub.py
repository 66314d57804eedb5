"""A Hub cache as downloads leave it, holding small models with random weights under the names of real ones."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from worlds import CHATML


GPT2 = "openai-community/gpt2"
GPT2_IMDB = "lvwerra/gpt2-imdb"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
LLAMA = "meta-llama/Llama-3.2-1B"
SENTIMENT = "lvwerra/distilbert-imdb"
TEXTS = [
    f"{opening} the {noun} was {quality}, and {ending}."
    for opening in ("I think", "In the end", "To be honest", "As I said")
    for noun in ("film", "story", "acting", "music", "plan")
    for quality in ("wonderful", "dull", "too long", "a surprise")
    for ending in ("I would see it again", "nobody laughed", "that was enough")
]


def _byte_level(special, **roles):
    """A byte-level BPE as GPT-2's, with these special tokens; `roles` says which is which."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320 + len(special), special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def _gpt2():
    """Tied head, no pad token; begin, end and unknown are one token."""
    end = "<|endoftext|>"
    tokenizer = _byte_level([end], bos_token=end, eos_token=end, unk_token=end)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=96, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config), tokenizer, {"tokenizer_class": "GPT2Tokenizer"}


_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.2}
_SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def _smollm():
    """Llama's architecture, tied head, a chat template, a pad token that is the end token."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(names, bos_token=names[1], eos_token=names[2], unk_token=names[0], pad_token=names[2])
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2, **_SMALL
    )
    return LlamaForCausalLM(config), tokenizer, {"tokenizer_class": "GPT2Tokenizer"}


def _qwen():
    """Tied head, more rows in the embedding than tokens, a chat template, a pad token of its own, no begin token."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(names, eos_token=names[2], pad_token=names[0])
    tokenizer.chat_template = CHATML
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 5, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, **_SMALL
    )
    return Qwen2ForCausalLM(config), tokenizer, {"tokenizer_class": "Qwen2Tokenizer"}


def _llama():
    """A begin token before every text, no pad token, no chat template, weights in several files."""
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer = _byte_level(names, bos_token=names[0], eos_token=names[1])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", pair=f"{names[0]} $A $B", special_tokens=[(names[0], 0)]
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, **_SMALL
    )
    return LlamaForCausalLM(config), tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast"}


def _sentiment():
    """An encoder with two labels and a tokenizer of its own."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip
    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, dim=32, hidden_dim=64, n_layers=2, n_heads=2,
        initializer_range=0.2, id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    return DistilBertForSequenceClassification(config), tokenizer, {"tokenizer_class": "DistilBertTokenizer"}


FAMILIES = {GPT2: _gpt2, GPT2_IMDB: _gpt2, SMOLLM: _smollm, QWEN: _qwen, LLAMA: _llama, SENTIMENT: _sentiment}


def keep(cache, name, folder):
    """Put the files of a folder into a cache as the Hub's client does: blobs by digest, links by commit."""
    repository = Path(cache) / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(name.encode()).hexdigest()
    snapshot = repository / "snapshots" / commit
    for path in (repository / "blobs", repository / "refs", snapshot):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for file in Path(folder).iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return snapshot


def save(name, folder):
    """The small model of this name as a plain folder."""
    set_seed(len(name))
    model, tokenizer, written = FAMILIES[name]()
    model.save_pretrained(folder, max_shard_size="40KB" if name == LLAMA else "1GB")
    tokenizer.save_pretrained(folder)
    settings = Path(folder) / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **written}))


def make_cache(home):
    """A whole cache under this HF_HOME; returns its folder of models."""
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            save(name, folder)
            keep(Path(home) / "hub", name, folder)
    return Path(home) / "hub"
