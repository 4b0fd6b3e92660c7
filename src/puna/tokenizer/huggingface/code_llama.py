"""Only for compatibility: `CodeLlamaTokenizer` and `CodeLlamaTokenizerFast`, which also encode a text with a gap.

The text around a gap is a prefix and a suffix. Code Llama was trained to write the text between them after

    <PRE> prefix <SUF> suffix <MID>        or, if the suffix comes first,        <PRE> <SUF> suffix <MID> prefix

(codellama/llama/generation.py). A text with the fill token, usually <FILL_ME>, is split there. Llama's tokenizers are
subclassed, because everything else is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import tokenizers
from tokenizers import Tokenizer, normalizers, processors

from puna.errors import TokenizerError
from puna.files.tokenizer_json import library_errors
from puna.tokenizer.base import TokenizerBase
from puna.tokenizer.calls.encoding import Call, Encoding, Input
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.sentencepiece.engine import SPACE
from puna.tokenizer.slow import LlamaTokenizer
from puna.tokenizer.special import ADDITIONAL, AddedToken, TokenLike, added_token_from_json

_TOKENS = ("prefix_token", "middle_token", "suffix_token", "eot_token", "fill_token")
_SETTINGS = (*_TOKENS, "suffix_first")


class Infilling(TokenizerBase):
    """The part of Code Llama's tokenizers that is the same in both classes.

    Attributes:
        fill_token: marks the gap in a text.
        suffix_first: whether the suffix comes first, unless a call specifies it.
    """

    fill_token: str | None
    suffix_first: bool
    _infill_names: ClassVar[tuple[str, ...]] = ("suffix", "suffix_first")
    _infill_tokens: dict[str, str | None]

    @property
    def prefix_token(self) -> str | None:
        """The token before the prefix."""
        return self._infill_tokens["prefix_token"]

    @property
    def middle_token(self) -> str | None:
        """The token before the text of the gap."""
        return self._infill_tokens["middle_token"]

    @property
    def suffix_token(self) -> str | None:
        """The token before the suffix."""
        return self._infill_tokens["suffix_token"]

    @property
    def eot_token(self) -> str | None:
        """The token that ends the text of the gap."""
        return self._infill_tokens["eot_token"]

    @property
    def prefix_id(self) -> int | None:
        """The id of `prefix_token`."""
        return cast("int | None", self.convert_tokens_to_ids(self.prefix_token))

    @property
    def middle_id(self) -> int | None:
        """The id of `middle_token`."""
        return cast("int | None", self.convert_tokens_to_ids(self.middle_token))

    @property
    def suffix_id(self) -> int | None:
        """The id of `suffix_token`."""
        return cast("int | None", self.convert_tokens_to_ids(self.suffix_token))

    @property
    def eot_id(self) -> int | None:
        """The id of `eot_token`."""
        return cast("int | None", self.convert_tokens_to_ids(self.eot_token))

    def _apply(self, settings: Mapping[str, Any]) -> None:
        """Sets the tokens and the order of infilling."""
        self._infill_tokens = {name: settings[name] for name in _TOKENS[:4]}
        self.fill_token = settings["fill_token"]
        self.suffix_first = bool(settings["suffix_first"])
        self.init_kwargs |= settings

    def _infill(self, item: Input, arguments: Mapping[str, Any]) -> Input:
        text, suffix = item.text, arguments.get("suffix", item.pair if self.is_fast else None)
        if not isinstance(text, str):
            return item
        if suffix is None and self.fill_token and self.fill_token in text:
            text, *rest = text.split(self.fill_token)
            if len(rest) != 1:
                raise TokenizerError(f"the text has {len(rest)} fill tokens {self.fill_token}; it must have one gap")
            suffix = rest[0]
        if not suffix:
            return dataclasses.replace(item, text=text)
        if None in (self.prefix_id, self.middle_id, self.suffix_id):
            raise TokenizerError(
                "a text with a gap needs prefix_token, middle_token and suffix_token; this tokenizer lacks one of them"
            )
        if item.pair is not None and item.pair is not suffix:
            raise TokenizerError("a text with a gap has no pair; pass either text_pair= or suffix=")
        first = arguments.get("suffix_first")
        first = self.suffix_first if first is None else bool(first)
        return dataclasses.replace(item, text=text, pair=suffix, infill=True, suffix_first=first)

    def _class_config(self) -> dict[str, Any]:
        settings = self._infill_tokens | {"fill_token": self.fill_token, "suffix_first": self.suffix_first}
        config: dict[str, Any] = super()._class_config()  # type: ignore[safe-super]
        return {**config, **settings, "tokenizer_class": "CodeLlamaTokenizer"}


class CodeLlamaTokenizer(Infilling, LlamaTokenizer):
    """Code Llama's tokenizer with a SentencePiece model; always with the behaviour "hf" of `LlamaTokenizer`.

    Args:
        prefix_token, middle_token, suffix_token, eot_token: the tokens of infilling.
        fill_token: marks the gap in a text; None: texts have no gaps.
        suffix_first: whether the suffix comes first.
        shared: the arguments of `LlamaTokenizer`.
    """

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        unk_token: TokenLike | None = "<unk>",
        bos_token: TokenLike | None = "<s>",
        eos_token: TokenLike | None = "</s>",
        prefix_token: str | None = "▁<PRE>",
        middle_token: str | None = "▁<MID>",
        suffix_token: str | None = "▁<SUF>",
        eot_token: str | None = "▁<EOT>",
        fill_token: str | None = "<FILL_ME>",
        suffix_first: bool = False,
        sp_model_kwargs: Mapping[str, Any] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        clean_up_tokenization_spaces: bool = False,
        additional_special_tokens: Sequence[TokenLike] | None = None,
        use_default_system_prompt: bool = False,
        *,
        model_proto: bytes | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        pad_token: TokenLike | None = None,
        **shared: Any,
    ) -> None:
        values = (prefix_token, middle_token, suffix_token, eot_token, fill_token, suffix_first)
        settings, rest = _settings(values, additional_special_tokens, shared)
        for name in ("legacy", "behaviour", "spaces_between_special_tokens", "from_slow"):
            rest.pop(name, None)
        super().__init__(
            vocab_file,
            unk_token,
            bos_token,
            eos_token,
            pad_token,
            sp_model_kwargs,
            add_bos_token,
            add_eos_token,
            clean_up_tokenization_spaces,
            use_default_system_prompt,
            legacy=False,
            model_proto=model_proto,
            added_tokens_decoder=added_tokens_decoder,
            **rest,
        )
        self._apply(settings)

    def tokenize(  # type: ignore[override]  # as in transformers
        self, prefix: str, suffix: str | None = None, suffix_first: bool | None = None, *args: Any, **options: Any
    ) -> list[str]:
        """Returns a text as tokens; with a suffix, or a fill token in the text, the tokens of a text with a gap."""
        item = self._infill(Input(prefix, None, False, False), {"suffix": suffix, "suffix_first": suffix_first})
        if not item.infill:
            return super().tokenize(str(item.text), *args, **options)
        return [token if isinstance(token, str) else self._id_token(token) for token in self._gap_tokens(item, str)]

    def _encode_one(self, item: Input, call: Call) -> Encoding:
        return (
            Encoding(self._id_columns(self._gap_tokens(item, int), None, call))
            if item.infill
            else super()._encode_one(item, call)
        )

    def _gap_tokens(self, item: Input, kind: type) -> list[Any]:
        text = str(item.text)
        prefix = self._part_tokens(SPACE + text.replace(SPACE, " "), kind) if text else []
        suffix = self._part_tokens(str(item.pair), kind)
        if item.suffix_first:
            return [self.prefix_id, self.suffix_id, *suffix, self.middle_id, *prefix]
        return [self.prefix_id, *prefix, self.suffix_id, *suffix, self.middle_id]


class CodeLlamaTokenizerFast(Infilling, LlamaTokenizerFast):
    """Code Llama's tokenizer with the library `tokenizers`; a pair of texts is a prefix and a suffix.

    Args:
        prefix_token, middle_token, suffix_token, eot_token, fill_token, suffix_first: as in `CodeLlamaTokenizer`.
        shared: the arguments of `LlamaTokenizerFast`.
    """

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        clean_up_tokenization_spaces: bool = False,
        unk_token: TokenLike | None = "<unk>",
        bos_token: TokenLike | None = "<s>",
        eos_token: TokenLike | None = "</s>",
        prefix_token: str | None = "▁<PRE>",
        middle_token: str | None = "▁<MID>",
        suffix_token: str | None = "▁<SUF>",
        eot_token: str | None = "▁<EOT>",
        fill_token: str | None = "<FILL_ME>",
        additional_special_tokens: Sequence[TokenLike] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        use_default_system_prompt: bool = False,
        suffix_first: bool = False,
        **shared: Any,
    ) -> None:
        values = (prefix_token, middle_token, suffix_token, eot_token, fill_token, suffix_first)
        settings, rest = _settings(values, additional_special_tokens, shared)
        self._gap_pipelines: dict[tuple[bool, bool], Tokenizer] = {}
        super().__init__(
            vocab_file,
            tokenizer_file,
            clean_up_tokenization_spaces,
            unk_token,
            bos_token,
            eos_token,
            add_bos_token,
            add_eos_token,
            use_default_system_prompt,
            **rest,
        )
        self._apply(settings)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_gap_pipelines": {}}

    def update_post_processor(self) -> None:
        """Makes the pipeline add BOS and EOS as `add_bos_token` and `add_eos_token` specify."""
        super().update_post_processor()
        self._gap_pipelines = {}

    def _add(self, tokens: Sequence[AddedToken]) -> int:
        self._gap_pipelines = {}
        return super()._add(tokens)

    def _encode_texts(self, inputs: Sequence[Input], call: Call) -> list[tokenizers.Encoding]:
        if not any(item.infill for item in inputs):
            return super()._encode_texts(inputs, call)
        return [self._encode_text(item, call) for item in inputs]

    def _encode_text(self, item: Input, call: Call) -> tokenizers.Encoding:
        if not item.infill:
            return super()._encode_texts([item], call)[0]
        pipeline = self._gap_pipeline(item.suffix_first, call.add_special_tokens)
        spaced = dataclasses.replace(item, text=f" {item.text}")
        return self._run(pipeline, [spaced], dataclasses.replace(call, add_special_tokens=True))[0]

    def _gap_pipeline(self, suffix_first: bool, add_special_tokens: bool) -> Tokenizer:
        """Returns a copy of the pipeline for texts with a gap; other threads may be using the original."""
        key = (suffix_first, add_special_tokens)
        if key not in self._gap_pipelines:
            with library_errors("this tokenizer cannot encode a text with a gap"):
                pipeline = Tokenizer.from_str(self._tokenizer.to_str())
                self._set_gap(pipeline, *key)
            self._gap_pipelines[key] = pipeline
        return self._gap_pipelines[key]

    def _set_gap(self, pipeline: Tokenizer, suffix_first: bool, add_special_tokens: bool) -> None:
        bos, eos = self._bos_and_eos() if add_special_tokens else ([], [])
        prefix, middle, suffix = (str(token) for token in (self.prefix_token, self.middle_token, self.suffix_token))
        order = [prefix, suffix, "$B", middle, "$A"] if suffix_first else [prefix, "$A", suffix, "$B", middle]
        special = {prefix: self.prefix_id, middle: self.middle_id, suffix: self.suffix_id}
        special |= {self._id_token(index): index for index in (*bos, *eos)}
        pipeline.normalizer = normalizers.Replace(" ", SPACE)
        pipeline.post_processor = processors.TemplateProcessing(
            single="$A",
            pair=[*map(self._id_token, bos), *order, *map(self._id_token, eos)],
            special_tokens=[(token, cast(int, index)) for token, index in special.items()],
        )

    def set_infilling_processor(self, reset: bool, suffix_first: bool = False, add_special_tokens: bool = True) -> None:
        """Makes the pipeline itself encode pairs as texts with a gap, or with `reset` as texts again."""
        if reset:
            self._tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
            )
            self.update_post_processor()
        else:
            self._set_gap(self._tokenizer, suffix_first, add_special_tokens)


def _settings(
    values: tuple[Any, ...], additional: Any, shared: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of infilling, which files override, and the other arguments of the constructor."""
    rest = dict(shared)
    rest["other_config"] = other = dict(rest.get("other_config") or {})
    settings = _split_settings(other, dict(zip(_SETTINGS, values, strict=True)))
    tokens = [*(additional or ()), *(settings[name] for name in _TOKENS[:4] if settings[name] is not None)]
    rest[ADDITIONAL] = list({str(token): token for token in reversed(tokens)}.values())[::-1]
    return settings, rest


def _split_settings(other: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Removes the settings of infilling from the keys of tokenizer_config.json, and adds them to `settings`."""
    for name in _SETTINGS:
        if name in other:
            value = other.pop(name)
            is_token = name in _TOKENS and value is not None
            settings[name] = str(added_token_from_json(value, name)) if is_token else value
    return settings
