"""Text as it comes: of files, models and servers. Standard library only."""

import unicodedata

_OTHER_CHARACTERS = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Unicode's folds that say something else: 5² would be 52, and 3½ 31/2."""


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


def normal_text(text: str) -> str:
    """The text in Unicode NFKC, each run of white space as one space, none at its ends.

    Superscripts, subscripts, fractions and numbers in circles stay what they are.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_folded, text)))
    return " ".join(text.split())


def _folded(character: str) -> str:
    if unicodedata.decomposition(character).startswith(_OTHER_CHARACTERS):
        return character
    return unicodedata.normalize("NFKD", character)
