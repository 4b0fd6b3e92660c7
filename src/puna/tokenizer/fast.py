"""`LlamaTokenizerFast`: a pipeline of `tokenizers`, built from any kind of tokenizer file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tokenizers
from tokenizers import Tokenizer, models, processors

from puna.compat.transformers_bases import inherit_when_imported
from puna.errors import TokenIdError, TokenizerError, show
from puna.files import folder_path, path_argument
from puna.files.tokenizer_json import library_errors, numbering_notes, read_pipeline
from puna.tokenizer.arguments import SharedArguments, as_ids, check_added_tokens, common_arguments
from puna.tokenizer.base import TokenizerBase
from puna.tokenizer.calls.encoding import Call, Encoding, Input
from puna.tokenizer.calls.lengths import check_pair, windows
from puna.tokenizer.files import recipes
from puna.tokenizer.files.config import OWN_IDS
from puna.tokenizer.huggingface.interface import SlowClass
from puna.tokenizer.huggingface.training import set_truncation_and_padding, train_new_from_iterator
from puna.tokenizer.special import AddedToken, TokenLike, as_added_token, as_special
from puna.tokenizer.streams import TextStream, decoder_stream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


_FORCED_CLEAN_UP = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
"""A key of tokenizer_config.json in transformers 5."""


class LlamaTokenizerFast(TokenizerBase):
    """A tokenizer that encodes with `tokenizers` and reports the characters of each token.

    Args:
        vocab_file: path of a SentencePiece model; converted if there is no `tokenizer_file`.
        tokenizer_file: path of a tokenizer.json.
        unk_token, bos_token, eos_token, pad_token: special tokens; missing tokens are added to the vocabulary.
        added_tokens_decoder: more tokens by id; an id must be the next free id when its token is added.
        add_bos_token, add_eos_token: whether to add BOS before a text, and EOS after it.
        from_slow: convert `vocab_file` even if there is a `tokenizer_file`.
        tokenizer_object: a pipeline, instead of either file.
        literal: keep the pipeline's post-processor, which decides whether BOS and EOS are added, until `add_bos_token`
            or `add_eos_token` is assigned.

    Raises:
        TokenizerError: the files cannot be read, or arguments contradict each other.
    """

    is_fast = True
    padding_side = "left"
    vocab_files_names = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    slow_tokenizer_class = SlowClass()
    _recipe = staticmethod(recipes.pipeline_recipe)

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        clean_up_tokenization_spaces: bool = False,
        unk_token: TokenLike | None = "<unk>",
        bos_token: TokenLike | None = "<s>",
        eos_token: TokenLike | None = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        use_default_system_prompt: bool = True,
        *,
        pad_token: TokenLike | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        from_slow: bool = False,
        tokenizer_object: Tokenizer | None = None,
        literal: bool = False,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            use_default_system_prompt=use_default_system_prompt,
            **shared,
        )
        self.vocab_file = None if vocab_file is None else str(vocab_file)
        self.literal = literal
        self.init_kwargs |= {"add_bos_token": add_bos_token, "add_eos_token": add_eos_token}
        check_added_tokens(added_tokens_decoder)
        if tokenizer_object is not None and not isinstance(tokenizer_object, Tokenizer):
            raise TokenizerError(f"tokenizer_object is {show(tokenizer_object)}; it must be a tokenizers.Tokenizer")
        self._tokenizer = tokenizer_object or _pipeline(vocab_file, None if from_slow else tokenizer_file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._splitting_pipeline: Tokenizer | None = None
        self._prefixed: dict[int, str] | None = None
        config_tokens = added_tokens_decoder or {}
        _add_config_tokens(self._tokenizer, config_tokens)
        for index, token in config_tokens.items():
            if self._token_id(token.content) != index:
                raise TokenizerError(
                    f"added token {token.content!r} must have id {index}, but gets id {self._token_id(token.content)}: "
                    "tokens outside the vocabulary get the next free ids"
                )
        self._add_special()
        if literal:
            self._detect_bos_and_eos()
        else:
            self._set_bos_and_eos(add_bos_token, add_eos_token)

    @classmethod
    def from_recipe(cls, recipe: recipes.Recipe) -> Self:
        """Creates a tokenizer from a recipe. Notes report added tokens that cannot have the ids in the files."""
        arguments = common_arguments(recipe.arguments)
        assert recipe.pipeline is not None
        config_tokens = arguments.pop("added_tokens_decoder", None) or {}
        _add_config_tokens(recipe.pipeline, config_tokens)
        tokenizer = cls(recipe.vocab_file, tokenizer_object=recipe.pipeline, literal=recipe.literal, **arguments)
        ids = [(token.content, index) for index, token in config_tokens.items()]
        tokenizer._set_notes([*recipe.notes, *numbering_notes("the configuration", recipe.pipeline, ids)])
        # The assignment rebuilds the post-processor, so assign only a different value.
        if recipe.add_bos is not None and recipe.add_bos != tokenizer.add_bos_token:
            tokenizer.add_bos_token = recipe.add_bos
        if recipe.add_eos is not None and recipe.add_eos != tokenizer.add_eos_token:
            tokenizer.add_eos_token = recipe.add_eos
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_splitting_pipeline": None}

    def _add_special(self) -> None:
        """Adds the special tokens that the pipeline lacks; as in transformers, tokens with a name become special."""
        added = {token.content: token for token in self.added_tokens_decoder.values()}
        named = {token.content for token in self._named.values()}
        self._add([as_special(self, t) for t in self.all_special_tokens_extended if t.content not in added])
        self._add([t.with_flags(special=True) for text, t in added.items() if text in named and not t.special])

    def _detect_bos_and_eos(self) -> None:
        """Sets `add_bos_token` and `add_eos_token` from the tokens that the pipeline adds to an empty text."""
        ids = self._tokenizer.encode("").ids
        self._add_bos = bool(ids) and ids[0] == self.bos_token_id
        self._add_eos = len(ids) > self._add_bos and ids[-1] == self.eos_token_id

    def _set_bos_and_eos(self, add_bos: bool, add_eos: bool) -> None:
        super()._set_bos_and_eos(add_bos, add_eos)
        self.update_post_processor()

    def update_post_processor(self) -> None:
        """Makes the pipeline add BOS and EOS as `add_bos_token` and `add_eos_token` specify."""
        self._bos_and_eos()  # raises if a token is missing
        bos = [self.bos_token] if self.add_bos_token and self.bos_token else []
        eos = [self.eos_token] if self.add_eos_token and self.eos_token else []
        single = [*(f"{token}:0" for token in bos), "$A:0", *(f"{token}:0" for token in eos)]
        second = [*(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)]
        with library_errors("this tokenizer cannot add BOS and EOS"):
            self._tokenizer.post_processor = processors.TemplateProcessing(
                single=single,
                pair=single + second,
                special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in dict.fromkeys(bos + eos)],
            )
        self._splitting_pipeline = None

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The pipeline of `tokenizers`."""
        return self._tokenizer

    @property
    def decoder(self) -> Any:
        """The decoder of the pipeline."""
        return self._tokenizer.decoder

    train_new_from_iterator = train_new_from_iterator
    set_truncation_and_padding = set_truncation_and_padding

    def _new_arguments(self) -> dict[str, Any]:
        """Returns the constructor arguments of a tokenizer with the same settings, without its tokens."""
        names = (
            *("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "use_default_system_prompt", "literal"),
            *("model_max_length", "padding_side", "truncation_side", "model_input_names", "split_special_tokens"),
            *("chat_template", "other_config"),
        )
        return {name: getattr(self, name) for name in names}

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, ascending."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {index: as_added_token(token) for index, token in sorted(added.items())}

    def _token_id(self, token: str) -> int | None:
        try:
            return self._tokenizer.token_to_id(token)
        except UnicodeEncodeError:  # a lone surrogate
            return None

    def _id_token(self, index: int) -> str:
        token = self._tokenizer.id_to_token(index) if 0 <= index < 2**32 else None
        token = self._added_texts().get(index, token)
        if token is None:
            raise TokenIdError(f"token id {show(index)} is not in this vocabulary of {len(self)} tokens")
        return token

    def _added_texts(self) -> dict[int, str]:
        """The texts of added tokens that `tokenizers` 0.22 and later show with the normaliser's prefix ("▁<s>")."""
        if self._prefixed is None:
            added = self._tokenizer.get_added_tokens_decoder()
            self._prefixed = {i: t.content for i, t in added.items() if self._tokenizer.id_to_token(i) != t.content}
        return self._prefixed

    def _add(self, tokens: Sequence[AddedToken]) -> int:
        old_length = len(self)
        _add_tokens(self._tokenizer, tokens)
        self._special_ids = self._prefixed = None
        self._splitting_pipeline = None
        return len(self) - old_length

    def _encode(self, inputs: Sequence[Input], call: Call) -> list[Encoding]:
        if any(isinstance(item.text, list) and not item.words for item in inputs):
            pairs = [(as_ids(item.text), None if item.pair is None else as_ids(item.pair)) for item in inputs]
            return [Encoding(self._id_columns(ids, pair, call)) for ids, pair in pairs]
        columns = self._encode_texts(inputs, call) if inputs else []
        return [windows(Encoding(item), call.plan, self.truncation_side, call.overflow) for item in columns]

    def _encode_texts(self, inputs: Sequence[Input], call: Call) -> list[tokenizers.Encoding]:
        return self._run(self._pipeline_for_splitting() if call.split else self._tokenizer, inputs, call)

    def _run(self, pipeline: Tokenizer, inputs: Sequence[Input], call: Call) -> list[tokenizers.Encoding]:
        words, add = not isinstance(inputs[0].text, str), call.add_special_tokens
        if pipeline.truncation is not None or pipeline.padding is not None:  # set by the caller
            pipeline.no_truncation()
            pipeline.no_padding()
        with library_errors("this tokenizer cannot encode the text"):
            if len(inputs) == 1:
                text, pair = inputs[0].text, inputs[0].pair
                return [
                    pipeline.encode(cast(str, text), cast(Any, pair), is_pretokenized=words, add_special_tokens=add)
                ]
            texts: list[Any] = [item.text if item.pair is None else (item.text, item.pair) for item in inputs]
            return pipeline.encode_batch(texts, is_pretokenized=words, add_special_tokens=add)

    def _pipeline_for_splitting(self) -> Tokenizer:
        """Returns a copy of the pipeline for `split_special_tokens`; other threads may be using the original."""
        if self._splitting_pipeline is None:
            with library_errors("this tokenizer cannot be copied"):
                self._splitting_pipeline = Tokenizer.from_str(self._tokenizer.to_str())
            self._splitting_pipeline.encode_special_tokens = True
        return self._splitting_pipeline

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Returns a text, or a pair of texts, as tokens; `options` are arguments of a call."""
        return self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Returns 0 for each id of the first sequence and 1 for each of the second, without special tokens."""
        check_pair(token_ids_0, token_ids_1)
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or [])

    def _report_unknown(self, arguments: Mapping[str, Any]) -> None:
        if arguments:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {min(arguments)!r}")

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Returns how many tokens are added to a text or pair."""
        return self._tokenizer.num_special_tokens_to_add(bool(pair))

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of tokens."""
        decoder = self._tokenizer.decoder
        with library_errors("this tokenizer cannot decode the tokens"):
            return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def _decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        for index in set(ids):
            self._id_token(index)
        if self._added_texts():
            skipped = self.skipped_tokens() if skip_special_tokens else {}
            return self.convert_tokens_to_string([self._id_token(index) for index in ids if index not in skipped])
        with library_errors("this tokenizer cannot decode the ids"):
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def skipped_tokens(self) -> dict[int, str]:
        """The special tokens: id to text."""
        return {index: token.content for index, token in self.added_tokens_decoder.items() if token.special}

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """Returns a new stream that decodes as `decode` does, without clean-up."""
        skipped = frozenset(self.skipped_tokens() if skip_special_tokens else ())

        def token_of(index: int) -> str | None:
            token = self._id_token(index)
            return None if index in skipped else token

        decoder = self._tokenizer.decoder
        return decoder_stream(decoder, token_of, lambda ids: self._decode(ids, skip_special_tokens, True))

    @property
    def _cleans_up(self) -> bool:
        """Whether `decode` cleans up by default: never the text of a BPE vocabulary, unless the files force it."""
        forced = self.other_config.get(_FORCED_CLEAN_UP) is True
        return self.clean_up_tokenization_spaces and (forced or not isinstance(self._tokenizer.model, models.BPE))

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether the file of the SentencePiece model still exists."""
        return self.vocab_file is not None and Path(self.vocab_file).is_file()

    _has_model = can_save_slow_tokenizer

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copies the SentencePiece model into an existing folder; returns its path."""
        if self.vocab_file is None or not self.can_save_slow_tokenizer:
            raise TokenizerError(
                f"vocab_file={self.vocab_file!r}: there is no SentencePiece model to save; use save_pretrained, which "
                "writes tokenizer.json"
            )
        from puna.tokenizer.sentencepiece.engine import open_model, read_model, write_model_file

        model = read_model(Path(self.vocab_file))
        open_model(model, self.vocab_file)  # raises if the file is damaged
        return (write_model_file(model, folder_path(save_directory), filename_prefix),)

    def _pipeline_json(self) -> dict[str, Any]:
        """Returns tokenizer.json, with merges as strings if possible: `tokenizers` before 0.20 cannot read pairs."""
        with library_errors("this tokenizer cannot be saved"):
            state: dict[str, Any] = json.loads(self._tokenizer.to_str())
        merges = state["model"].get("merges", [])
        if not any(" " in token for pair in merges for token in pair):
            state["model"]["merges"] = [" ".join(pair) for pair in merges]
        return state

    @property
    def _has_own_ids(self) -> bool:
        return self.other_config.get(OWN_IDS) == "sp"

    def _class_config(self) -> dict[str, Any]:
        # With LlamaTokenizerFast, transformers 5 would build its own pipeline instead of reading tokenizer.json.
        return {"tokenizer_class": "PreTrainedTokenizerFast"}


