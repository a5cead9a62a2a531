"""Flags that the commands share, and how they become a checked configuration."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dss_jax.cli import gin_config
from dss_jax.core import cluster, config, processes, registry
from dss_jax.core.errors import UsageError, nearest
from dss_jax.core.types import DistillationTask

BASE_GIN_FILE = "runs/train.gin"

BOUND_FLAGS = {
    "data_dir": "Task.data_dir",
    "rationales": "Task.record_files",
    "extra_task": "Task.extra_tasks",
    "vocabulary": "Vocabulary.path",
    "store_dir": "Data.store_dir",
    "store": "Data.store",
    "output_dir": "Train.output_dir",
    "decode": "Evaluate.decode",
    "init_from": "Train.init_from",
    "engine": "Train.engine",
    "mixture_or_task_name": "Task.mixture_or_task_name",
    "mixture_or_task_module": "Task.mixture_or_task_module",
    "use_cached": "Task.use_cached",
    "seqio_additional_cache_dirs": "Task.seqio_cache_dirs",
}
"""Flag -> the gin binding that it is short for."""


@dataclass(frozen=True)
class Resolved:
    """A checked configuration and the task that it names (None: a SeqIO task of the user's)."""

    run: config.Run
    task: DistillationTask | None
    task_dirs: tuple[str, ...]


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which data."""
    parser.add_argument(
        "--data_dir", help="folder of the data (also: DSS_DATA_DIR); all paths: gs:// or s3:// too"
    )
    parser.add_argument("--vocabulary", help="SentencePiece model: a file, or https://")
    parser.add_argument("--store_dir", help="folder of the token stores (also: DSS_STORE_DIR)")
    parser.add_argument(
        "--task_dir", action="append", default=[], help="a folder with task files of yours"
    )


def add_rationales_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that says whose teacher text."""
    parser.add_argument(
        "--rationales",
        metavar="FILE",
        help="records of `dss extract`, in place of the data's own teacher text; several: A,B",
    )


def add_gin_flags(parser: argparse.ArgumentParser) -> None:
    """T5X's flags for gin."""
    parser.add_argument("--gin_file", action="append", default=[], help="read after the others")
    parser.add_argument(
        "--gin_search_paths", default="", help="folders with gin files, separated by commas"
    )
    parser.add_argument(
        "--gin.NAME", metavar="VALUE", dest="gin_example", help="a binding: --gin.Train.steps=300"
    )


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """T5X's flags for several processes, and other programs' names for them."""
    parser.add_argument(
        "--coordinator_address", metavar="HOST:PORT",
        help="of process 0, where several processes run this together: docs/multi_host.md",
    )  # fmt: skip
    parser.add_argument(
        "--process_count", "--num_processes", type=int, metavar="N",
        help="how many processes; 1: alone, whatever the cluster says",
    )  # fmt: skip
    parser.add_argument(
        "--process_index", "--process_id", type=int, metavar="I",
        help="which of them this is, from 0; srun, mpirun and TPU pods tell it themselves",
    )  # fmt: skip
    parser.add_argument(
        "--multiprocess_gpu", action="store_true", help="fail where no other process is found"
    )
    parser.add_argument(
        "--initialization_timeout", type=int, default=processes.START_SECONDS, metavar="SECONDS",
        help=f"how long the processes wait for each other ({processes.START_SECONDS})",
    )  # fmt: skip


def start_processes(args: argparse.Namespace) -> None:
    """Finds out whether there are several processes, and connects them. Comes before anything that
    reads a checkpoint, for that starts the devices.
    """
    found = cluster.find(
        args.coordinator_address,
        args.process_count,
        args.process_index,
        required=args.multiprocess_gpu,
    )
    processes.start(found, args.initialization_timeout)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that name a whole run."""
    parser.add_argument("--task", help="a task file's name: see `dss tasks`")
    parser.add_argument(
        "--extra_task", metavar="NAME",
        help="a task whose rows are trained on too, with the teacher's labels; several: A,B",
    )  # fmt: skip
    parser.add_argument("--method", help="a file of gin_configs/methods (default: dss)")
    parser.add_argument("--model", help="for example t5_1_1_base: gin_configs/models/")
    parser.add_argument(
        "--init_from", help="checkpoint to start from: Hugging Face, Orbax or T5X; gives the model"
    )
    parser.add_argument("--engine", help="what runs the loop: jax (default), or t5x: docs/t5x.md")
    parser.add_argument("--output_dir", help="where the run writes, and goes on from")
    parser.add_argument("--store", help="one token store to use as it is")
    parser.add_argument("--mixture_or_task_name", help="a SeqIO task or mixture of yours")
    parser.add_argument("--mixture_or_task_module", help="the Python module that registers it")
    parser.add_argument(
        "--use_cached", action="store_true", default=None,
        help="read it from the cache that seqio_cache_tasks has written",
    )  # fmt: skip
    parser.add_argument(
        "--seqio_additional_cache_dirs", metavar="DIR,DIR", help="where such caches are"
    )
    add_data_flags(parser)
    add_rationales_flag(parser)
    add_gin_flags(parser)


def gin_bindings(rest: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """`--gin.NAME=value` flags -> bindings.

    Raises:
      UsageError: a flag is none of the parser's.
    """
    bindings = []
    for flag in rest:
        if flag.startswith("--gin."):
            name, separator, value = flag.removeprefix("--gin.").partition("=")
            if not separator:
                raise UsageError(f"{flag} needs a value: --gin.{name}=VALUE.")
            bindings.append(f"{name} = {value}")
        else:
            known = [o for action in parser._actions for o in action.option_strings]
            near = nearest(flag.partition("=")[0], known)
            hint = f" Did you mean {near}?" if near else ""
            raise UsageError(f"unknown argument {flag!r}.{hint} See {parser.prog} --help.")
    return bindings


def flag_bindings(args: argparse.Namespace, leave_out: Sequence[str] = ()) -> list[str]:
    """Flags that were given -> the bindings they are short for."""
    given = {f: getattr(args, f, None) for f in BOUND_FLAGS if f not in leave_out}
    return [f"{BOUND_FLAGS[f]} = {value!r}" for f, value in given.items() if value is not None]


def _files(args: argparse.Namespace, search: list[str]) -> tuple[list[str | Path], list[str]]:
    """Gin files that the flags are short for, and bindings where a task has no gin file."""
    files: list[str | Path] = [BASE_GIN_FILE]
    bindings: list[str] = []
    if args.model:
        files.append(gin_config.named_file("model", args.model, search))
    method = args.method or ("standard" if args.mixture_or_task_name else None)
    if method:
        files.append(gin_config.named_file("method", method, search))
    if args.task:
        registry.load_task(args.task, args.task_dir)
        own = gin_config.gin_names("tasks", search).get(args.task)
        if own:
            files.append(own)
        else:
            bindings.append(f"Task.name = {args.task!r}")
    return [*files, *args.gin_file], bindings


def resolve(
    args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser
) -> Resolved:
    """Flags -> checked configuration. Later ones win: base, model, method, task, `--gin_file`s,
    flags, `--gin.` bindings.

    Raises:
      UsageError: a name or a value is wrong, or differs from that of `--init_from`.
    """
    # A folder of the user's holds tasks/ and gin_configs/ side by side, as this project does.
    folders = [*args.task_dir, *registry.folders_on_path()]
    beside = [str(Path(d).absolute().parent / "gin_configs") for d in folders]
    search = [p for p in args.gin_search_paths.split(",") if p] + beside
    files, bindings = _files(args, search)
    bindings += flag_bindings(args)
    settings = gin_config.read(files, bindings + gin_bindings(rest, parser), search)
    run = settings.run()
    if run.task.name is None and run.task.mixture_or_task_name is None:
        known = ", ".join(sorted(registry.task_names(args.task_dir)))
        raise UsageError(f"no task: give --task NAME. Known: {known}.")
    wants_model = args.needs_model and run.method.trains
    if wants_model and not (args.model or args.gin_file or run.train.init_from):
        known = ", ".join(sorted(gin_config.gin_names("models", search)))
        raise UsageError(f"no model: give --model NAME, or --init_from PATH. Known: {known}.")
    task = registry.load_task(run.task.name, args.task_dir) if run.task.name else None
    if run.train.init_from is not None:
        from dss_jax.run.init_from import with_checkpoint

        run = with_checkpoint(run, settings.values.keys())
    return Resolved(run, task, tuple(args.task_dir))
