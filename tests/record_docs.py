"""Writes what is made from the code and from other pages: `python tests/record_docs.py`.

docs/gin_reference.md comes from the dataclasses of the configuration (tests/test_docs.py says when
it is old), docs/llms.txt, which is not in git, from the pages' headings. `make docs` writes both.
"""

import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import Field, fields
from math import inf
from pathlib import Path

from dss_jax.core import config
from dss_jax.core.checks import rule_of
from dss_jax.core.sweep_config import Sweep

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SECTIONS: dict[str, type] = {**config.SECTIONS, "Sweep": Sweep}
"""Names in gin files: of what a run has, and of the grid of `dss sweep`."""

RULES = "logical_axis_rules"
"""The setting whose type, as that of `gemma`, and default are too long for a cell."""

HEAD = """\
# Settings

Every setting of a run, made from `dss_jax/core/` by `tests/record_docs.py`. A gin file says
`Train.steps = 300`, a command `--gin.Train.steps=300`; texts keep their quotes there,
`--gin.T5Config.dtype='"bfloat16"'`. [What is read later wins](train.md#settings), and `dss config`
prints what a command comes to. Gin files of a task, method or model may set other defaults.

A `*` marks what may change when a run goes on in its folder.
"""


def nav() -> Iterator[tuple[str, str]]:
    """(section, page) of each entry of the site's navigation, in its order."""
    for item in tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]:
        ((title, pages),) = item.items()
        yield from ((title, page) for page in ([pages] if isinstance(pages, str) else pages))


def described(section: type) -> tuple[str, dict[str, str]]:
    """What a section's docstring says of it, and of each setting; "a, b: text" is said of both."""
    text, _, attributes = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    found = {}
    for item in re.split(r"\n(?=  \w)", f"\n{attributes}")[1:]:
        names, _, said = item.partition(":")
        found |= {name.strip(): " ".join(said.split()) for name in names.split(",")}
    return text.strip(), found


def kind(field: Field) -> str:
    """The type of a setting, and what is allowed for it."""
    rule = rule_of(field)
    name = "pairs" if field.name in (RULES, "gemma") else inspect.formatannotation(field.type)
    allowed = ", ".join(f'"{value}"' for value in rule.among)
    if rule.low > -inf:
        low = f"above {rule.low:g}" if rule.positive else f"at least {rule.low:g}"
        allowed = low if rule.high == inf else f"{low}, at most {rule.high:.10g}"
    # Bars would end the cell of a table.
    shown = " or ".join(f"`{part}`" for part in name.split(" | "))
    return shown + (f": {allowed}" if allowed else "")


def gin_reference() -> str:
    """The text of docs/gin_reference.md."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        about, meanings = described(section)
        parts += [f"\n## {name}\n\n{about}\n", "\n| setting | type | default | |\n"]
        parts.append("| --- | --- | --- | --- |\n")
        for field in fields(section):
            mark = " *" if rule_of(field).free else ""
            cells = [f"`{field.name}`{mark}", kind(field), f"`{_shown(field)}`"]
            row = " | ".join([*cells, meanings[field.name]])
            parts.append(f"| {row} |\n")
    return "".join(parts)


def _shown(field: Field) -> str:
    return (
        "DEFAULT_LOGICAL_AXIS_RULES"
        if field.name == RULES
        else repr(field.default).replace("'", '"')
    )


def llms_txt() -> str:
    """The text of docs/llms.txt (llmstxt.org): a line a page, with what it is about."""
    readme = (ROOT / "README.md").read_text()
    about = " ".join(readme.split("\n\n")[1].split())
    parts, last = [f"# dss-jax\n\n> {_prose(about)}\n"], ""
    for title, page in nav():
        text = (DOCS / page).read_text()
        heading = re.match(r"# (.+)", text)
        assert heading, f"{page} does not begin with its title"
        if title != last:
            parts.append(f"\n## {title}\n\n")
        about = "; ".join(re.findall(r"^## (.+)", _prose(text), re.M))
        parts.append(f"- [{heading[1]}]({page}){about and f': {about}'}\n")
        last = title
    return "".join(parts)


def _prose(page: str) -> str:
    """A page without fenced blocks, links and marks of code."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("`", "")


if __name__ == "__main__":
    (DOCS / "gin_reference.md").write_text(gin_reference())
    (DOCS / "llms.txt").write_text(llms_txt())
