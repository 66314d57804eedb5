"""`python -m rlhf bench`: one `measurement` in a process of its own, and `comparisons` of many."""
