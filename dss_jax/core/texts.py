"""Text as it comes: of files, models and servers. Standard library only."""

import re

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What the error handler "surrogateescape" makes of bytes that are no UTF-8."""

AS_UTF8 = "In Excel: Save as, CSV UTF-8."


def is_utf8(line: str) -> bool:
    """Whether text was UTF-8 that was read with errors="surrogateescape", by which a file's other
    lines can be read, and which line is wrong is known.
    """
    return line.isascii() or not _NOT_UTF8.search(line)


_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys, but for tab and newline, what turns the direction of what follows, and
halves of characters, which cannot be written."""


def visible(text: str) -> str:
    """Text for a terminal, with U+FFFD for each character that is not shown but obeyed: a model, a
    server or a file of somebody else's may hold anything. Whatever is printed passes through here.
    """
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)


def utf8(text: str) -> bytes:
    """The bytes of any text: see `well_formed`."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return well_formed(text).encode()


def well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, half of a character that was cut in two: no
    UTF-8 has it. Two halves that belong together become their character.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
