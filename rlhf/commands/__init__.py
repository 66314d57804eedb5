"""The commands. Each loads and checks everything, then makes the run directory, then works.

Mistakes in the settings or the data are thus reported before anything is written; later errors are recorded in the
run's status.
"""

from rlhf.commands.comparison import ceiling, compare
from rlhf.commands.live import live
from rlhf.commands.pipelines import demo, sweep
from rlhf.commands.training import dpo, ppo, reward


__all__ = ["ceiling", "compare", "demo", "dpo", "live", "ppo", "reward", "sweep"]
