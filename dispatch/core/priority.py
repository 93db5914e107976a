"""Priorities: 1 to 10 for ATS clients, five words for the Task Tools, without loss for either.

Two numbers share a word; the odd one is what the word means when it is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NUMBER_OF: Final[Mapping[str, int]] = {"urgent": 9, "high": 7, "medium": 5, "low": 3, "none": 1}
"""What a word means as a number; 10 is most urgent."""

NUMBERS_OF: Final[Mapping[str, tuple[int, ...]]] = {word: (low, low + 1) for word, low in NUMBER_OF.items()}
"""Every number that a word stands for."""

_WORDS: Final = {number: word for word, numbers in NUMBERS_OF.items() for number in numbers}


def word_of(number: int) -> str:
    """Return the word for a priority of 1 to 10."""
    return _WORDS[number]


def set_word(word: str, current: int) -> int:
    """Return the number after ``word`` was set: the current one where it says the same already."""
    return current if current in NUMBERS_OF[word] else NUMBER_OF[word]
