"""How a policy can learn: a sentence and a formula each, for the forms of the Train tab."""

LESSONS = {
    "dpo": (
        "Direct preference optimization: no reward model, and no answers to write. The answer people chose becomes "
        "likelier than the one they rejected, both measured from the base model.",
        "loss = −log σ( β log π(chosen)/π<sub>base</sub>(chosen) − β log π(rejected)/π<sub>base</sub>(rejected) )",
    ),
    "gae": (
        "With a critic: a second output of the model guesses how good an answer will be. "
        "What turns out better than the guess becomes likelier.",
        "advantage = reward − critic’s guess",
    ),
    "rloo": (
        "Several answers to each prompt, no critic. What is better than the mean of the other answers "
        "becomes likelier.",
        "advantage = reward − mean reward of the other answers",
    ),
    "grpo": (
        "Group-relative: several answers to each prompt, no critic. What is better than the group’s mean becomes "
        "likelier, and how much better is counted in standard deviations of the group.",
        "advantage = (reward − mean of the group) / standard deviation of the group",
    ),
    "reinforce++": (
        "One answer to each prompt will do, and no critic: an answer is compared with all others of the same update.",
        "advantage = (reward − mean of the update) / standard deviation of the update",
    ),
}
"""A sentence, and a formula in HTML, by kind of run or `advantage_estimator`."""
IN_OTHER_WORDS = {
    "total_episodes": "An episode: the model writes one answer, and the reward model scores it.",
    "kl_coef": "KL says how differently from the base model it writes; 0 is not at all.",
    "learning_rate": "How large its steps are: more learns faster, too much breaks it.",
    "seed": "The same number gives the same run again.",
    "response_length": "A token is a word or a piece of one; 64 tokens are about 45 words.",
    "max_length": "A token is a word or a piece of one; 128 tokens are about 90 words.",
    "num_train_epochs": "An epoch is one pass over all of them.",
}
"""A setting in a pupil's words, after what the command line says of it."""
REWARD = "reward = score − KL coefficient · KL"
"""What the formulas of PPO's kin call a reward."""


def lesson(name: str) -> str:
    """The sentence and the formula as HTML."""
    sentence, formula = LESSONS[name]
    also = "" if name == "dpo" else f"<br>{REWARD}"
    return f'<p class="gloss">{sentence}</p><p class="gloss"><code>{formula}{also}</code></p>'
