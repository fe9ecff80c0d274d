"""Texts of peers, made fit to be shown."""

from typing import Final

MAX_CHARS: Final = 1000
"""Characters of a peer's text that are shown; it may send as many as it likes."""


def plain(text: str, max_chars: int = MAX_CHARS) -> str:
    """Return a text in one line, without control characters (a terminal obeys them) and not longer than this."""
    if len(text) > max_chars:
        text = text[: max_chars - 1] + "…"
    return text if text.isprintable() else "".join(character if character.isprintable() else "·" for character in text)
