"""`puna pull`: a model of the Hugging Face hub onto this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, print_json
from puna.errors import RequestError


@command
def pull(
    repo: Annotated[str, typer.Argument(help="owner/name; owner/name:Q4_K_M for one of several GGUF files.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit. [default: main]")] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Download the files of this pattern instead; may be repeated.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Download a model from the Hugging Face hub, or go on with a download, and print where it is.

    HF_TOKEN gives access to models that need it; HF_HOME chooses the cache, HF_ENDPOINT another hub.
    """
    from puna import hub

    reference = hub.read_reference(repo)
    if revision is not None and reference.revision is not None:
        raise RequestError(f"{repo!r} names a revision, and --revision another, {revision!r}; leave one out")
    downloads: list[hub.Download] = []

    def announce(download: hub.Download) -> None:
        downloads.append(download)
        if not json:
            hub.say(download)

    path = hub.fetch(reference, include=include or (), announce=announce, revision=revision)
    if json:
        files = [{"name": name, "bytes": size} for one in downloads for name, size in one.missing.items()]
        print_json({"model": repo, "path": str(path), "downloaded": files})
    else:
        typer.echo(str(path))
