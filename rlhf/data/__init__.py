"""Preference pairs and prompts: loaded in one shape (`load`), and looked at before training (`preview`)."""

from rlhf.data.load import load_preferences, load_prompts


__all__ = ["load_preferences", "load_prompts"]