def _add_tokens(pipeline: Tokenizer, tokens: Iterable[AddedToken]) -> None:
    with library_errors("the tokens cannot be added"):
        for token in tokens:
            added = tokenizers.AddedToken(**token.to_dict())
            if token.special:
                pipeline.add_special_tokens([added])
            else:
                pipeline.add_tokens([added])


def _add_config_tokens(pipeline: Tokenizer, config_tokens: Mapping[int, AddedToken]) -> None:
    """Adds the tokens of a configuration that a pipeline lacks or has with other settings, in the order of their ids.

    The pipeline chooses the ids: a token that it already has keeps its id, another token gets the next free id.
    """
    existing = {index: as_added_token(token) for index, token in pipeline.get_added_tokens_decoder().items()}
    _add_tokens(pipeline, [token for index, token in sorted(config_tokens.items()) if existing.get(index) != token])


def _pipeline(vocab_file: str | Path | None, tokenizer_file: str | Path | None) -> Tokenizer:
    if tokenizer_file is not None:
        return read_pipeline(path_argument(tokenizer_file, "tokenizer_file"))[0]
    if vocab_file is None:
        raise TokenizerError("LlamaTokenizerFast needs tokenizer_file or vocab_file, or from_pretrained")
    from puna.tokenizer.sentencepiece.convert import convert_model
    from puna.tokenizer.sentencepiece.engine import read_model

    return convert_model(read_model(path_argument(vocab_file, "vocab_file")), str(vocab_file))


for _module, _name in (  # of transformers 4 and 5
    ("transformers.tokenization_utils_fast", "PreTrainedTokenizerFast"),
    ("transformers.tokenization_utils_tokenizers", "TokenizersBackend"),
):
    inherit_when_imported(LlamaTokenizerFast, _module, _name)
