"""`puna pull`: downloads a model from the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, is_quiet, print_json, usage_errors
from puna.errors import RequestError, show


@command(
    {
        "puna pull HuggingFaceTB/SmolLM2-135M-Instruct": "download a model",
        "puna pull unsloth/SmolLM2-135M-Instruct-GGUF:Q4_K_M": "one of several GGUF files",
        "puna pull owner/name --revision v1.0": "a branch, tag or commit",
    },
    {
        "model": "the model's name as given",
        "path": "its folder or GGUF file",
        "downloaded": "list of the files that were missing, each with name and bytes",
    },
)
def pull(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="owner/name, or owner/name:Q4_K_M for one of several GGUF files.")
    ],
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit. [default: main]")] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Download only the files that match this pattern; repeatable."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Download a model from the Hugging Face hub and print its path.

    Interrupted downloads are resumed. Environment variables: HF_TOKEN gives access to restricted models, HF_HOME sets
    the folder of the cache, HF_ENDPOINT sets the URL of another hub.
    """
    from puna import hub

    with usage_errors():
        reference = hub.read_reference(repo)
        if revision is not None and reference.revision is not None:
            raise RequestError(
                f"{show(repo)} already contains a revision, but --revision is {show(revision)}; omit one of them"
            )
    hub.show_progress(not is_quiet())
    downloads: list[hub.Download] = []

    def announce(download: hub.Download) -> None:
        downloads.append(download)
        if not json and not is_quiet():
            hub.print_download(download)

    path = hub.fetch(reference, include=include or (), announce=announce, revision=revision)
    if json:
        files = [{"name": name, "bytes": size} for one in downloads for name, size in one.missing.items()]
        print_json({"model": repo, "path": str(path), "downloaded": files})
    else:
        typer.echo(str(path))
