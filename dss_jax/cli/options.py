"""Flags that the commands share, and how they become a checked configuration."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dss_jax.cli import gin_config
from dss_jax.core import config, processes, registry
from dss_jax.core.errors import UsageError
from dss_jax.core.types import DistillationTask

BASE_GIN_FILE = "runs/train.gin"

BOUND_FLAGS = {
    "data_dir": "Task.data_dir",
    "rationales": "Task.record_files",
    "bad_rows": "Task.bad_rows",
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
"""Flag -> the setting that it is short for."""


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, the task that it names (None: a SeqIO task of the user's), and the
    path that was given for the vocabulary: `run` may have the checkpoint's, on this machine.
    """

    run: config.Run
    task: DistillationTask | None
    vocabulary: str | None


def add_command_flags(parser: argparse.ArgumentParser, command: ModuleType) -> None:
    """The flags of a command, given by its module, and those that all have."""
    command.add_flags(parser)
    text = "say more: the whole configuration, where compiled code is kept"
    parser.add_argument("-v", "--verbose", action="store_true", help=text)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data_dir", help="folder of the data (also: DSS_DATA_DIR); all paths: gs:// or s3:// too")
    add(
        "--vocabulary",
        help="SentencePiece model (a file, or https://), tokenizer's folder, or bytes",
    )
    add("--store_dir", help="folder of the token stores (also: DSS_STORE_DIR)")
    add("--task_dir", action="append", default=[], help="a folder with task files of yours")


def add_rationales_flag(parser: argparse.ArgumentParser) -> None:
    text = "records of `dss extract`, in place of the data's own teacher text; several: A,B"
    parser.add_argument("--rationales", metavar="FILE", help=text)


def add_bad_rows_flag(parser: argparse.ArgumentParser) -> None:
    text = "error (default), or skip: leave out rows that cannot be used, and count them"
    parser.add_argument("--bad_rows", choices=("error", "skip"), help=text)


def add_gin_flags(parser: argparse.ArgumentParser, files: bool = True) -> None:
    """T5X's flags for gin; without `files`, that for a setting alone."""
    add = parser.add_argument
    if files:
        add("--gin_file", action="append", default=[], help="read after the others")
        search = "folders with gin files, separated by commas"
        add("--gin_search_paths", default="", help=search)
    text = "a setting: --gin.Train.steps=300"
    add("--gin.NAME", metavar="VALUE", dest="bindings", default=[], help=text)


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """T5X's flags for several processes, and other programs' names for them."""
    add = parser.add_argument
    text = "of process 0, where several processes run this together: docs/multi_host.md"
    add("--coordinator_address", metavar="HOST:PORT", help=text)
    text = "how many processes; 1: alone, whatever the cluster says"
    add("--process_count", "--num_processes", type=int, metavar="N", help=text)
    text = "which of them this is, from 0; srun, mpirun and TPU pods tell it themselves"
    add("--process_index", "--process_id", type=int, metavar="I", help=text)
    add("--multiprocess_gpu", action="store_true", help="fail where no other process is found")
    most = processes.START_SECONDS
    text = f"how long the processes wait for each other ({most})"
    add("--initialization_timeout", metavar="SECONDS", type=int, default=most, help=text)


