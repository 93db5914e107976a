"""Flower for dispatch: ``celery -A dispatch flower --conf=config/flowerconfig.py``.

It starts with a login only (DISPATCH_FLOWER_AUTH_FILE, or Flower's own
--basic-auth and OAuth), on loopback, and shows without being able to stop or
send anything. /metrics and /healthcheck are open even with a login: publish the
port no further than you would publish these. Options on the command line win.
"""

import sys

from tornado.options import options as _options

from dispatch.errors import DispatchError as _DispatchError
from dispatch.flower_view import describe as _describe
from dispatch.flower_view import login as _login
from dispatch.flower_view import service_titles as _service_titles
from dispatch.flower_view import show_queues as _show_queues
from dispatch.settings import load as _load

try:
    _settings = _load()
    if not (_options.basic_auth or _options.auth):
        basic_auth = _login(_settings.flower)
    _titles = _service_titles(_settings)
    _show_queues(_settings.routing.queues())
except _DispatchError as _exc:
    sys.stderr.write(f"{_exc}\n")
    raise SystemExit(_exc.exit_code) from _exc

address = "127.0.0.1"
port = 5555

# dispatch cancels, pauses and retries by the task service; an order that Celery takes from Flower would go past it.
read_only = True

# What is shown is what happened since Flower started: the task service keeps the history, not Flower.
persistent = False
max_tasks = 10_000
purge_offline_workers = 300

# "args" shows id and title, a task's own page also the attempt: the messages themselves hold no title. "state" is that
# of the attempt, "result" how it ended. Flower itself counts and searches by Celery's state, in which each attempt that
# was reported is a success: search for result:exit, result:timeout and so on to find those that failed.
tasks_columns = "args,uuid,state,result,received,runtime,worker"


def format_task(task):
    """Say in words what a message names."""
    return _describe(task, _titles)
