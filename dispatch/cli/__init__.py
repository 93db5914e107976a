"""The ``dispatch`` command: one module per group of commands (docs/commands.md)."""
