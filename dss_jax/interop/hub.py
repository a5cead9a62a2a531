"""Models of the Hugging Face hub: fetched into its cache, and a student's folder pushed there.
HF_ENDPOINT names another server that speaks it, HF_TOKEN holds the token.
"""

import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dss_jax.core.errors import UsageError, nearest
from dss_jax.core.paths import written
from dss_jax.data.tokenizer_files import FILES as TOKENIZER_FILES
from dss_jax.interop.ct2_files import MODEL, TOKENS
from dss_jax.interop.foreign import PEFT, advice
from dss_jax.interop.hf_config import CONFIG

log = logging.getLogger(__name__)

SMALL = (CONFIG, "generation_config.json", "student.json", "t5_config.json", *TOKENIZER_FILES)
"""What is fetched beside the weights."""

TENSORS = (MODEL, TOKENS, "*.safetensors", "*.safetensors.index.json")
FILES = ("README.md", "sums.json", *SMALL, *TENSORS)
"""What `dss convert` writes; nothing else that lies in a folder is sent."""

TOKEN, ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"

SECONDS = 5.0
"""That the hub may take to say what a repository holds. Its library would wait for ever."""

SCHEME = "hf:"
_NAME = re.compile(rf"({SCHEME}(?://)?)?((?:[\w.-]+/)?[\w.-]+)(?:@(\S+))?", re.ASCII)

_LIBRARIES = ("huggingface_hub", "httpx", "requests")

KNOWN = (
    *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *(f"google/t5-v1_1-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *(f"google/mt5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *(f"google-t5/t5-{size}" for size in ("small", "base", "large", "3b", "11b")),
)
"""Names that a wrong one is compared with."""


class HubName(NamedTuple):
    """A model repository ("google/flan-t5-base") and a branch, tag or commit of it; None: main."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_name(path: str) -> HubName | None:
    """What a name of the hub names; None for a path. `hf:OWNER/NAME@REVISION` is always one.
    OWNER/NAME is one where it cannot be a path: there is no such folder here, and no folder OWNER
    that it could have been meant to lie in.
    """
    match = _NAME.fullmatch(path)
    if match is None:
        return None
    scheme, repo, revision = match.groups()
    owner, slash, _ = repo.partition("/")
    if not scheme and (not slash or owner.strip(".") == "" or Path(owner).exists()):
        return None
    return HubName(repo, revision)


def full_name(path: str) -> str:
    """A name of the hub with its scheme, by which it is one wherever it is; a path as it is."""
    name = hub_name(path)
    return path if name is None else f"{SCHEME}{name}"


def local(path: str) -> str:
    """The folder of a path or of a name of the hub, whose files are fetched into the hub's cache
    (HF_HOME) as far as they are needed and not there yet: configuration, vocabulary, safetensors,
    never pickles. A connection that breaks is taken up where it broke, and whole files are kept.
    Without the hub, or with HF_HUB_OFFLINE=1, what the cache has is taken.

    Raises:
      UsageError: no such repository or revision, no permission, no network and nothing in the
        cache, or no weights in it that are read here.
    """
    name = hub_name(path)
    if name is None:
        return path
    from huggingface_hub import HfApi, constants, snapshot_download

    token = os.environ.get(TOKEN) or False
    api = HfApi(endpoint=_endpoint(), token=token, library_name="dss-jax")
    with _explained(name, path), written(Path(constants.HF_HUB_CACHE)):
        try:
            found = api.model_info(name.repo, revision=name.revision, timeout=SECONDS)
        except Exception as error:
            if not _unreachable(error):
                raise
            return _cached(name, path, error)
        wanted = _wanted([file.rfilename for file in found.siblings or ()], name)
        return snapshot_download(
            name.repo,
            revision=name.revision,
            allow_patterns=wanted,
            endpoint=_endpoint(),
            token=token,
            etag_timeout=SECONDS,
            library_name="dss-jax",
        )


def _endpoint() -> str | None:
    return os.environ.get(ENDPOINT) or None


def _unreachable(error: Exception) -> bool:
    """Whether the hub was not asked, or gave no answer."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return bool(answer.status_code >= 500)
    return isinstance(error, ConnectionError) or type(error).__module__.startswith(_LIBRARIES[1:])


def _cached(name: HubName, path: str, reason: Exception) -> str:
    """The folder in the cache, of a hub that cannot be asked."""
    from huggingface_hub import constants, snapshot_download

    try:
        folder = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=[CONFIG], local_files_only=True
        )
        if not {".safetensors", ".bin"} & {file.suffix for file in Path(folder).iterdir()}:
            raise FileNotFoundError("its weights were not fetched to the end")
    except (OSError, ValueError):
        off = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if off else str(reason).strip().partition("\n")[0]
        raise UsageError(
            f"{_no_folder(path)}the Hugging Face hub cannot be reached ({why}), and {name} is "
            f"not in its cache, {constants.HF_HUB_CACHE}. Fetch it where there is a network: "
            f"hf download {name.repo} --local-dir DIR, and give DIR."
        ) from reason
    log.info("%s is taken from the cache: the Hugging Face hub cannot be reached", name)
    return folder


