"""The About tab: how it works, and what to read next."""

from html import escape

import gradio as gr

from rlhf.config import ASSETS


STEPS = (
    (
        "Base model",
        "A small GPT-2 that was trained on everyday questions with all kinds of answers: good, curt, rambling, rude, "
        "off topic. It writes fluent English and answers as people do, sometimes well and sometimes badly.",
    ),
    (
        "Reward model",
        "The same network with a single number, the score, as its output. It sees pairs of answers of which people "
        "preferred one, and learns to give that one the higher score. Here the people are simulated: they choose by a "
        "written rubric and get about 7 % of the pairs wrong.",
    ),
    (
        "PPO",
        "The base model answers questions, the reward model scores the answers, and PPO (proximal policy "
        "optimisation) makes high-scoring answers more likely, in small steps. A KL penalty lowers the "
        "reward as the model moves away from the base model.",
    ),
    (
        "Comparison",
        "Both models answer the same new questions. The rubric, which the models never see in training, checks "
        "whether a higher score really means a better answer.",
    ),
)
GLOSSARY = (
    ("Score", "the number that the reward model gives to an answer; higher is better."),
    (
        "Rubric (gold score)",
        "how good an answer really is, from 0 to 1, by exact written rules that the models never see in training.",
    ),
    (
        "KL",
        "how far the PPO model has moved from the base model, in nats per answer; 0 means that the two are the same.",
    ),
    (
        "Entropy",
        "how varied the model's answers are, in nats per answer; it falls as the model settles on a way of answering.",
    ),
    ("Episode", "one answer that PPO samples, scores and learns from."),
)
READING = (
    (
        "Papers",
        (
            (
                "Training a helpful and harmless assistant with RLHF (Bai et al., 2022)",
                "https://arxiv.org/abs/2204.05862",
                "Anthropic's account of preference data, reward models and PPO at scale, and of what can go wrong.",
            ),
            (
                "Training language models to follow instructions (Ouyang et al., 2022)",
                "https://arxiv.org/abs/2203.02155",
                "InstructGPT: the three steps in the diagram above, with the same KL penalty.",
            ),
            (
                "Attention is all you need (Vaswani et al., 2017)",
                "https://arxiv.org/abs/1706.03762",
                "The transformer, the network behind every model on this page.",
            ),
        ),
    ),
    (
        "Code",
        (
            (
                "CleanRL's PPO",
                "https://docs.cleanrl.dev/rl-algorithms/ppo/",
                "PPO in a single file with every detail explained; the best introduction to the algorithm.",
            ),
            (
                "TRL",
                "https://huggingface.co/docs/trl",
                "The library that trains the reward model here; the metrics have its names.",
            ),
        ),
    ),
    (
        "Tutorials",
        (
            ("Illustrating RLHF", "https://huggingface.co/blog/rlhf", "The whole method in pictures. Start here."),
            (
                "The Hugging Face deep RL course",
                "https://huggingface.co/learn/deep-rl-course",
                "From the first policy gradient to PPO and RLHF, with exercises.",
            ),
            ("PPO explained", "https://huggingface.co/blog/deep-rl-ppo", "Why the ratio is clipped, step by step."),
            (
                "Attention? Attention! (Lilian Weng)",
                "https://lilianweng.github.io/posts/2018-06-24-attention/",
                "Where attention comes from, and the main kinds of it.",
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
    """The tab: a diagram, the steps, a glossary and a reading list."""

    def __init__(self) -> None:
        diagram = (ASSETS / "workflow.svg").read_text(encoding="utf-8")
        gr.HTML(
            f"<article class='about'><p class='verdict'>How a language model learns from what people prefer, on an "
            f"ordinary computer.</p><div class='diagram' tabindex='0' role='group' aria-label='Workflow'>"
            f"{diagram}</div>"
            f"{_steps()}<h3>Glossary</h3>{_glossary()}<h3>Further reading</h3>{_reading()}</article>",
            apply_default_css=False,
        )


def _steps() -> str:
    items = "".join(f"<li><b>{escape(name)}</b><p>{escape(text)}</p></li>" for name, text in STEPS)
    return f'<ol class="steps">{items}</ol>'


def _glossary() -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in GLOSSARY)
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
