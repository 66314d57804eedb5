"""People's own preferences: what they are asked, what they chose, and how far they agree."""

from rlhf.feedback.store import Choice, Pair, Store


__all__ = ["Choice", "Pair", "Store"]
