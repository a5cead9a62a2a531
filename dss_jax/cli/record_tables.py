"""Tables of `dss records`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dss_jax.cli.tables import number, print_table, terminal
from dss_jax.core.types import Scorer
from dss_jax.teacher.filters import Correct
from dss_jax.teacher.records import STATUSES, Header, Record
from dss_jax.teacher.stats import RecordStats, Share
