"""What lies where inside a run: its stages and its finished models."""

from pathlib import Path

from rlhf.kinds import KINDS
from rlhf.runs.directory import Run


def stage(run: Run, kind: str) -> Run | None:
    """The part of a run that is of this kind: the run itself, or one of its stages; None if it has none."""
    own = run.status().get("kind")
    if own == kind:
        return run
    return Run(run.path / kind) if own in KINDS and kind in KINDS[own].stages else None


def reward_folder(run: Run) -> Path | None:
    """Where a run keeps its finished reward model."""
    return _model_folder(run, "reward")


def policy_folder(run: Run) -> Path | None:
    """Where a run keeps its finished PPO model."""
    return _model_folder(run, "ppo")


def _model_folder(run: Run, kind: str) -> Path | None:
    part = stage(run, kind)
    return part.path / "model" if part and (part.path / "model" / "config.json").exists() else None


def ppo_settings(run: Run) -> dict:
    """The settings of a run's PPO part."""
    return {**run.config(), **Run(run.path / "ppo").config()}
