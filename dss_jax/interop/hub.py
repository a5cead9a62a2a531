"""A student's folder to the Hugging Face hub. HF_ENDPOINT names another server that speaks it."""

import os
from pathlib import Path

from dss_jax.core.errors import UsageError
from dss_jax.interop.hf_config import CONFIG

FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.bin",
    "*.safetensors",
    "*.safetensors.index.json",
    "shared_vocabulary.json",
    "spiece.model",
    "student.json",
    "t5_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What `dss convert` writes; nothing else that lies in a folder is sent."""

TOKEN = "HF_TOKEN"

_LIBRARIES = ("huggingface_hub", "httpx", "requests")


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
    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint, token=token, library_name="dss-jax")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=[*FILES], commit_message=message
        )
    except Exception as error:
        # Its versions have their errors from different libraries.
        if not (isinstance(error, OSError) or type(error).__module__.startswith(_LIBRARIES)):
            raise
        reason = str(error).replace(token, "...").strip().splitlines()
        raise UsageError(f"cannot push to {repo} at {api.endpoint}: {' '.join(reason)}") from None
    return str(done.commit_url)
