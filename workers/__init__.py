"""The Celery side of a worker host: task bodies and worker lifecycle."""
