"""The model card of a run's student: `README.md` of a folder that is handed over.

It says what the run's own files say, and nothing else. What data, teachers and users wrote is shown
as text: it is put into code, or escaped.
"""

import html
import math
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dss_jax import __version__
from dss_jax.core import config, storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.student_card import StudentCard
from dss_jax.interop.hub import SCHEME, hub_name
from dss_jax.run import run_folder
from dss_jax.run.seeds import SUMMARY

SPLITS: tuple[str, ...] = ("validation", "test")

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "sentencepiece", "seqio")

TERMS = (
    "The terms of use of the teacher's provider may restrict what a model that was trained on its "
    "outputs is used for."
)


def of_run(
    folder: Path, card: StudentCard, parameters: int, step: int, form: str, tensors: str = "float32"
) -> str:
    """The card's text: YAML for the hub, then Markdown.

    Args:
      folder: of the run.
      card: of its student.
      parameters: of the model.
      step: of the checkpoint that is handed over.
      form: of the folder that is handed over: "hf" or "ctranslate2".
      tensors: what they are in there.
    """
    from huggingface_hub import EvalResult, ModelCardData

    text = (folder / run_folder.CONFIG).read_text()
    run, results = config.from_gin(text), run_folder.read_results(folder) or {}
    base = _base_model(run)
    own = results.get("best_step") == step
    scored = {split: results[split] for split in SPLITS if own and split in results}
    data = ModelCardData(
        base_model=base if "/" in base else None,
        library_name="transformers" if form == "hf" else form,
        tags=["t5", "distilling-step-by-step", "dss-jax"],
        model_name=f"{card.task}, {card.method}",
        metrics=["accuracy"],
        eval_results=[
            EvalResult(
                task_type="text2text-generation",
                dataset_type=re.sub(r"[^\w.-]", "_", card.task),
                dataset_name=card.task,
                dataset_split=split,
                metric_type="accuracy",
                metric_name=card.metric,
                metric_value=round(numbers[results["metric"]], 4),
            )
            for split, numbers in scored.items()
        ],
    )
    rounded = f"\n\nThese are of the parameters in float32; here they are {tensors}."
    rounded = "" if tensors == "float32" else rounded
    parts = {
        f"{_shown(card.task)}, {_shown(card.method)}": _about(card, base, parameters),
        "Ask it": _use(card, form),
        "Training": _training(run, results, card, step),
        "Scores": _scores(folder, results, scored) + rounded,
        "Configuration": _block(_settings(text), "gin"),
    }
    body = "\n\n".join(f"{'##' if i else '#'} {t}\n\n{x}" for i, (t, x) in enumerate(parts.items()))
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def carried_over(file: Path, form: str, tensors: str) -> str:
    """The card of a folder in Hugging Face's form for one that it is converted to: as it was, with
    the library that reads it now, and what was done. Raises UsageError: its YAML is none.
    """
    import yaml
    from huggingface_hub import ModelCard

    text = file.read_text()
    try:
        # Without a header of its own it would be warned about.
        card = ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n\n{text}")
    except (ValueError, yaml.YAMLError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"{file} begins with YAML that cannot be read ({first}). Put it right, or remove the "
            "file."
        ) from error
    card.data["library_name"] = "transformers" if form == "hf" else form
    said = f"Converted by dss-jax {__version__}: {form}, {tensors}. What is above was said before."
    alone = "" if form == "hf" else f"\n\n{_CTRANSLATE2}"
    return f"{str(card).rstrip()}\n\n## This folder\n\n{said}{alone}\n"


