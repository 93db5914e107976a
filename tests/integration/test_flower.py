"""Flower as operators start it: with a login, with the Redis user and the key that are meant for it."""

from __future__ import annotations

import base64
import html
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.support.cli import Cli
from tests.support.processes import eventually, listening_ports
from tests.support.redis import ConfiguredRedis, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.stack import Stack

LOGIN = "ops:correct horse"
TITLE = "Summarize <b>the</b> metrics & more"
FLOWER = ["celery", "-A", "dispatch", "flower", "--conf=config/flowerconfig.py"]
TABLE = (
    "/tasks/datatable?draw=1&start=0&length=15&order[0][column]=0&order[0][dir]=asc&columns[0][data]=received"
    "&search[value]="
)


class Pages:
    """Flower's pages and API, with or without the login."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, *, login: str | None = LOGIN, method: str = "GET") -> tuple[int, str]:
        """Return status and text; (0, "") while nobody listens."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        if login is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()
        except OSError:
            return 0, ""

    def json(self, path: str) -> Any:
        """Return an answer of the API."""
        status, text = self.get(path)
        assert status == 200, text
        return json.loads(text)

    def shown(self, profile: Path) -> str:
        """Return the tasks page as a browser shows it, where there is one; else the table that the page fetches."""
        browser = shutil.which("chromium") or shutil.which("chromium-browser")
        if browser is None:
            rows = self.json(TABLE)["data"]
            return html.escape(json.dumps(rows), quote=False)
        user, _, word = LOGIN.partition(":")
        url = f"http://{user}:{word.replace(' ', '%20')}@127.0.0.1:{self.port}/tasks"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        done = subprocess.run(
            [browser, *options, "--virtual-time-budget=10000", "--dump-dom", url],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout


def a_task_that_is_seen(stack: Stack, pages: Pages) -> str:
    """Run tasks until Flower shows the end of one; return its id."""
    made: list[str] = []

    def seen() -> str:
        made.append(str(stack.create(TITLE, tick={"duration_s": 0.05})["id"]))
        stack.wait_task(made[-1])

        def shown() -> str:
            return next((one for one in made if '"SUCCESS"' in pages.get(f"/api/task/info/{one}.1")[1]), "")

        with suppress(AssertionError):
            return eventually(shown, "a task in Flower", timeout_s=1)
        return ""

    return eventually(seen, "Flower seeing a task")


def test_operators_see_workers_queues_and_tasks_by_id_and_title(make_stack: Callable[..., Stack], tmp_path: Path):
    """With a key that may only read: id, title and node on the page; in Redis no title; without a login nothing.

    The queues are those of the routes, whether or not a worker that takes from them was there when Flower started.
    """
    stack = make_stack()
    stack.redis = ConfiguredRedis(stack.directory / "redis")
    stack.redis.start()
    cli = Cli(tmp_path, stack.env)
    stack.env["DISPATCH_ATS_TOKEN"] = cli("api-key", "create", "dispatch").out.strip()
    reader = cli("api-key", "create", "flower", "--access", "read").out.strip()
    (tmp_path / "login").write_text(LOGIN + "\n")
    stack.start_service()
    stack.start_ingress(stack.redis.settings("ingress"))
    worker = stack.run(
        "worker", ["celery", "-A", "dispatch", "worker", "-c", "2"], stack.redis.settings("worker")
    ).wait_event("worker_ready")
    assert worker["node"].startswith("dispatch@")
    pages = Pages(free_port())
    (tmp_path / "routes.toml").write_text('[[routes]]\nchannel = "images"\nqueue = "gpu"\n')
    own = {
        "DISPATCH_ATS_TOKEN": reader,
        "DISPATCH_FLOWER_AUTH_FILE": str(tmp_path / "login"),
        "DISPATCH_CONFIG": str(tmp_path / "routes.toml"),
    }
    flower = stack.run("flower", [*FLOWER, f"--port={pages.port}"], {**own, **stack.redis.settings("flower")})
    eventually(lambda: pages.get("/healthcheck")[0] == 200, "Flower")
    # Workers send events from the moment on that Flower asks them to; a task of before is not seen, or not whole.
    eventually(lambda: worker["node"] in pages.get("/api/workers?refresh=1")[1], "Flower seeing the worker")

    ident = a_task_that_is_seen(stack, pages)
    task = pages.json(f"/api/task/info/{ident}.1")
    assert (task["name"], task["worker"], task["state"]) == ("dispatch.execute", worker["node"], "SUCCESS")
    assert [queue["name"] for queue in pages.json("/api/queues/length")["active_queues"]] == ["dispatch", "gpu"]
    page = pages.shown(tmp_path / "profile")
    assert f"#{ident} {html.escape(TITLE, quote=False)}" in page
    assert worker["node"] in html.unescape(page)
    assert "<b>the</b>" not in page
    detail = pages.get(f"/task/{ident}.1")[1]
    assert f"#{ident} {html.escape(TITLE, quote=False)}" in detail
    assert "attempt 1, token 1, claimed by dispatch-" in detail

    everything = "".join(pages.get(path)[1] for path in ("/api/workers?refresh=1", "/api/tasks", "/broker", "/metrics"))
    secrets = [stack.redis.password_file(user).read_text() for user in ("ingress", "worker", "flower")]
    for secret in (*secrets, reader, stack.env["DISPATCH_ATS_TOKEN"], LOGIN.partition(":")[2]):
        assert secret not in everything + "\n".join(flower.output)
    assert b"Summarize" not in b"".join(path.read_bytes() for path in stack.redis.directory.glob("*.aof"))
    for path in ("/", "/tasks", "/api/tasks", "/api/workers", TABLE, f"/task/{ident}.1"):
        assert pages.get(path, login=None)[0] == 401, path
        assert pages.get(path, login="ops:wrong")[0] == 401, path
    for order in (f"/api/task/revoke/{ident}.1", f"/api/worker/shutdown/{worker['node']}"):
        assert pages.get(order, method="POST")[0] == 403, order
    cli.close()


def test_it_does_not_start_open(make_stack: Callable[..., Stack]):
    """Without a login it says in one sentence what is missing and exits 78; asked for by name it starts open."""
    stack = make_stack()
    stack.redis.start()
    port = free_port()
    refused = stack.run("flower", [*FLOWER, f"--port={port}"])
    assert refused.wait() == 78
    assert len(refused.output) == 1
    assert "DISPATCH_FLOWER_AUTH_FILE" in refused.output[0]
    assert not listening_ports([port])
    stack.run("flower", [*FLOWER, f"--port={port}"], {"DISPATCH_FLOWER_OPEN": "true"})
    eventually(lambda: Pages(port).get("/tasks", login=None)[0] == 200, "Flower")
