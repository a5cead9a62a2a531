"""Times greedy decoding beside Hugging Face's `generate`: same weights, inputs and outputs.

  python benchmarks/decode.py --task cqa --data_dir ../release --vocabulary FILE

The weights are random. Inputs are rows of the task's test split; each output has the length of the
row's rationale (both sides end a row there), so lengths vary as in real use. `generate` gets the
rows in their order, padded to the longest of a batch; `dss_jax.evaluate.engine` gets them all at
once. Each round runs one after the other; figures are medians of the rounds.

Needs torch and transformers (requirements-parity.txt). Takes the flags of `dss train`;
--gin.NAME=value too. Writes a JSON file and a picture.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from reporting import RESULTS, command, in_file_name, processor, write_report

from dss_jax import __version__
from dss_jax.cli import options
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID
from dss_jax.data.prepare import ensure_store
from dss_jax.data.ragged import Ragged
from dss_jax.evaluate.engine import Engine
from dss_jax.interop.hf import read_hf
from dss_jax.interop.hf_config import config_json
from dss_jax.layouts.layout import pad_rows
from dss_jax.model.decoding import Chosen
from dss_jax.model.sampling import SampleSearch, SampleState
from dss_jax.model.t5 import T5
from dss_jax.run import pictures
from dss_jax.train.sharding import make_mesh

ROUNDS_OF_ROWS = {1: 16, 16: 128, 64: 256, 256: 512}
"""Batch size -> inputs that are decoded."""


@dataclass(frozen=True)
class Timed(SampleSearch):
    """Greedy, where row i ends at `lengths[i]` tokens and not before."""

    lengths: tuple[int, ...] = ()

    def choose(self, state: SampleState, logits_BxKxV: jax.Array, position: jax.Array) -> Chosen:
        """Takes the tokens of a position."""
        ends_B = position + 1 >= jnp.asarray(self.lengths)[state.ids_B]
        is_eos_V = jnp.arange(logits_BxKxV.shape[-1]) == self.eos_id
        forced = jnp.where(ends_B[:, None, None] == is_eos_V, logits_BxKxV, -1e9)
        return super().choose(state, forced, position)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, config.Run, tuple[str, ...]]:
    """Command line -> flags, the run whose model and data are used, the user's task folders."""
    parser = argparse.ArgumentParser(
        prog="decode.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_run_flags(parser)
    parser.add_argument(
        "--batch_size", type=int, action="append", help="of both sides (default 1, 16, 64, 256)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default 3)")
    parser.add_argument(
        "--output_length", type=int, help="all outputs this long, instead of the rationales'"
    )
    parser.add_argument("--shapes", type=int, default=4, help="see Engine (default 4)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    parser.set_defaults(needs_model=True, task="cqa", model="t5_small")
    args = options.parse(parser, arguments)
    if args.rounds < 1:
        raise UsageError(f"--rounds must be at least 1, not {args.rounds}.")
    return args, options.resolve(args).run, tuple(args.task_dir)


def reference_model(run: config.Run, folder: Path) -> tuple[Any, Any]:
    """A random model of Hugging Face's, and the same parameters for ours."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    hf = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**config_json(run.model, "float32"))
    )
    hf.save_pretrained(folder)
    params = jax.tree.map(jnp.asarray, read_hf(folder).tree())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return hf.eval().to(device, getattr(torch, run.model.dtype)), params


def generate(hf: Any, inputs: Ragged, rows: np.ndarray, lengths: np.ndarray, size: int) -> list:
    """What a user's loop over batches of `generate` gives: for each row its tokens."""
    import torch
    import transformers

    class Timer(transformers.LogitsProcessor):
        """Ends row i at its length and not before."""

        def __init__(self, lengths: np.ndarray) -> None:
            self.lengths = torch.tensor(lengths, device=hf.device)

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            ends = input_ids.shape[1] >= self.lengths
            # In place, which costs little beside the model.
            eos = scores[:, EOS_ID].clone()
            scores[ends] = -1e9
            scores[:, EOS_ID] = torch.where(ends, eos, -1e9)
            return scores

    found = []
    for first in range(0, len(rows), size):
        at = rows[first : first + size]
        longest = int(inputs.lengths()[at].max())
        tokens = torch.tensor(pad_rows(inputs, at, longest), device=hf.device).long()
        with torch.inference_mode():
            out = hf.generate(
                tokens,
                attention_mask=(tokens != 0).long(),
                max_new_tokens=int(lengths[at].max()),
                do_sample=False,
                num_beams=1,
                logits_processor=transformers.LogitsProcessorList([Timer(lengths[at])]),
            )
        found += [row[: lengths[r]].tolist() for row, r in zip(out[:, 1:].cpu(), at, strict=True)]
    return found


def rounds(ours: Callable, theirs: Callable, number: int) -> tuple[dict, float]:
    """Seconds of each round of both, one after the other, and those of our first call."""
    began = time.perf_counter()
    ours()
    first = time.perf_counter() - began
    theirs()
    seconds: dict[str, list[float]] = {"dss_jax": [], "generate": []}
    for _ in range(number):
        for name, call in (("dss_jax", ours), ("generate", theirs)):
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return seconds, first


def compare(args: argparse.Namespace, run: config.Run, store: Any, size: int, models: Any) -> dict:
    """One batch size: both sides timed, their tokens compared."""
    hf, params = models
    split = store.split("test")
    inputs = split.tokens("rationale_inputs")
    lengths = np.maximum(split.tokens("rationale_targets").lengths(), 2)
    if args.output_length:
        lengths = np.full_like(lengths, args.output_length)
    rows = np.arange(min(len(split), ROUNDS_OF_ROWS.get(size, 2 * size)))
    engine = Engine(
        T5(run.model),
        make_mesh(config.Mesh(), jax.devices()[:1]),
        run.mesh.logical_axis_rules,
        Timed(lengths=tuple(map(int, lengths[rows]))),
        max_decode_length=int(lengths[rows].max()),
        batch_size=size,
        shapes=args.shapes,
    )

    def ours() -> list:
        tokens = engine(params, inputs, rows).tokens[:, 0]
        return [t[: lengths[r]].tolist() for t, r in zip(tokens, rows, strict=True)]

    def theirs() -> list:
        return generate(hf, inputs, rows, lengths, size)

    same = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
    seconds, first = rounds(ours, theirs, args.rounds)
    tokens = int(lengths[rows].sum())
    rates = {name: tokens / float(np.median(s)) for name, s in seconds.items()}
    return {
        "batch_size": size,
        "inputs": len(rows),
        "output_tokens": tokens,
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(rates["dss_jax"] / rates["generate"], 2),
        "rows_with_the_same_tokens": same,
        "first_call_seconds": round(first, 2),
        "raw_seconds": {name: [round(x, 3) for x in s] for name, s in seconds.items()},
    }


def draw(report: dict[str, Any], file: Path) -> None:
    """Tokens a second of both, a pair of bars for each batch size."""
    results = report["results"]
    figure, axes = pictures.pyplot().subplots(figsize=(7, 3.6), layout="constrained")
    places = np.arange(len(results))
    for shift, (name, colour, label) in enumerate(
        (("generate", "#999999", "transformers' generate"), ("dss_jax", "#0072B2", "dss-jax"))
    ):
        rates = [r["tokens_per_second"][name] for r in results]
        bars = axes.bar(places + 0.4 * shift - 0.2, rates, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], fontsize=8)
    axes.set_xticks(places, [f"batch {r['batch_size']}\n{r['ratio']:.1f} times" for r in results])
    axes.set_ylabel("generated tokens a second")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(
        f"{report['model']}, greedy, {report['dtype']}, {report['device']}: {report['outputs']}",
        fontsize=11,
    )
    pictures.save(figure, file)


def main(arguments: list[str]) -> int:
    """Measures, prints and writes."""
    import torch
    import transformers

    args, run, task_dirs = parse(arguments)
    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=task_dirs, need=["test"])
    with tempfile.TemporaryDirectory() as folder:
        models = reference_model(run, Path(folder))
    load = os.getloadavg()[0]
    results = []
    for size in args.batch_size or sorted(ROUNDS_OF_ROWS):
        results.append(compare(args, run, store, size, models))
        print(json.dumps(results[-1]), flush=True)
    device = jax.devices()[0].device_kind
    outputs = (
        f"outputs of {args.output_length} tokens"
        if args.output_length
        else f"outputs as long as {run.task.shown_name}'s rationales"
    )
    report = {
        "task": run.task.shown_name,
        "model": args.model,
        "dtype": run.model.dtype,
        "outputs": outputs,
        "rounds": args.rounds,
        "device": device,
        "processor": processor(),
        "load_average_1_min": {"before": load, "after": os.getloadavg()[0]},
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dss_jax": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(arguments, "decode.py"),
        "results": results,
    }
    name = in_file_name(device)
    kind = f"fixed{args.output_length}" if args.output_length else run.task.shown_name
    file = args.out / f"decode-{kind}-{args.model}-{name}.json"
    write_report(report, file)
    draw(report, file.with_suffix(".png"))
    print(f"{file} and its picture")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        print(f"decode.py: error: {error}", file=sys.stderr)
        sys.exit(2)
