"""``python -m dispatch.service``: the task service with the settings of the environment."""

from __future__ import annotations

import sys

from dispatch import settings
from dispatch.errors import DispatchError
from dispatch.service.server import serve

if __name__ == "__main__":
    try:
        serve(settings.load())
    except DispatchError as exc:
        sys.stderr.write(f"Error: {exc}\n")
        sys.exit(exc.exit_code)
