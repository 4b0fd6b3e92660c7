"""Loads the tokenizer of a path. The content of the files decides which class is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from puna.hub import local_path
from puna.tokenizer.arguments import Arguments, FromPretrained, check_names, split_hub_arguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.slow import LlamaTokenizer


def load_tokenizer(path: str | Path, **arguments: Unpack[Arguments]) -> LlamaTokenizer | LlamaTokenizerFast:
    """Loads the tokenizer of a folder, a file or the hub; the content of the files decides which class is used.

    A tokenizer.json is used unchanged, whichever class its configuration names. Llama 3's tiktoken files and both
    kinds of GGUF vocabulary encode to the ids that their models were trained with. A SentencePiece model encodes as in
    SentencePiece: special tokens written in a text, such as </s>, are text, unless `split_special_tokens=False`. No
    system prompt is added to chats, and padding is on the left, as generation requires.

    Args:
        path: a folder with tokenizer.json, tokenizer.model or one GGUF file; one of these files; or a model of the
            hub (owner/name), whose tokenizer is downloaded.
        arguments: constructor arguments, which override the files. `legacy` selects a behaviour of transformers for a
            SentencePiece model.

    Raises:
        ModelNotFoundError: there is no such folder or file.
        TokenizerError: the path contains no tokenizer, a file is damaged, or an argument is unknown.
    """
    from puna.tokenizer.files.recipes import default_recipe  # here, because it imports NumPy (0.1 s)

    arguments = check_names(arguments)
    recipe = default_recipe(local_path(path, "tokenizer"), str(path), arguments)
    if recipe.pipeline is not None:
        from puna.tokenizer.fast import LlamaTokenizerFast

        return LlamaTokenizerFast.from_recipe(recipe)
    from puna.tokenizer.slow import LlamaTokenizer

    return LlamaTokenizer.from_recipe(recipe)


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained`, for code written against transformers."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path, *, use_fast: bool = True, **arguments: Unpack[FromPretrained]
    ) -> LlamaTokenizer | LlamaTokenizerFast:
        """Calls `load_tokenizer`, or with `use_fast=False` `LlamaTokenizer.from_pretrained`.

        The arguments with which transformers controls downloads have the same meaning here, and no effect on a local
        path.
        """
        if use_fast:
            path, constructor_arguments = split_hub_arguments(pretrained_model_name_or_path, arguments)
            return load_tokenizer(path, **constructor_arguments)
        from puna.tokenizer.slow import LlamaTokenizer

        return LlamaTokenizer.from_pretrained(pretrained_model_name_or_path, **arguments)
