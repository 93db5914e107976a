"""The task service: the store, the ATS face over REST and WebSocket, expiry."""
