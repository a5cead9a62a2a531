"""See pairs.py."""

from pairs import content, task

TASK = task("pairs_content", content)
