"""What each command does, in order: load and check everything, then make the run directory, then work.

Whatever a person got wrong shows before anything is written; whatever breaks later is recorded in the run's status.
"""

from rlhf.commands.comparison import compare
from rlhf.commands.pipelines import demo, sweep
from rlhf.commands.training import ppo, reward


__all__ = ["compare", "demo", "ppo", "reward", "sweep"]
