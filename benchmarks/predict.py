"""Times predictions: `transformers`' `generate`, CTranslate2 by hand, and a student of ours.

  python benchmarks/predict.py --task cqa --data_dir ../release --vocabulary FILE

The weights are random and the same for all; rows are those of the task's test split. With `--sure`
the model has a head of its own, solved by least squares, so that the student writes each row's gold
label with a probability of almost 1: what CTranslate2's engine reads to rank labels depends on it.
In both roles every arm reads the same rows:

  label      the row's allowed labels. Arms that generate end a row where its gold label ends;
             those that rank give the probability of each allowed label.
  rationale  outputs of --rationale_tokens.

Arms take turns, round by round; figures are medians. Each is warm: it has read the rows once.
"before" is our greedy decoding as `dss eval` has it, in batches of 256 and two padded lengths.

Needs torch and transformers (requirements-parity.txt); arms of CTranslate2 need that. An arm that
cannot run is named with the reason. Takes the flags of `dss train`; --gin.NAME=value too. Writes a
JSON file and a picture.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from reporting import RESULTS, command, digits, in_file_name, processor, write_report

from dss_jax.cli import options
from dss_jax.core import config
from dss_jax.core.errors import UsageError

GENERATE_BATCH = 32
"""Of `generate` and of CTranslate2."""

ARMS = {
    "generate": "generate, float32, batch 32",
    "ct2_by_hand": "CTranslate2 int8, by hand",
    "before": "dss-jax greedy before, float32",
    "jax": "dss predict, jax, float32",
    "jax_bfloat16": "dss predict, jax, bfloat16",
    "ct2": "dss predict, CTranslate2 int8",
}
"""Name -> what the picture calls it."""

Arm = Callable[[], Any]


def parse(arguments: list[str]) -> tuple[argparse.Namespace, config.Run, tuple[str, ...]]:
    """Command line -> flags, the run whose model and data are used, the user's task folders."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_run_flags(parser)
    add = parser.add_argument
    add("--rows", type=int, default=128, help="of the test split (default 128)")
    add("--rounds", type=int, default=2, help="timed rounds (default 2)")
    add("--threads", type=int, default=2, help="of each arm (default 2)")
    add("--rationale_tokens", type=int, default=30, help="of each rationale (default 30)")
    add("--sure", action="store_true", help="a student that is sure of the gold labels")
    add("--roles", default="label,rationale", help="separated by commas (default: both)")
    add("--arms", default=",".join(ARMS), help="separated by commas (default: all)")
    add("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    parser.set_defaults(needs_model=True, task="cqa", model="t5_small")
    args = options.parse(parser, arguments)
    run = options.resolve(args).run
    if args.sure:
        model = dataclasses.replace(run.model, logits_via_embedding=False)
        run = dataclasses.replace(run, model=model)
    return args, run, tuple(args.task_dir)


def solve_head(hf: Any, split: Any, rows: np.ndarray) -> None:
    """Gives a PyTorch model the head with which it writes the rows' gold labels."""
    import torch

    states, tokens = [], []
    for row in rows:
        inputs, targets = (
            split.tokens(f"label_{side}")[int(row)] for side in ("inputs", "targets")
        )
        with torch.inference_mode():
            encoded = hf.encoder(torch.tensor([inputs.tolist()])).last_hidden_state
            before = torch.tensor([[0, *targets[:-1].tolist()]])
            found = hf.decoder(input_ids=before, encoder_hidden_states=encoded).last_hidden_state
        states.append(found[0].double().numpy())
        tokens += targets.tolist()
    h_NxE = np.concatenate(states)
    if len(h_NxE) > h_NxE.shape[1]:
        most = len(rows) * h_NxE.shape[1] // len(h_NxE)
        raise UsageError(f"--sure: a head of this width can learn about {most} rows. Give --rows.")
    wanted_NxV = np.zeros((len(h_NxE), hf.config.vocab_size))
    wanted_NxV[np.arange(len(tokens)), tokens] = SURE_LOGIT
    gram = h_NxE @ h_NxE.T + RIDGE * np.eye(len(h_NxE))
    head = (h_NxE.T @ np.linalg.solve(gram, wanted_NxV)).T
    hf.lm_head.weight = torch.nn.Parameter(torch.tensor(head, dtype=torch.float32))


SURE_LOGIT, RIDGE = 60, 0.1
"""The logit of each gold token, beside 0 of all others; and how little the head may grow for it."""


class Bench:
    """The rows, the folders of the students, and the arms that can run."""

    def __init__(self, args: argparse.Namespace, run: config.Run, task_dirs: Any, base: Path):
        from decode import reference_model

        from dss_jax.core import student_card
        from dss_jax.data.prepare import ensure_store

        self.args, self.run, self.missing = args, run, dict[str, str]()
        store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=task_dirs, need=["test"])
        self.split = split = store.split("test")
        self.rows = np.arange(min(args.rows, len(split)))
        self.texts = split.text("input")[: len(self.rows)]
        self.allowed = [json.loads(text) for text in split.text("allowed_labels")[: len(self.rows)]]
        if not all(self.allowed):
            raise UsageError("the task's rows have no allowed labels, so there is nothing to rank.")
        lengths = split.tokens("label_targets").lengths()
        self.lengths = {
            "label": np.maximum(lengths, 2),
            "rationale": np.full(len(split), args.rationale_tokens),
        }
        self.hf_folder, self.ct2_folder = base / "hf", base / "ct2"
        self.hf, self.params = reference_model(run, self.hf_folder)
        if args.sure:
            import jax

            from dss_jax.interop.hf import read_hf

            solve_head(self.hf, split, self.rows)
            self.hf.save_pretrained(self.hf_folder)
            self.params = jax.tree.map(jax.numpy.asarray, read_hf(self.hf_folder).tree())
        shutil.copyfile(store.vocabulary_path, self.hf_folder / "spiece.model")
        card = student_card.of_run(run, "text_accuracy", row_labels=True)
        student_card.write(self.hf_folder, card)

    def converted(self) -> Path:
        """The student in CTranslate2's form, int8."""
        if not self.ct2_folder.exists():
            from dss_jax.cli.main import main

            source, target = str(self.hf_folder), str(self.ct2_folder)
            words = ["convert", "--from", "hf", source, "--to", "ctranslate2", target]
            if main([*words, "--quantization", "int8"]):
                raise UsageError("dss convert --to ctranslate2 failed")
        return self.ct2_folder

    def arms(self, role: str) -> dict[str, Arm]:
        """Name -> what one round of it does, of the arms that were asked for and can run."""
        found = {}
        for name in self.args.arms.split(","):
            try:
                found[name] = getattr(self, name if name not in OURS else "ours")(role, name)
            except (UsageError, ImportError) as error:
                self.missing[name] = str(error)
        return found

    def generate(self, role: str, name: str) -> Arm:
        from decode import generate

        inputs, lengths = self.split.tokens(f"{role}_inputs"), self.lengths[role]
        return lambda: generate(self.hf, inputs, self.rows, lengths, GENERATE_BATCH)

    def ct2_by_hand(self, role: str, name: str) -> Arm:
        """Batches of like lengths, as CTranslate2 makes them; rows end where they shall."""
        import ctranslate2

        folder = self.converted()
        translator = ctranslate2.Translator(
            str(folder), device="cpu", intra_threads=self.args.threads
        )
        tokens = json.loads((folder / "shared_vocabulary.json").read_bytes())
        inputs, lengths = self.split.tokens(f"{role}_inputs"), self.lengths[role][self.rows]
        groups = []
        for length in np.unique(lengths):
            own = self.rows[lengths == length]
            groups.append((int(length), [[tokens[i] for i in inputs[int(n)]] for n in own]))

        def once() -> None:
            for length, rows in groups:
                translator.translate_batch(
                    rows,
                    beam_size=1,
                    max_batch_size=GENERATE_BATCH,
                    max_input_length=0,
                    min_decoding_length=length,
                    max_decoding_length=length,
                )

        return once

    def before(self, role: str, name: str) -> Arm:
        import jax
        from decode import Timed

        from dss_jax.evaluate import workers
        from dss_jax.evaluate.engine import Engine
        from dss_jax.model.t5 import T5
        from dss_jax.train.sharding import make_mesh

        lengths = self.lengths[role][self.rows]
        # One batch after another, as it was then.
        alone = functools.partial(mock.patch.object, workers, "WORKERS", 1)
        with alone():
            engine = Engine(
                T5(self.run.model),
                make_mesh(config.Mesh(), jax.devices()[:1]),
                self.run.mesh.logical_axis_rules,
                Timed(lengths=tuple(map(int, lengths))),
                max_decode_length=self.run.evaluate.max_decode_length if role == "label" else 128,
                batch_size=self.run.evaluate.batch_size,
            )
        inputs = self.split.tokens(f"{role}_inputs")
        return alone()(lambda: engine(self.params, inputs, self.rows))

    def ours(self, role: str, name: str) -> Arm:
        """Texts in, answers out, as `dss predict` has them."""
        import dss_jax

        folder = self.converted() if name == "ct2" else self.hf_folder
        dtype = "bfloat16" if name == "jax_bfloat16" else None
        student = dss_jax.load(folder, threads=self.args.threads, dtype=dtype)
        if role == "label":
            return lambda: student.predict(self.texts, labels=self.allowed)
        prompts = [student.card.rationale_prefix + text for text in self.texts]

        def once() -> None:
            written = student.complete(prompts, self.args.rationale_tokens)
            short = sum(one.completion_tokens < self.args.rationale_tokens for one in written)
            assert not short, f"{short} rows ended early: with these weights they must not"

        return once