def _shown(text: str) -> str:
    """Text of others as Markdown that shows it: on one line, without markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: str) -> str:
    """The same as inline code."""
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text[:1] in ("`", "") or text[-1:] == "`" else ""
    return f"{ticks}{pad}{' '.join(text.splitlines())}{pad}{ticks}"


def _block(text: str, language: str = "") -> str:
    """The same as a block of code."""
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[*head], ["---"] * len([*head]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _base_model(run: config.Run) -> str:
    """The hub's name of what the run started from, where it was given or its folder is in the hub's
    cache; else the folder's; "" for random parameters.
    """
    path = run.train.init_from or ""
    if path.startswith(SCHEME) and (name := hub_name(path)):
        return name.repo
    if found := re.search(r"models--([\w.-]+?)--([\w.-]+)(/|$)", path):
        return f"{found[1]}/{found[2]}"
    return path.rstrip("/").rpartition("/")[2]


def _about(card: StudentCard, base: str, parameters: int) -> str:
    start = f"trained from {_code(base)}" if base else "trained from random parameters"
    lines = [
        f"A T5 of {parameters / 1e6:,.1f}M parameters, {start} by [distilling "
        f"step-by-step](https://arxiv.org/abs/2305.02301) with dss-jax {__version__}.",
        f"Task: {_shown(card.task)}. {_shown(card.description)}",
    ]
    if card.labels:
        lines.append(f"Labels: {', '.join(map(_code, card.labels))}.")
    elif card.row_labels:
        lines.append("Labels: each input has its own, which are part of it.")
    return "\n\n".join(lines)


_TRANSFORMERS = """\
from transformers import AutoTokenizer, T5ForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = T5ForConditionalGeneration.from_pretrained("FOLDER")
inputs = tokenizer({prompt!r}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
"""

_CTRANSLATE2 = (
    "With CTranslate2 alone: `</s>` ends each input, and `beam_size=1`, `min_decoding_length=0`, "
    "`max_input_length=0` are not its defaults."
)

_DSS = """\
import dss_jax

student = dss_jax.load("FOLDER")
print(student.predict([{text!r}]))
"""


def _use(card: StudentCard, form: str) -> str:
    lengths = (card.longest_label, card.max_rationale_length)
    asked = {"label": card.label_prefix, "rationale": card.rationale_prefix}
    rows = [
        [name, _code(prefix) if prefix else "none", str(longest)]
        for (name, prefix), longest in zip(asked.items(), lengths, strict=True)
        if prefix is not None
    ]
    text = card.examples[0]["input"] if card.examples else "..."
    parts = [
        _table(("for the", "prefix of the input", "longest answer, tokens"), rows),
        f"Inputs of up to {card.input_length} tokens.",
        "With dss-jax, which adds the prefix and knows the labels:",
        _block(_DSS.format(text=text), "python"),
    ]
    if form == "hf":
        code = _TRANSFORMERS.format(prompt=card.label_prefix + text)
        parts += ["With transformers:", _block(code, "python")]
    else:
        parts.append(_CTRANSLATE2)
    return "\n\n".join(parts)


def _training(run: config.Run, results: Mapping[str, Any], card: StudentCard, step: int) -> str:
    lines = []
    if results:
        n, total = results["train_examples"], results["train_total"]
        share = f" ({100 * n / total:.4g} %)" if total else ""
        lines.append(
            f"{n:,} of {total:,} training examples{share}; {results['steps']:,} steps, of which "
            f"the parameters after step {step:,} are here; seed {results['seed']}."
        )
    method = run.method
    learned = "the data's labels" if method.label == "gold" else "the teacher's labels"
    if method.uses_rationales:
        learned += f", and the teacher's rationales (method {_code(method.name)})"
    lines.append(f"Learned: {learned}.")
    if method.uses_rationales or method.label == "teacher":
        lines.append(f"{_teacher(run)} {TERMS}")
    if card.examples:
        lines.append(
            f"`student.json` shows {len(card.examples)} rows of the data, with what the teacher "
            "said where it is known: the data's licence holds for these."
        )
    return "\n\n".join(lines)


def _teacher(run: config.Run) -> str:
    """What the record files say of who wrote them."""
    from dss_jax.records.files import read_records

    if not run.task.record_files:
        return "Teacher: the text that comes with the data set."
    found = []
    for name in run.task.record_files:
        try:
            header, _ = read_records(storage.local_file(name))
        except (OSError, UsageError):
            found.append(f"unknown: {_code(Path(name).name)} was not there")
            continue
        own = _code(header.teacher)
        found.append(f"{own} (terms: {_shown(header.terms)})" if header.terms else own)
    return f"Teacher: {'; '.join(dict.fromkeys(found))}."


def _scores(folder: Path, results: Mapping[str, Any], scored: Mapping[str, Any]) -> str:
    if not scored:
        why = "the run was not finished when this folder was made"
        if results:
            why = f"the run's own are of the parameters after step {results['best_step']:,}"
        return f"None: {why}."
    rows, metric = [], results["metric"]
    for split, numbers in scored.items():
        value, n = numbers[metric], numbers["examples"]
        error = 100 * math.sqrt(value / 100 * (1 - value / 100) / n)
        teacher = f"{numbers['teacher']:.2f}" if "teacher" in numbers else "-"
        rows.append([split, f"{n:,}", f"{value:.2f} ± {error:.2f}", teacher])
    head = ("split", "examples", f"{metric}, %", "teacher's")
    lines = [
        _table(head, rows),
        "± is the standard error over examples. The parameters were chosen by validation; test was "
        "scored once, with greedy decoding unless the configuration says otherwise.",
    ]
    summary = folder.parent / SUMMARY
    if summary.is_file():
        whole = strict_json.read(summary, "Give the dss train of the seeds again.")
        rows = [
            [split, str(len(whole["seeds"])), f"{one['mean']:.2f} ± {one['standard_error']:.2f}"]
            for split in scored
            if (one := whole.get(split, {}).get(metric)) and one["standard_error"] is not None
        ]
        if rows:
            lines += [
                "The same over seeds, of which this folder is one; ± is the mean's standard error.",
                _table(("split", "seeds", f"{metric}, %"), rows),
            ]
    return "\n\n".join(lines)


def _settings(text: str) -> str:
    """Settings that decide the result and are not the defaults, and versions; paths are left out
    but for their last part.
    """
    defaults = {f"{name} = {field.default!r}" for name, field in config.SETTINGS.items()}
    lines = [x for x in run_folder.fixed_lines(text) if x[0] != "#" and x not in defaults]
    lines = [re.sub(r"(['\"])[^'\"]*/([^'\"/]+)\1", r"\1\2\1", line) for line in lines]
    versions = [f"# {name} {metadata.version(name)}" for name in LIBRARIES]
    return "\n".join([*lines, "", f"# written by dss-jax {__version__}, with", *versions])
