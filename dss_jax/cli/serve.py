"""Serves a student over HTTP: labels and rationales, OpenAI's completions, and a page to try it.

  dss serve --student runs/words/dss
  DSS_SERVE_TOKEN=... dss serve --student DIR --host 0.0.0.0 --port 80

Clients show the token that DSS_SERVE_TOKEN holds, if it is set. docs/serve.md.
"""

import argparse
import logging
import os
from dataclasses import fields
from pathlib import Path

from dss_jax.core.checks import between
from dss_jax.core.errors import UsageError
from dss_jax.serve.limits import ANY_HOST, LOOPBACK, ServeLimits

log = logging.getLogger(__name__)

TOKEN = "DSS_SERVE_TOKEN"

ANY_ADDRESS = ("0.0.0.0", "::")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    student = "a run's folder, one that dss convert has written, or OWNER/NAME of the hub"
    add("--student", required=True, metavar="STUDENT", help=student)
    add("--engine", help="jax or ctranslate2 (default: by the folder)")
    add("--checkpoint", help="of a run's folder: best (default), latest or a step")
    add("--threads", type=int, metavar="N", help="of the processor (default: all)")
    text = "compile batches of every size before /readyz says so, not when they first come"
    add("--warm_batches", action="store_true", help=text)
    add("--name", help="of the model, for clients (default: the folder's)")
    add("--host", default=LOOPBACK[0], help=f"address to listen on (default {LOOPBACK[0]})")
    add("--port", type=int, default=8000, help="default 8000; 0: any that is free")
    hosts = "names that clients may call the server by: A,B; * is any"
    add("--allowed_hosts", metavar="NAMES", help=hosts)
    add = parser.add_argument_group("at most").add_argument
    for field in fields(ServeLimits):
        text = f"{field.metadata['help']} ({field.default:,})"
        add(f"--{field.name}", type=int, metavar="N", default=field.default, help=text)


def main(args: argparse.Namespace) -> None:
    between("--port", args.port, 0, 65535)
    token = _token()
    try:
        from dss_jax.serve import server
        from dss_jax.serve.service import Served, Service
    except ModuleNotFoundError as error:
        if str(error.name).startswith("dss_jax"):
            raise
        raise UsageError(
            f'dss serve needs {error.name}, which is not installed: pip install "dss-jax[serve]".'
        ) from None
    from dss_jax.run.clock import clocked
    from dss_jax.student.load import load

    limits = ServeLimits(**{field.name: getattr(args, field.name) for field in fields(ServeLimits)})
    with server.bind(args.host, args.port) as listening:
        with clocked(f"loading {args.student}"):
            student = load(
                args.student, engine=args.engine, threads=args.threads, checkpoint=args.checkpoint
            )
        name = args.name or Path(args.student).resolve().name
        hosts = _hosts(args.host, args.allowed_hosts)
        served = Served(student, name, token, hosts, limits, args.warm_batches)
        url = server.url_of(listening)
        log.info("%s (%s) at %s/ and %s/v1; API: %s/docs", name, student.engine, url, url, url)
        if not token and args.host not in LOOPBACK:
            log.warning("whoever reaches %s may ask: %s is not set", url, TOKEN)
        server.run(Service(served), listening)


def _token() -> str:
    token = os.environ.get(TOKEN, "").strip()
    if not (token.isascii() and (not token or token.isprintable()) and " " not in token):
        raise UsageError(f"{TOKEN} must be one word of ASCII characters, without a line break.")
    return token


def _hosts(host: str, allowed: str | None) -> tuple[str, ...]:
    """Names that a Host header may have."""
    if allowed is not None:
        return tuple(name.strip().lower() for name in allowed.split(",") if name.strip())
    return (ANY_HOST,) if host in ANY_ADDRESS else (*LOOPBACK, host.lower())