OURS = ("jax", "jax_bfloat16", "ct2")


Times = dict[str, list[tuple[float, float]]]
"""Arm -> seconds of each round, and those of all processors together."""


def timed(arms: dict[str, Arm], rounds: int) -> Times:
    """Times of each arm by turns; its first call is the first."""
    times: Times = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, once in arms.items():
            began, busy = time.perf_counter(), time.process_time()
            once()
            times[name].append((time.perf_counter() - began, time.process_time() - busy))
            print(f"round {turn}  {name}  %.2f s, %.2f of processors" % times[name][-1], flush=True)
    return times


def result_of(times: Times, rows: int) -> dict[str, Any]:
    """What the report has of a role: medians beside `generate`, and all readings."""
    median = {n: np.median(t[1:], axis=0) for n, t in times.items()}
    ways = {"": 0, "_by_processor_time": 1} if "generate" in median else {}
    return {
        "rows_per_second": {n: digits(rows / m[0]) for n, m in median.items()},
        "rows_per_processor_second": {n: digits(rows / m[1]) for n, m in median.items()},
        **{
            f"beside_generate{name}": {
                n: digits(median["generate"][i] / m[i]) for n, m in median.items()
            }
            for name, i in ways.items()
        },
        "seconds": {n: [round(x, 3) for x, _ in t[1:]] for n, t in times.items()},
        "processor_seconds": {n: [round(x, 3) for _, x in t[1:]] for n, t in times.items()},
        "first_call_seconds": {n: round(t[0][0], 2) for n, t in times.items()},
    }