def _no_folder(path: str) -> str:
    return "" if path.startswith(SCHEME) else f"there is no folder {path}, and "


def _wanted(names: Collection[str], name: HubName) -> list[str]:
    """The files of a repository that are needed."""
    shards = [n for n in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]
    whole, index = "model.safetensors", "model.safetensors.index.json"
    if whole in names:
        tensors = [whole]
    elif index in names:
        tensors = [index, *shards]
    elif {MODEL, TOKENS} <= {*names}:  # CTranslate2's, which is no pickle.
        tensors = [MODEL, TOKENS]
    else:
        raise _without_weights(names, name)
    if CONFIG not in names:
        raise UsageError(f"{name} of the Hugging Face hub has no {CONFIG}: it is no model.")
    return [*(n for n in SMALL if n in names), *tensors]


def _without_weights(names: Collection[str], name: HubName) -> UsageError:
    if PEFT not in names and any(n.startswith("pytorch_model") for n in names):
        return UsageError(
            f"{name} of the Hugging Face hub has its weights as PyTorch's pickles only, which are "
            "not fetched: they may hold code. Its Community tab may have a pull request that adds "
            f"safetensors: give {SCHEME}{name.repo}@refs/pr/NUMBER. Or fetch it yourself, "
            f"hf download {name.repo} --local-dir DIR, and give DIR: no code in it runs."
        )
    what = advice(names, str(name)) or f"It has: {', '.join(sorted(names)) or 'nothing'}."
    return UsageError(f"{name} of the Hugging Face hub has no model.safetensors. {what}")


@contextmanager
def _explained(name: HubName, path: str) -> Iterator[None]:
    """Turns what the hub refuses into a UsageError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UsageError) or not _of_hub(error):
            raise
        token = os.environ.get(TOKEN)
        kind, code = (
            type(error).__name__,
            getattr(getattr(error, "response", None), "status_code", 0),
        )
        from dss_jax.core.road import HUB

        hub = _without_user(_endpoint() or HUB).rstrip("/")
        if kind == "GatedRepoError":
            said = f"{name} is gated: agree to its terms at {hub}/{name.repo}"
            said += (
                f", with the account of {TOKEN}." if token else f", and put a token into {TOKEN}."
            )
        elif kind == "RevisionNotFoundError":
            said = f"{name.repo} of the Hugging Face hub has no revision {name.revision!r}."
        elif kind == "RepositoryNotFoundError" or code == 401:
            near = nearest(name.repo, KNOWN, 0.7)
            hint = f" Did you mean {near!r}?" if near and near != name.repo else ""
            private = "" if token else f", or it is private: put a token into {TOKEN}"
            said = f"{_no_folder(path)}{hub} has no model {name.repo}{private}.{hint}"
        else:
            said = f"cannot fetch {name} from {hub}: {_line(error)}"
        raise UsageError(said) from None


def _of_hub(error: Exception) -> bool:
    """Whether the hub's library, or what it is built on, has raised an error."""
    # Its versions have their errors from different libraries.
    return isinstance(error, OSError) or type(error).__module__.startswith(_LIBRARIES)


def _line(error: Exception) -> str:
    """What an error says, without the token, which the hub may repeat."""
    token = os.environ.get(TOKEN) or "\0"
    return " ".join(_without_user(str(error)).replace(token, "...").strip().splitlines())


def _without_user(text: str) -> str:
    """Addresses in a text without `user:password@`."""
    return re.sub(r"(?<=://)[^/\s@]*@", "", text)


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Uploads a folder that `dss convert` wrote to a model repository, which is made where there is
    none, as one commit. Gives the commit's address.

    Raises:
      UsageError: the folder is none; HF_TOKEN is not set; or the hub refuses, with its reason.
    """
    from huggingface_hub import HfApi

    if not (folder / CONFIG).is_file():
        raise UsageError(
            f"{folder} has no {CONFIG}, so it is no folder that can be handed over. Write one with "
            f"dss convert --from orbax {folder} --to hf NEW_FOLDER."
        )
    token = os.environ.get(TOKEN)
    if not token:
        raise UsageError(f"{TOKEN} is not set: put a token that may write to {repo} there.")
    api = HfApi(endpoint=_endpoint(), token=token, library_name="dss-jax")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=[*FILES], commit_message=message
        )
    except Exception as error:
        if not _of_hub(error):
            raise
        raise UsageError(
            f"cannot push to {repo} at {_without_user(api.endpoint)}: {_line(error)}"
        ) from None
    return str(done.commit_url)
