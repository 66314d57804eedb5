"""Preference pairs and prompts: read from files (`reader`, `rows`), loaded (`load`), and previewed (`preview`)."""

from rlhf.data.load import load_preferences, load_prompts


__all__ = ["load_preferences", "load_prompts"]
