"""Preference pairs and prompts: loaded from many formats (`load`), and previewed before training (`preview`)."""

from rlhf.data.load import load_preferences, load_prompts


__all__ = ["load_preferences", "load_prompts"]
