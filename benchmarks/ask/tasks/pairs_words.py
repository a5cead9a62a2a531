"""See pairs.py."""

from pairs import task, words

TASK = task("pairs_words", words)
