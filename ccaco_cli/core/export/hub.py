"""Uploads an exported folder to the Hugging Face hub, with the library ``huggingface_hub``."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.model.towers.weights import first_line, is_reachable
from ccaco_cli.core.shell import quoted_path


def check_access(name: str) -> None:
    """Checks the name of a repository, the network and the token before anything is written.

    Args:
        name: OWNER/NAME, or NAME for the owner of the token.
    Raises:
        ConfigError: no name of a repository.
        DataError: no network, or no token.
    """
    where = f"--push-to-hub {name}"
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ConfigError(
            f"this is no name of a repository ({first_line(error)})", where=where, expected="OWNER/NAME"
        ) from None
    if constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT):
        raise DataError(
            "the hub cannot be reached",
            where=where,
            expected=f"a network that reaches {constants.ENDPOINT}",
            next=f"the same command without --push-to-hub, and later: hf upload {name} FOLDER",
        )
    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # errors of the hub and of its network library have no common class
        raise DataError(
            f"the hub does not know who uploads ({first_line(error)})",
            where=where,
            expected="a token that may write",
            next="hf auth login, then the same command",
        ) from None


def upload(folder: Path, name: str) -> str:
    """Uploads a folder to a model repository, which is created where there is none.

    Returns:
        The address of the repository.
    Raises:
        DataError: the hub refuses it, or the network fails; the folder stays as it is.
    """
    api = huggingface_hub.HfApi()
    try:
        address = str(api.create_repo(name, repo_type="model", exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of ccaco")
    except Exception as error:  # as above
        raise DataError(
            f"the folder is exported, but not uploaded ({first_line(error)})",
            where=f"--push-to-hub {name}",
            expected="a repository that the token may write, and a network",
            next=f"hf upload {name} {quoted_path(folder)}",
        ) from None
    return address
