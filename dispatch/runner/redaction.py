"""Known secrets, and how they are kept out of what is shown of a command's output."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from dispatch.setting_kinds import Secret
from dispatch.settings import declared

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dispatch.settings import Settings

STARS: Final = b"***"
SECRET_CHARS_MIN: Final = 6
"""Shorter ones would stand in ordinary words."""
_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|DSN", re.IGNORECASE)


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Return the secret values that stand in the settings."""
    found: list[str] = []
    for table, item in declared():
        value = getattr(getattr(settings, table), item.name)
        if isinstance(value, Secret):
            found += [value.reveal(), *re.split(r"[\s,]+", value.reveal())]
    for url in (settings.broker.url, settings.database_url):
        password = urlsplit(url).password
        if password:
            found += [password, unquote(password)]
    return tuple(dict.fromkeys(found))


def secrets_in(environ: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    """Return the values of those variables whose names say that they are secret."""
    return tuple(environ[name] for name in names if name in environ and _NAME.search(name))


class Redactor:
    """Puts stars in the place of secrets."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Output is cut at line ends, so each line of a long secret is one of its own.
        lines = [line.strip() for secret in secrets for line in (secret, *secret.splitlines())]
        wanted = {line.encode("utf-8", "replace") for line in lines if len(line) >= SECRET_CHARS_MIN}
        self._secrets = sorted(wanted, key=len, reverse=True)

    def redact(self, data: bytes) -> bytes:
        """Return the data without the secrets that stand in it whole."""
        for secret in self._secrets:
            data = data.replace(secret, STARS)
        return data

    def hide(self, text: str) -> str:
        """Return a text without them."""
        if not self._secrets:
            return text
        return self.redact(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def edges(self, head: bytes, tail: bytes) -> tuple[bytes, bytes]:
        """Return what may be shown before and behind a place where bytes are left out: no part of a secret."""
        ends = (secret[at:] for secret in self._secrets for at in range(1, len(secret)))
        cut = max((len(end) for end in ends if tail.startswith(end)), default=0)
        return head[: self.safe_length(head)], tail[cut:]

    def safe_length(self, data: bytes) -> int:
        """Return how much of the data can be shown although more will follow: no secret begins in it and goes on."""
        longest = max((len(secret) for secret in self._secrets), default=0)
        for start in range(max(0, len(data) - longest + 1), len(data)):
            tail = data[start:]
            if any(secret.startswith(tail) for secret in self._secrets):
                return start
        return len(data)
