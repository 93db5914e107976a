"""Sealed tasks: keys, envelopes, whom to trust, and what may be opened (docs/encryption.md)."""
