"""Base64 with one spelling for each value.

Decoders differ about line ends, missing padding, the URL alphabet and spare
bits in the last character. Two spellings of one key would be two keys in a
registry, so everything but the one that ``encode`` writes is refused.
"""

from __future__ import annotations

import base64
import binascii


def encode(value: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(value).decode("ascii")


def decode(text: object, size: int | None = None) -> bytes:
    """Return the bytes that ``encode`` would write as ``text``.

    Raises ValueError when it is no text, not spelled that way, or has not ``size`` bytes.
    """
    if not isinstance(text, str):
        raise ValueError("must be text in base64")
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise ValueError("is not base64") from None
    if encode(value) != text:
        raise ValueError("is base64 in another spelling than the standard one")
    if size is not None and len(value) != size:
        raise ValueError(f"has {len(value)} bytes instead of {size}")
    return value
