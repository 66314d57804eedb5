"""The About tab: how it works, and what to read next."""

from html import escape

import gradio as gr

from rlhf.config import ASSETS


STEPS = (
    (
        "Base model",
        "A small GPT-2 that has read everyday questions with all kinds of answers: good, curt, rambling, rude, off "
        "topic. It is fluent, and answers as people do, well and badly.",
    ),
    (
        "Reward model",
        "The same network with one number at its end. It reads pairs of answers of which people preferred one, and "
        "learns to give that one the higher score. Here simulated people judge by a written rubric, and err in about "
        "7 % of pairs.",
    ),
    (
        "PPO",
        "The base model answers questions, the reward model scores the answers, and proximal policy optimisation "
        "makes well-scored answers more likely, in small clipped steps. A KL penalty charges for drifting away from "
        "the base.",
    ),
    (
        "Comparison",
        "Both models answer the same unseen questions. The rubric, which no training step ever sees, checks that a "
        "higher score means a better answer.",
    ),
)
WORDS = (
    ("Score", "the one number that the reward model gives an answer."),
    ("Rubric (gold score)", "the exact hand-written scorer of the embedded world, 0 to 1; training never sees it."),
    ("KL", "how far the PPO model's word choices are from the base model's, in nats: 0 means the same model."),
    ("Entropy", "how undecided the model is about its words; it falls as it settles on a way of answering."),
    ("Episode", "one answer that was written, scored and learned from."),
)
READING = (
    (
        "Papers",
        (
            (
                "Training a helpful and harmless assistant with RLHF (Bai et al., 2022)",
                "https://arxiv.org/abs/2204.05862",
                "Anthropic's account of preferences, reward models and PPO at scale, and of what goes wrong.",
            ),
            (
                "Training language models to follow instructions (Ouyang et al., 2022)",
                "https://arxiv.org/abs/2203.02155",
                "InstructGPT: the three steps drawn above, with the KL penalty that this program uses too.",
            ),
            (
                "Attention is all you need (Vaswani et al., 2017)",
                "https://arxiv.org/abs/1706.03762",
                "The network inside all models here.",
            ),
        ),
    ),
    (
        "Code",
        (
            (
                "CleanRL's PPO",
                "https://docs.cleanrl.dev/rl-algorithms/ppo/",
                "PPO in one file, every detail explained; the best way into the algorithm itself.",
            ),
            ("TRL", "https://huggingface.co/docs/trl", "It trains the reward model here and named the metrics."),
        ),
    ),
    (
        "Explained",
        (
            ("Illustrating RLHF", "https://huggingface.co/blog/rlhf", "The whole pipeline in pictures; start here."),
            (
                "The Hugging Face deep RL course",
                "https://huggingface.co/learn/deep-rl-course",
                "From the first policy gradient to PPO and RLHF, with exercises.",
            ),
            ("PPO explained", "https://huggingface.co/blog/deep-rl-ppo", "Why the ratio is clipped, step by step."),
            (
                "Attention? Attention! (Lilian Weng)",
                "https://lilianweng.github.io/posts/2018-06-24-attention/",
                "Where attention comes from and what kinds there are.",
            ),
            (
                "Self-attention in NLP",
                "https://www.geeksforgeeks.org/self-attention-in-nlp/",
                "Queries, keys and values worked through by hand.",
            ),
            (
                "The illustrated Transformer",
                "https://jalammar.github.io/illustrated-transformer/",
                "The network, one drawing at a time.",
            ),
        ),
    ),
)


class AboutTab:
    """The tab: a diagram, the steps, the words and the reading list. All of it is our own text."""

    def __init__(self) -> None:
        diagram = (ASSETS / "workflow.svg").read_text(encoding="utf-8")
        gr.HTML(
            f"<article class='about'><p class='verdict'>A language model learns from what people prefer, here, on an "
            f"ordinary computer.</p><div class='diagram' tabindex='0' role='group' aria-label='Workflow'>"
            f"{diagram}</div>"
            f"{_steps()}<h3>Words on the curves</h3>{_words()}<h3>To read</h3>{_reading()}</article>",
            apply_default_css=False,
        )


def _steps() -> str:
    items = "".join(f"<li><b>{escape(name)}</b><p>{escape(text)}</p></li>" for name, text in STEPS)
    return f'<ol class="steps">{items}</ol>'


def _words() -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in WORDS)
    return f'<dl class="words">{items}</dl>'


def _reading() -> str:
    groups = ""
    for name, entries in READING:
        items = "".join(
            f'<li><a href="{escape(link)}" target="_blank" rel="noopener noreferrer">{escape(title)}</a>'
            f"<p>{escape(line)}</p></li>"
            for title, link, line in entries
        )
        groups += f"<section><h4>{escape(name)}</h4><ul>{items}</ul></section>"
    return f'<div class="reading">{groups}</div>'
