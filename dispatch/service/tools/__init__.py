"""The Task Tools: one registry of tools, shown by REST and MCP alike."""
