"""Building tokenizers from each kind of file: what `load_tokenizer` and the classes' `from_pretrained` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from puna.errors import TokenizerError
from puna.files import read_json
from puna.formats.gguf import open_gguf
from puna.tokenizer.arguments import Arguments, CommonArguments, merged
from puna.tokenizer.files.config import read_folder
from puna.tokenizer.files.gguf import GgufVocabulary, merges, pre_name, read_vocabulary, sentencepiece_model
from puna.tokenizer.sentencepiece.proto import PieceType

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.slow import LlamaTokenizer

_KNOWN_ENDS = (
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|im_start|>", "<|im_end|>"),
    ("<|endoftext|>", "<|endoftext|>"),
)
"""BOS and EOS of LLaMA-architecture models, for a bare tokenizer.json, which does not say which tokens they are."""


def folder_arguments(path: Path) -> tuple[Arguments, str]:
    """What the small files of a folder say, and the class they name; nothing for a file."""
    if not path.is_dir():
        return Arguments(), ""
    config = read_folder(path)
    return config.arguments, config.tokenizer_class


def is_llama_class(name: str) -> bool:
    """Whether a class of transformers rebuilds the post-processor from add_bos_token and add_eos_token."""
    return name.removesuffix("Fast") in ("LlamaTokenizer", "CodeLlamaTokenizer")


def fast_arguments(arguments: Arguments) -> CommonArguments:
    """Those that `LlamaTokenizerFast` takes: it has no behaviours, nor SentencePiece."""
    common = arguments.copy()
    common.pop("legacy", None)
    common.pop("sp_model_kwargs", None)
    common.pop("spaces_between_special_tokens", None)
    return common


def own_sentencepiece(file: Path, arguments: Arguments) -> LlamaTokenizer:
    """SentencePiece's own ids, unless `legacy` asks for a behaviour of transformers."""
    from puna.tokenizer.slow import LlamaTokenizer

    return LlamaTokenizer(file, behaviour="sp" if arguments.get("legacy") is None else None, **arguments)


