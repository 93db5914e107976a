"""What dead workers left on this host is found and cleared away, and nothing else is."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from dispatch.runner import janitor, owner, tree
from tests.support.children import command
from tests.support.runner_driver import Worker

if TYPE_CHECKING:
    from pathlib import Path


def test_orphans_of_a_dead_worker_are_killed(tmp_path: Path) -> None:
    """A family without its pool child and without a warden is found, the daemon without environment included."""
    dead = Worker(tmp_path / "dead", command("family", tmp_path / "pids", "ignore"))
    alive = Worker(tmp_path / "alive", command("hang", tmp_path / "other", "ignore"))
    try:
        family = dead.noted("../pids", 4)
        other = alive.noted("../other", 1)
        dead.pid("child")
        alive.pid("child")
        assert not janitor.orphans() & set(family + other)
        dead.signal("child", signal.SIGKILL)
        dead.wait()
        assert set(family) <= janitor.orphans()
        janitor.kill_orphans()
        assert not any(map(tree.alive, family))
        assert tree.alive(other[0])
        assert janitor.clear_directories(dead.directory / "data" / "work") == 1
        assert list((dead.directory / "data" / "work").iterdir()) == []
        assert janitor.clear_directories(alive.directory / "data" / "work") == 0
    finally:
        dead.close()
        alive.close()


def test_work_directories_of_others_are_left_alone(tmp_path: Path) -> None:
    """A directory of another container is only stale after more than a week; strange names never are."""
    me = owner.Owner.current()
    names = {
        "mine": f"{me.host}-{me.pid}-{me.starttime}-1",
        "dead": f"{me.host}-{me.pid}-{me.starttime - 1}-1",
        "foreign": f"00000000-1-{me.pid}-1-1",
        "old": f"00000000-1-{me.pid}-1-2",
        "strange": "notes",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    os.utime(tmp_path / names["old"], (1, 1))
    stale = {path.name for path in janitor.stale_directories(tmp_path)}
    assert stale == {names["dead"], names["old"]}


def test_a_directory_that_resists_is_removed(tmp_path: Path) -> None:
    """Directories that the child closed to everybody are removed all the same."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "a" / "b").chmod(0o000)
    (tmp_path / "a").chmod(0o500)
    janitor.remove_tree(str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
