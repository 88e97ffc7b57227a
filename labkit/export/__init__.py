"""Checkpoints in the formats that other runtimes read."""
