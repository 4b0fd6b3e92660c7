"""Loads the tokenizer of a path. The content of the files decides which class is used."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.errors import TokenizerError, show
from puna.hub import local_path
from puna.tokenizer.arguments import Arguments, check_names, split_hub_arguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.slow import LlamaTokenizer


def load_tokenizer(path: str | Path, **arguments: Unpack[Arguments]) -> LlamaTokenizer | LlamaTokenizerFast:
    """Loads the tokenizer of a folder, a file or the hub; the content of the files decides which class is used.

    A tokenizer.json is used unchanged, whichever class its configuration names. Llama 3's tiktoken files and both
    kinds of GGUF vocabulary encode to the ids that their models were trained with. A SentencePiece model encodes as in
    SentencePiece: special tokens written in a text, such as </s>, are text, unless `split_special_tokens=False`
    (`AutoTokenizer` treats them as tokens). No system prompt is added to chats, and padding is on the left, as
    generation requires.

    Args:
        path: a folder with tokenizer.json, tokenizer.model or one GGUF file; one of these files; or a model of the
            hub (owner/name), whose tokenizer is downloaded.
        arguments: constructor arguments, which override the files. `legacy` selects a behaviour of transformers for a
            SentencePiece model.

    Raises:
        ModelNotFoundError: there is no such folder or file.
        TokenizerError: the path contains no tokenizer, or a file is damaged, or an argument is unknown.
    """
    from puna.tokenizer.files.recipes import default_recipe  # here, because it imports NumPy (0.1 s)

    arguments = check_names(arguments)
    recipe = default_recipe(local_path(path, "tokenizer"), str(path), arguments)
    tokenizer: LlamaTokenizer | LlamaTokenizerFast
    if recipe.pipeline is not None:
        from puna.tokenizer.fast import LlamaTokenizerFast

        tokenizer = LlamaTokenizerFast.from_recipe(recipe)
    else:
        from puna.tokenizer.slow import LlamaTokenizer

        tokenizer = LlamaTokenizer.from_recipe(recipe)
    # Whether a text is too long for the model is checked where a request is made.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained`, for code written against transformers."""

    def __init__(self) -> None:
        raise TokenizerError("AutoTokenizer has no instances; call AutoTokenizer.from_pretrained(path)")

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path,
        *,
        config: object = None,
        use_fast: bool = True,
        tokenizer_type: str = "llama",
        **arguments: Any,
    ) -> LlamaTokenizer | LlamaTokenizerFast:
        """Loads a tokenizer as transformers does: with `LlamaTokenizerFast.from_pretrained` for the files of LLaMA.

        Special tokens written in a text, such as </s>, are tokens; `load_tokenizer` keeps SentencePiece's own ids
        instead. A tokenizer.json of another class than LLaMA's is used unchanged.

        Args:
            pretrained_model_name_or_path: a folder, a file or a model of the hub (owner/name).
            config: has no effect: the tokenizer's own files decide.
            tokenizer_type: must be "llama".
            use_fast: with False, the result is `LlamaTokenizer.from_pretrained`. Files without a SentencePiece
                vocabulary have only the fast tokenizer, which is returned with a warning.
            arguments: constructor arguments, which override the files. The arguments with which transformers controls
                downloads have the same meaning here, and no effect on a local path; other names are kept and saved.

        Raises:
            ModelNotFoundError: there is no such folder or file.
            TokenizerError: the path contains no tokenizer, or a file is damaged.
        """
        from puna.tokenizer.files.recipes import auto_recipe, has_sentencepiece, is_code_llama

        if tokenizer_type != "llama":
            raise TokenizerError(f"tokenizer_type is {show(tokenizer_type)}; puna has tokenizers for 'llama' only")
        path, constructor_arguments, other = split_hub_arguments(pretrained_model_name_or_path, arguments)
        classes: Any = importlib.import_module("puna.tokenizer")
        name = "CodeLlamaTokenizer" if is_code_llama(path) else "LlamaTokenizer"
        if not use_fast and has_sentencepiece(path):
            slow: type[LlamaTokenizer] = getattr(classes, name)
            return slow.from_pretrained(path, **constructor_arguments, **other)
        if not use_fast:
            warnings.warn(
                f"{pretrained_model_name_or_path} has no SentencePiece vocabulary; use_fast=False has no effect, and "
                "the result is a LlamaTokenizerFast",
                stacklevel=2,
            )
        fast: type[LlamaTokenizerFast] = getattr(classes, f"{name}Fast")
        return fast.from_recipe(auto_recipe(path, constructor_arguments).with_other(other))

    @staticmethod
    def register(config_class: type, *tokenizer_classes: type | None, **arguments: Any) -> None:
        """Does nothing: files of other models' tokenizers are not read. For code written against transformers."""
