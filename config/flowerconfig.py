"""Flower for dispatch: ``celery -A dispatch flower --conf=config/flowerconfig.py``.

Flower can stop and revoke whatever it sees, and shows its pages to everybody
who reaches it unless a login is set: leave it on loopback, or set
FLOWER_BASIC_AUTH=user:password. /metrics and /healthcheck stay open even then.
"""

address = "127.0.0.1"
port = 5555

# What is shown is what happened since Flower started: the task service keeps the history, not Flower.
persistent = False
max_tasks = 10_000
purge_offline_workers = 300
tasks_columns = "name,uuid,state,args,received,started,runtime,worker"
