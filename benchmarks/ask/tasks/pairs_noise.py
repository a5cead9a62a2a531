"""See pairs.py."""

from pairs import noise, task

TASK = task("pairs_noise", noise)
