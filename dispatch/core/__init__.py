"""Decisions: pure functions and values, no I/O, no clock, no randomness of their own."""
