"""Uploads the files of a folder to the hub, as one commit; only this module and `download` use `huggingface_hub`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.errors import ArgumentError, PunaError, RequestError, StorageError, first_line, show, suggestion
from puna.hub.token import choose_token

_ARGUMENTS = (
    "repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags"
)  # fmt: skip
_REMOVED = {"repo_url", "repo_path_or_name"}
_OLDER_NAMES = {"use_auth_token", "organization", *_REMOVED}
_NO_EFFECT = {
    "use_temp_dir", "working_dir", "max_shard_size", "safe_serialization", "save_original_format", "save_jinja_files"
}  # fmt: skip
"""Other arguments of `save_pretrained` and `push_to_hub` in transformers, which do not concern the upload."""

_CARD = """---
library_name: transformers
tags:
{tags}---

# {name}

A LLaMA model.
"""


def upload_files(
    folder: str | Path,
    names: Iterable[str],
    repo_id: str,
    *,
    commit_message: str = "Upload model",
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
) -> Any:
    """Creates the repository if needed and uploads files of a folder; returns `huggingface_hub`'s CommitInfo.

    Args:
        folder: contains the files.
        names: the files, relative to `folder`.
        repo_id: owner/name, or a name in the user's namespace.
        commit_message, commit_description: texts of the commit.
        private: whether a new repository is private; None for the default of the owner.
        token: overrides HF_TOKEN.
        revision: the branch, which is created if needed.
        create_pr: open a pull request instead of a commit.
        tags: tags of a model card (README.md), which is written if the repository has none; tags are added to an
            existing card.

    Raises:
        RequestError: the hub refused the upload.
        StorageError: the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repository, branch=revision, exist_ok=True)
        files = [CommitOperationAdd(name, Path(folder) / name) for name in names]
        if tags:
            files.append(CommitOperationAdd("README.md", _card(repository, tags, token).encode()))
        return api.create_commit(
            repository,
            files,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except PunaError:
        raise
    except (errors.HfHubHTTPError, errors.HFValidationError) as exc:
        raise RequestError(
            f"the hub refused to upload to {show(repo_id)}: {first_line(exc)}; check the name, and that the token may "
            "write there (HF_TOKEN or `hf auth login`)"
        ) from exc
    except (OSError, getattr(errors, "HTTPError", OSError)) as exc:
        raise StorageError(f"uploading to {show(repo_id)} failed ({first_line(exc)}); check the network") from exc


def unknown_arguments(options: Mapping[str, Any]) -> list[str]:
    """Returns the names that are not arguments of a `save_pretrained` or `push_to_hub` of transformers."""
    return sorted(options.keys() - {*_ARGUMENTS, *_OLDER_NAMES, *_NO_EFFECT})


def upload_arguments(options: Mapping[str, Any], known: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the arguments of `upload_files` among those of a `push_to_hub` of transformers 4.34 to 5.x.

    Args:
        known: other arguments of the caller, one of which a wrong name may mean.
        options: None means the default. `use_auth_token` is the older name of `token`; `organization` is the owner of
            `repo_id`. Arguments for weights are accepted, because one call may save several parts of a model.

    Raises:
        ArgumentError: there is no such argument.
        RequestError: an argument has been replaced by `repo_id`, or the token is given twice.
    """
    if others := unknown_arguments(options):
        hint = suggestion(others[0], [*known, *_ARGUMENTS, *_OLDER_NAMES, *_NO_EFFECT])
        raise ArgumentError(
            f"there is no argument {', '.join(others)}{hint or '; push_to_hub has ' + ', '.join(_ARGUMENTS)}"
        )
    if old := sorted(options.keys() & _REMOVED):
        raise RequestError(f"{old[0]} is no longer supported by the hub; pass repo_id, owner/name")
    values = {name: options.get(name) for name in _ARGUMENTS}
    values["token"] = choose_token(values["token"], options.get("use_auth_token"))
    owner, repository = options.get("organization"), values["repo_id"]
    if owner is not None and repository is not None:
        values["repo_id"] = f"{owner}/{repository}"
    return {name: value for name, value in values.items() if value is not None}


def _card(repository: str, tags: Sequence[str], token: str | bool | None) -> str:
    """Returns the repository's model card with the tags added, or a new card."""
    from huggingface_hub import ModelCard, errors

    try:
        card = ModelCard.load(repository, token=token)  # type: ignore[arg-type]
    except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, FileNotFoundError):
        return _CARD.format(tags="".join(f"- {tag}\n" for tag in tags), name=repository.rpartition("/")[2])
    card.data.tags = [*(card.data.tags or []), *(tag for tag in tags if tag not in (card.data.tags or []))]
    return str(card)
