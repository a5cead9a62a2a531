"""A table of support tickets as Excel exports it, for tests of the road from a table."""

import csv
import io
import random
from pathlib import Path

TEXTS = {
    "Billing": (("Invoice {n} is wrong", "Charged twice"), "I paid {n} euros;\nonce would do."),
    "Account": (("Cannot log in", "Delete my profile"), 'The "code" {n} never arrives.'),
    "Technical": (("App crashes on start", "Sync fails"), "The log says timeout {n}; why?"),
}
HEADER = ["Ticket", "Customer", "Subject", "Body", "Category"]


def rows(count: int = 120, seed: int = 0) -> list[list[str]]:
    """Tickets with a label; each number is there once."""
    dice, found = random.Random(seed), []
    for n in range(count):
        label = dice.choice([*TEXTS])
        subjects, body = TEXTS[label]
        number = 10_000 * seed + n
        subject = dice.choice(subjects).format(n=number)
        texts = [subject, body.format(n=number), label]
        found.append([f"T-{number}", f"C{dice.randrange(30)}", *texts])
    return found


def excel(table: list[list[str]], header: list[str] = HEADER, empty: int = 5) -> bytes:
    """With a byte order mark, semicolons, CRLF, quoted line breaks and empty rows at the end."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=";", lineterminator="\r\n")
    writer.writerows([header, *table])
    text.write((";" * (len(header) - 1) + "\r\n") * empty)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def untidy(count: int = 120) -> list[list[str]]:
    """With ten rows without a label, a slip, white space around one, and N/A."""
    table = rows(count)
    for row in table[:10]:
        row[-1] = ""
    labels = iter(["Acount", "Account ", "N/A"])
    for row in [row for row in table[10:] if row[-1] == "Account"][:3]:
        row[-1] = next(labels)
    return table


def write(folder: Path, table: list[list[str]] | None = None) -> Path:
    file = folder / "tickets.csv"
    file.write_bytes(excel(untidy() if table is None else table))
    return file


def teacher(content: str) -> str:
    """What a stand-in for a teacher says: of a hint that it is right, else by the words."""
    hint = content.partition("Known answer: ")[2].partition(".")[0]
    words = {"Billing": "euros", "Account": "code", "Technical": "log says"}
    label = hint or next(label for label, word in words.items() if word in content)
    return f"It is about {words[label]}. So the answer is {label}."
