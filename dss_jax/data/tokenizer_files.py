"""The files of a Hugging Face tokenizer: where they are, what they say. No library is imported."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dss_jax.core import storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.lfs import refuse_pointer
from dss_jax.core.paths import cache_folder, write_whole
from dss_jax.data.tokenizer import SEPARATOR, SentencePiece

FAST, SETTINGS, PIECES = "tokenizer.json", "tokenizer_config.json", "spiece.model"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"

FILES = (FAST, SETTINGS, SPECIAL, ADDED, "vocab.json", "merges.txt", PIECES, "tokenizer.model")
"""What a tokenizer may consist of; they are kept and handed on byte for byte."""

BYTE_CLASS = "ByT5Tokenizer"

NAMES = {"pad_token": "<pad>", "eos_token": SEPARATOR, "unk_token": "<unk>"}
"""What these are called where the files do not say."""

SILENT = ("pad_token", "bos_token", "cls_token", "sep_token", "eos_token")
"""Tokens that no text is read from."""

MOST_IDS = 2**24
"""No vocabulary has as many."""

FLAGS = ("lstrip", "rstrip", "normalized", "special", "single_word")


def files_of(path: Path) -> dict[str, Path]:
    """Name -> file, of a tokenizer's folder, or of one `tokenizer.json` under any name."""
    if path.is_dir():
        return {name: path / name for name in FILES if (path / name).is_file()}
    return {FAST: path}


def at_hand(folder: Path) -> Path:
    """The folder itself, or a copy of a remote one's files in the cache, named by its content."""
    if not storage.is_remote(folder):
        return folder
    found = [(n, (folder / n).read_bytes()) for n in FILES if (folder / n).is_file()]
    digest = hashlib.sha256(repr(found).encode()).hexdigest()[:16]
    copy = cache_folder() / "remote" / digest
    for name, content in found:
        if not (copy / name).is_file():
            write_whole(copy / name, content)
    return copy


def vocabulary_in(
    folder: Path, extra_ids: int = 100, make: Callable[..., Path | None] = lambda *_: None
) -> Path | None:
    """The vocabulary in a local folder: its SentencePiece file, with `extra_ids` above its pieces
    (if its settings do not say how many), where that is all of it; the folder itself where it holds
    a tokenizer; None: neither.

    `make`: (folder, its files) -> a folder that holds a tokenizer, of files that are none yet; or
    None. UsageError: tokens were added in a way that is not read here.
    """
    files = files_of(folder)
    extra_ids = settings_of(files).get("extra_ids", extra_ids)
    further = further_tokens(files, extra_ids)
    if PIECES in files and not further:
        return files[PIECES]
    if FAST in files or is_bytes(files):
        return folder
    made = make(folder, files)
    if further and made is None:
        raise UsageError(
            f"{folder} has tokens that were added to {PIECES} ({min(further.values())!r}), and "
            f"no {FAST} that has them. Write one with dss convert --from hf DIR --to hf NEW, "
            "or with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    return made


def is_bytes(files: Mapping[str, Path]) -> bool:
    """Whether they are ByT5's, and no `tokenizer.json`."""
    if FAST in files or SETTINGS not in files:
        return False
    return bool(settings_of(files).get("tokenizer_class") == BYTE_CLASS)


def further_tokens(files: Mapping[str, Path], extra_ids: int) -> dict[int, str]:
    """Id -> text, of tokens that were added to a SentencePiece file's pieces and extra ids."""
    if PIECES not in files:
        return {}
    found = {number: str(token["content"]) for number, token in added_tokens(files).items()}
    try:
        pieces = SentencePiece(files[PIECES], 0).vocab_size
    except UsageError:
        return found  # Not T5's: the tokenizer's own file is what tells.
    return {n: text for n, text in found.items() if 3 <= n < pieces or n >= pieces + extra_ids}


def added_tokens(files: Mapping[str, Path]) -> dict[int, dict[str, Any]]:
    """Id -> `content` and `FLAGS`, of the tokens that lie beside or above the model's pieces."""
    kinds: dict[str, Callable[[dict[str, Any]], Iterable[tuple[Any, Any]]]] = {
        ADDED: lambda held: [(n, {"content": text}) for text, n in held.items()],
        SETTINGS: lambda held: (held.get("added_tokens_decoder") or {}).items(),
        FAST: lambda held: [(one["id"], one) for one in held.get("added_tokens") or ()],
    }
    found: dict[int, dict[str, Any]] = {}
    for name, tokens in kinds.items():
        if name not in files:
            continue
        held = read(files[name])
        try:
            for number, token in tokens(held):
                if not (isinstance(token, dict) and _is_token(token)):
                    raise TypeError(f"{token!r} is no token")
                # The names of a JSON object are text.
                own = int(number) if isinstance(number, str) else number
                found[checked_id(own)] = token
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{files[name]}: its added tokens are not as they should be ({error}): each an id, "
                "a text, and flags that are true or false."
            ) from error
    return found


def checked_id(number: Any) -> int:
    """The id of a token, as JSON has it; raises TypeError where it is none."""
    if type(number) is not int or not 0 <= number < MOST_IDS:
        raise TypeError(f"{number!r} is no id")
    return number


def _is_token(token: Any) -> bool:
    """Whether it is a text, alone or with flags."""
    text = token
    if isinstance(token, dict):
        text = token.get("content")
        if not all(isinstance(token.get(flag, False), bool) for flag in FLAGS):
            return False
    return isinstance(text, str) and text != ""


def text_of(file: Path) -> str:
    """The text of a file of Hugging Face's; raises UsageError where it is none."""
    refuse_pointer(file)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error


def read(file: Path) -> dict[str, Any]:
    """The object in a JSON file of Hugging Face's; raises UsageError where there is none."""
    text = text_of(file)
    try:
        found = strict_json.loads(text)
    except ValueError as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file} does not hold a JSON object.")
    return found


def settings_of(files: Mapping[str, Path]) -> dict[str, Any]:
    """`tokenizer_config.json`, and what transformers 4 keeps beside it."""
    both: dict[str, Any] = {}
    for file in (files[name] for name in (SPECIAL, SETTINGS) if name in files):
        own = {key: value for key, value in read(file).items() if value is not None}
        tokens = [own[role] for role in own if role in (*SILENT, *NAMES, "mask_token")]
        more = own.get("additional_special_tokens", [])
        tokens += more if isinstance(more, list) else [[more]]
        if wrong := [one for one in tokens if not _is_token(one)]:
            raise UsageError(f"{file}: {wrong[0]!r} is no token.")
        if not (type(extra := own.get("extra_ids", 0)) is int and 0 <= extra < MOST_IDS):
            raise UsageError(f"{file}: extra_ids is {extra!r}, and should be a number of tokens.")
        both |= own
    return both


def roles_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Role ("eos_token") -> text of the token."""
    found = {**NAMES, **{role: settings[role] for role in (*SILENT, *NAMES) if role in settings}}
    return {role: token_text(token) for role, token in found.items()}


def token_text(token: Any) -> str:
    """The text of a token as the files have it, with its flags or without."""
    return str(token["content"] if isinstance(token, dict) else token)


def byte_folder() -> Path:
    """The vocabulary of bytes, as ByT5 has it, in the cache."""
    file = cache_folder() / "vocabularies" / "byt5" / SETTINGS
    content = json.dumps({"tokenizer_class": BYTE_CLASS, "extra_ids": 125}, indent=2)
    if not file.is_file():
        write_whole(file, content + "\n")
    return file.parent