def start_processes(args: argparse.Namespace) -> None:
    """Finds out whether there are several processes, and connects them. Comes before anything that
    reads a checkpoint, for that starts the devices.
    """
    from dss_jax.core import cluster

    given = args.coordinator_address, args.process_count, args.process_index
    found = cluster.find(*given, required=args.multiprocess_gpu)
    processes.start(found, args.initialization_timeout)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that name a whole run."""
    add = parser.add_argument
    add("--task", help="a task file's name: see `dss tasks`")
    text = "a task whose rows are trained on too, with the teacher's labels; several: A,B"
    add("--extra_task", metavar="NAME", help=text)
    add("--method", help="a file of gin_configs/methods (default: dss)")
    add("--model", help="for example t5_1_1_base: gin_configs/models/")
    text = "checkpoint, or a name of the hub (google/flan-t5-base); gives the model"
    add("--init_from", metavar="PATH", help=text)
    add("--engine", help="what runs the loop: jax (default), or t5x: docs/t5x.md")
    add("--output_dir", help="where the run writes, and goes on from")
    add("--store", help="one token store to use as it is")
    add("--mixture_or_task_name", help="a SeqIO task or mixture of yours")
    add("--mixture_or_task_module", help="the Python module that registers it")
    add("--seqio_additional_cache_dirs", metavar="DIR,DIR", help="where such caches are")
    text = "read it from the cache that seqio_cache_tasks has written"
    add("--use_cached", action="store_true", default=None, help=text)
    add_data_flags(parser)
    add_rationales_flag(parser)
    add_bad_rows_flag(parser)
    add_gin_flags(parser)


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The flags of a command; its `bindings` are the settings: "Train.steps = 300" for
    `--gin.Train.steps=300`. Raises UsageError for what the command does not take.
    """
    try:
        args, rest = parser.parse_known_intermixed_args(words)
    except UsageError:
        parser.parse_known_args(words)  # Its error names all that is missing.
        raise
    bindings = []
    for at, flag in enumerate(rest):
        if not flag.startswith("--gin."):
            from dss_jax.core.hints import unknown_argument

            raise unknown_argument(parser, rest[at:], settings=hasattr(args, "bindings"))
        name, separator, value = flag.removeprefix("--gin.").partition("=")
        if not separator:
            raise UsageError(f"{flag} needs a value: --gin.{name}=VALUE.")
        bindings.append(f"{name} = {value}")
    if bindings and not hasattr(args, "bindings"):
        raise UsageError(f"{parser.prog} takes no gin settings, such as {bindings[0]!r}.")
    args.bindings = bindings
    return args


def flag_bindings(args: argparse.Namespace, leave_out: Sequence[str] = ()) -> list[str]:
    """Flags that were given -> the settings they are short for."""
    given = {f: getattr(args, f, None) for f in BOUND_FLAGS if f not in leave_out}
    return [f"{BOUND_FLAGS[f]} = {value!r}" for f, value in given.items() if value is not None]


def split_of(name: str) -> str:
    """A split's name here; "valid" is what others call validation."""
    return "validation" if name == "valid" else name


def search_paths(args: argparse.Namespace) -> list[str]:
    return [p for p in args.gin_search_paths.split(",") if p]


def resolve(args: argparse.Namespace) -> Resolved:
    """Flags -> checked configuration; see `named_run`."""
    method = args.method or ("standard" if args.mixture_or_task_name else None)
    bindings = flag_bindings(args) + args.bindings
    return named_run(args, args.task, method, args.model, bindings, args.needs_model)


def named_run(
    args: argparse.Namespace,
    task: str | None,
    method: str | None,
    model: str | None,
    bindings: Sequence[str],
    needs_model: bool = True,
) -> Resolved:
    """The checked configuration of a run, from names, --task_dir, --gin_file and --gin_search_paths
    of the flags, and bindings. Later ones win: base, model, method, task, files, bindings.

    Raises:
      UsageError: a name or a value is wrong, or differs from that of `--init_from`.
    """
    # A folder of the user's holds tasks/ and gin_configs/ side by side, as this project does.
    folders = [*args.task_dir, *registry.folders_on_path()]
    search = search_paths(args)
    search += [str(Path(d).absolute().parent / "gin_configs") for d in folders]
    files: list[str | Path] = [BASE_GIN_FILE]
    named = {"model": model, "method": method}
    files += [gin_config.named_file(kind, name, search) for kind, name in named.items() if name]
    if task:
        registry.load_task(task, args.task_dir)
        own = gin_config.gin_names("tasks", search).get(task)
        files += [own] if own else []
        bindings = [*bindings] if own else [f"Task.name = {task!r}", *bindings]
    settings = gin_config.read([*files, *args.gin_file], bindings, search)
    run = settings.run()
    if run.task.name is None and run.task.mixture_or_task_name is None:
        known = ", ".join(sorted(registry.task_names(args.task_dir)))
        raise UsageError(f"no task: give --task NAME. Known: {known}.")
    if needs_model and run.method.trains and not (model or args.gin_file or run.train.init_from):
        known = ", ".join(sorted(gin_config.gin_names("models", search)))
        raise UsageError(f"no model: give --model NAME, or --init_from OWNER/NAME. Known: {known}.")
    found = registry.load_task(run.task.name, args.task_dir) if run.task.name else None
    given = run.vocabulary.path
    if run.train.init_from is not None:
        from dss_jax.run.init_from import with_checkpoint

        run = with_checkpoint(run, settings.values.keys())
    return Resolved(run, found, given)
