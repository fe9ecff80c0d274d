"""Texts of peers, made fit to be shown: without our secrets, control characters, and at a length that can be read."""

import json
import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus, unquote

MAX_CHARS: Final = 1000
"""Characters of a peer's text that are shown; it may send as many as it likes."""
_MIN_BEGINNING: Final = 4
"""Less than so many characters at the end of a text tell nothing of the secret that begins with them."""
# An element or a comment without an end goes to the end of the text. So no character is looked at twice.
_MARKUP: Final = re.compile(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)|<!--.*?(?:-->|\Z)|<[^<>]*>")

_LEAST_CHARS: Final = 6
"""A shorter secret is not looked for: it stands in any text."""

_ESCAPE: Final = re.compile("%[0-9A-F]{2}")
_hidden: list[str] = []
"""What is never shown, the longest first. Of the process: an error does not know whose configuration it comes from."""


def hide(secrets: Iterable[str], usernames: Iterable[str] = ()) -> None:
    """Never show these any more, nor their encodings: percent-encoded, in JSON, in base64, and as basic authentication."""
    found = {secret for secret in secrets if len(secret) >= _LEAST_CHARS}
    logins = {f"{user}:{secret}" for user in usernames for secret in found}
    encoded = {b64encode(text.encode()).decode().rstrip("=") for text in found | logins}
    for secret in found:
        percent = {quote(secret), quote(secret, ""), quote_plus(secret)}
        encoded |= percent | {_ESCAPE.sub(lambda it: it[0].lower(), each) for each in percent} | {json.dumps(secret)[1:-1]}
    _hidden[:] = sorted({*_hidden, *found, *encoded}, key=len, reverse=True)


def plain(text: str, max_chars: int = MAX_CHARS) -> str:
    """Return a text in one line, without secrets and control characters (a terminal obeys them), and not longer than this."""
    # Before anything is cut: a part of a secret would not be known.
    text = without_secrets(text[: 100 * max_chars])
    if len(text) > max_chars:
        text = text[: max_chars - 1] + "…"
    return text if text.isprintable() else "".join(character if character.isprintable() else "·" for character in text)


def lines_of(text: str, max_lines: int = 60) -> str:
    """Return a text of several lines, each made plain: a traceback, of which the end says most."""
    return "\n".join(map(plain, text.split("\n")[-max_lines:]))


def without_secrets(text: str) -> str:
    """Return a text with `***` in place of the secrets of this process."""
    return _masked(_hidden, text)


def without_markup(text: str, instead: str = " ") -> str:
    """Replace the tags, comments, scripts and styles of HTML."""
    return _MARKUP.sub(instead, text)


def without(secrets: Iterable[str], text: str) -> str:
    """Mask secrets in a text: as they are, percent-encoded, or with markup or characters in them that nobody sees.

    The text may have been cut: at its end, the beginning of a secret is masked, too.
    """
    longest_first = sorted((secret for secret in secrets if secret.strip("*")), key=len, reverse=True)
    text = form = _masked(longest_first, text)
    bare = [it for secret in longest_first if (it := _visible(secret))]
    for read in (_visible, lambda it: without_markup(it, ""), lambda it: _visible(unquote(it))):
        form = read(form)
        if any(secret in form for secret in bare):
            text = form = _masked(bare, form)
    for secret in longest_first:
        for size in range(min(len(secret), len(text)), _MIN_BEGINNING - 1, -1):
            if text.endswith(secret[:size]):
                return f"{text[:-size]}***"
    return text


def _masked(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _visible(text: str) -> str:
    """Leave out the characters that take no place, but not white space."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(it for it in text if it.isspace() or (it.isprintable() and unicodedata.category(it) != "Mn"))