def has_llama_tokens(pipeline: Tokenizer, arguments: Arguments) -> bool:
    """Whether the vocabulary has <unk>, <s> and </s>, those that `arguments` rename aside."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return all(pipeline.token_to_id(token) is not None for name, token in names.items() if name not in arguments)


def literal_json(
    file: Path,
    arguments: Arguments,
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    pipeline: Tokenizer | None = None,
) -> LlamaTokenizerFast:
    """A tokenizer.json as it is; its post-processor is rebuilt only where `add_bos` or `add_eos` contradict it.

    Args:
        pipeline: the file's, where it has been read already.
    """
    from puna.tokenizer.fast import LlamaTokenizerFast, read_pipeline

    pipeline = pipeline or read_pipeline(file.read_bytes(), str(file))
    named = merged(_guessed_ends(pipeline, file.with_name("config.json")), arguments)
    tokenizer = LlamaTokenizerFast(tokenizer_object=pipeline, literal=True, **fast_arguments(named))
    return _with_ends(tokenizer, add_bos, add_eos)


def _with_ends(tokenizer: LlamaTokenizerFast, add_bos: bool | None, add_eos: bool | None) -> LlamaTokenizerFast:
    """Sets BOS and EOS only where they differ, as setting rebuilds the post-processor."""
    if add_bos is not None and add_bos != tokenizer.add_bos_token:
        tokenizer.add_bos_token = add_bos
    if add_eos is not None and add_eos != tokenizer.add_eos_token:
        tokenizer.add_eos_token = add_eos
    return tokenizer


def _guessed_ends(pipeline: Tokenizer, config_file: Path) -> Arguments:
    """BOS and EOS by the ids in config.json, else by the names that LLaMA models use; no token beyond these."""
    found = Arguments(unk_token=None, bos_token=None, eos_token=None)
    config = read_json(config_file, TokenizerError) if config_file.is_file() else {}
    special = {token.content for token in pipeline.get_added_tokens_decoder().values() if token.special}
    bos, eos = next((ends for ends in _KNOWN_ENDS if special.issuperset(ends)), (None, None))
    found["bos_token"] = _token(pipeline, config.get("bos_token_id")) or bos
    found["eos_token"] = _token(pipeline, config.get("eos_token_id")) or eos
    return found


def _token(pipeline: Tokenizer, index: object) -> str | None:
    first = index[0] if isinstance(index, list) and index else index
    return pipeline.id_to_token(first) if isinstance(first, int) and 0 <= first < 2**32 else None


def tiktoken(file: Path, arguments: Arguments) -> LlamaTokenizerFast:
    """Llama 3's ranks; BOS is added, as in Meta's code."""
    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.files.tiktoken import BOS, EOS, PAD, read_tiktoken

    named = merged(Arguments(unk_token=None, bos_token=BOS, eos_token=EOS, pad_token=PAD), arguments)
    tokenizer = LlamaTokenizerFast(tokenizer_object=read_tiktoken(file), literal=True, **fast_arguments(named))
    return _with_ends(tokenizer, arguments.get("add_bos_token", True), arguments.get("add_eos_token"))


def gguf(file: Path, arguments: Arguments) -> LlamaTokenizer | LlamaTokenizerFast:
    """Either kind of GGUF vocabulary, as its model reads text."""
    vocabulary = read_gguf(file)
    if vocabulary.model == "gpt2":
        return gguf_byte_level(vocabulary, arguments)
    from puna.tokenizer.slow import LlamaTokenizer

    named = gguf_arguments(vocabulary, arguments)
    model = sentencepiece_model(vocabulary)
    return LlamaTokenizer(model_proto=model, behaviour="sp" if arguments.get("legacy") is None else None, **named)


def gguf_fast(file: Path, arguments: Arguments) -> LlamaTokenizerFast:
    """Either kind of GGUF vocabulary as a pipeline of `tokenizers`."""
    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.sentencepiece.convert import convert_model

    vocabulary = read_gguf(file)
    if vocabulary.model == "gpt2":
        return gguf_byte_level(vocabulary, arguments)
    named = fast_arguments(gguf_arguments(vocabulary, arguments))
    return LlamaTokenizerFast(tokenizer_object=convert_model(sentencepiece_model(vocabulary), str(file)), **named)


def read_gguf(file: Path) -> GgufVocabulary:
    """The vocabulary of a GGUF file.

    Raises:
        TokenizerError: it has none, or a damaged one.
        CheckpointError: the file itself is damaged.
    """
    try:
        return read_vocabulary(open_gguf(file).metadata)
    except TokenizerError as exc:
        raise TokenizerError(f"{file}: {exc}") from exc


def gguf_arguments(vocabulary: GgufVocabulary, arguments: Arguments) -> Arguments:
    """What the metadata say beyond the vocabulary, under what the caller says."""
    named = Arguments(
        unk_token=vocabulary.token("unk"),
        bos_token=vocabulary.token("bos"),
        eos_token=vocabulary.token("eos"),
        pad_token=vocabulary.token("pad"),
        add_bos_token=vocabulary.flag("add_bos_token", True) and "bos" in vocabulary.ids,
        add_eos_token=vocabulary.flag("add_eos_token", False) and "eos" in vocabulary.ids,
    )
    templates = vocabulary.templates
    if templates:
        named["chat_template"] = templates["default"] if list(templates) == ["default"] else templates
    return merged(named, arguments)


def gguf_byte_level(vocabulary: GgufVocabulary, arguments: Arguments) -> LlamaTokenizerFast:
    """A "gpt2" vocabulary: control tokens are special, user-defined ones are cut out of the text."""
    from tokenizers import AddedToken

    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.files.byte_level import build, pre_tokenizer

    rules = pre_tokenizer(pre_name(vocabulary))
    vocab = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
    if len(vocab) != len(vocabulary.tokens):
        raise TokenizerError(
            f"tokenizer.ggml.tokens: only {len(vocab)} of {len(vocabulary.tokens)} tokens differ; download it again"
        )
    normal = int(PieceType.NORMAL)  # an enumeration compares slowly, and nearly all are of this kind
    special = (PieceType.CONTROL, PieceType.UNKNOWN)
    added = [
        AddedToken(token, normalized=False, special=kind in special)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind != normal and kind in (*special, PieceType.USER_DEFINED)
    ]
    named = gguf_arguments(vocabulary, arguments)
    pipeline = build(vocab, merges(vocabulary), rules, added)
    tokenizer = LlamaTokenizerFast(tokenizer_object=pipeline, literal=True, **fast_arguments(named))
    adds_bos = vocabulary.flag("add_bos_token", rules.adds_bos) and "bos" in vocabulary.ids
    return _with_ends(tokenizer, arguments.get("add_bos_token", adds_bos), named.get("add_eos_token"))
