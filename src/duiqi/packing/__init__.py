"""Rows without padding: sequences one after the other, a shared prompt once, micro-batches of so many tokens."""
