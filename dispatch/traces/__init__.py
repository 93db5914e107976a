"""Spans of this process, and their way to a collector; nothing of it while no collector is set."""
