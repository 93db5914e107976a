"""dispatch runs the tasks that people and AI agents hand to machines.

Importing this package has no side effects: no settings are read, no
connection is opened, Celery is not imported.
"""

__version__ = "0.1.0"
