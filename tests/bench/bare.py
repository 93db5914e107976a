"""A bare Celery application that spawns the same no-op: what the fleet is measured against.

It has the fleet's settings (early ack, no prefetch, no results) and nothing else.
"""

from __future__ import annotations

import os
import subprocess

from celery import Celery

app = Celery("bare")
app.conf.update(
    broker_url=os.environ.get("BARE_BROKER", ""),
    broker_transport_options={"global_keyprefix": "bare:"},
    task_default_queue="bare",
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_hijack_root_logger=False,
)


@app.task(name="bare.spawn")
def spawn() -> None:
    """Run ``true`` and leave one byte as a witness."""
    subprocess.run(["/bin/true"], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    witness = os.open(os.environ["BARE_WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(witness, b".")
    os.close(witness)
