"""Telling others that a task has ended: callbacks, and messages for people."""