def draw(report: dict[str, Any], file: Path) -> None:
    """Rows a processor-second, a panel for each role: other work on the machine does not count."""
    from dss_jax.run import pictures

    figure, panels = pictures.pyplot().subplots(
        1, len(report["roles"]), figsize=(9, 3.2), layout="constrained", squeeze=False, sharey=True
    )
    panels[0, 0].invert_yaxis()
    for axes, (role, result) in zip(panels[0], report["roles"].items(), strict=True):
        rates = result["rows_per_processor_second"]
        colours = ["#0072B2" if name in OURS else "#999999" for name in rates]
        bars = axes.barh([ARMS[name] for name in rates], [*rates.values()], color=colours)
        beside = result.get("beside_generate_by_processor_time")
        times = [
            f"{rate:,.1f}" + (f" ({beside[name]:.1f} times)" if beside else "")
            for name, rate in rates.items()
        ]
        axes.bar_label(bars, times, fontsize=8, padding=2)
        axes.set_xlim(0, 1.35 * max(rates.values()))
        axes.set_title(role, fontsize=10)
        axes.set_xlabel("rows a second of a processor")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{report['model']}, {report['task']}, {report['threads']} threads", fontsize=11
    )
    pictures.save(figure, file)


def main(arguments: list[str]) -> int:
    """Measures, prints and writes."""
    args, run, task_dirs = parse(arguments)
    # Before JAX and torch start their threads.
    os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import jax
    import torch
    import transformers

    from dss_jax import __version__

    load, roles = os.getloadavg()[0], {}
    with tempfile.TemporaryDirectory() as base:
        bench = Bench(args, run, task_dirs, Path(base))
        torch.set_num_threads(args.threads)
        for role in args.roles.split(","):
            roles[role] = result_of(timed(bench.arms(role), args.rounds), len(bench.rows))
            print(json.dumps(roles[role]["rows_per_second"]), flush=True)
    report = {
        "task": run.task.shown_name,
        "model": args.model,
        "sure": args.sure,
        "rows": len(bench.rows),
        "rationale_tokens": args.rationale_tokens,
        "rounds": args.rounds,
        "threads": args.threads,
        "not_measured": bench.missing,
        "processor": processor(),
        "load_average_1_min": {"before": load, "after": os.getloadavg()[0]},
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dss_jax": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(arguments, "predict.py"),
        "roles": roles,
    }
    device = in_file_name(jax.devices()[0].device_kind)
    name = f"{run.task.shown_name}-{args.model}{'-sure' if args.sure else ''}"
    file = args.out / f"predict-{name}-{device}.json"
    write_report(report, file)
    draw(report, file.with_suffix(".png"))
    print(f"{file} and its picture")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        print(f"predict.py: error: {error}", file=sys.stderr)
        sys.exit(2)
