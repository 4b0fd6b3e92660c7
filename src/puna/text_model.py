"""`TextModel`: the common part of `LLM` and `AsyncLLM`. It turns arguments into requests."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from puna.answer import Answer, Candidates, check_stops
from puna.backends import check_language_model
from puna.classification import ClassificationHead
from puna.config import generation_notes
from puna.config.labels import last_token
from puna.engine import Request
from puna.errors import MissingExtraError, RequestError, show
from puna.grammars.rules import read_rule
from puna.lazy import cached_property
from puna.loaded_model import LoadedModel
from puna.options import Options, settings_of
from puna.prompt_scores import PromptLogits, PromptLosses, PromptState
from puna.prompts import (
    ChatArguments,
    is_messages,
    join_ids,
    read_conversations,
    read_ids,
    split_inputs,
)

if TYPE_CHECKING:
    from puna.grammars.compile import AnswerRule, Compiler

_PART_TOKENS = 512
"""Number of tokens whose logits `LLM.iter_logits` computes at once: as many as a step of the engine."""


class TextModel(LoadedModel):
    """A LLaMA model that generates text: the base class of `LLM` and `AsyncLLM`."""

    def _continuations(self, prompt: Any, options: Options) -> tuple[list[Candidates], bool]:
        """Returns the answers to be generated for an argument of `generate`, and whether that is a list of texts."""
        several = isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(item, str) for item in prompt)
        prompts = [self._encode(item) for item in prompt] if several else [self._encode(prompt)]
        return self._candidates(prompts, True, options), several

    def _replies(self, messages: Any, chat: ChatArguments, options: Options) -> tuple[list[Candidates], bool]:
        """Returns the answers to be generated for arguments of `chat`, and whether these are several conversations."""
        conversations, several = read_conversations(messages)
        prompts = [self._render(item, chat) for item in conversations]
        return self._candidates(prompts, chat.continue_final_message, options, self._turn_end_ids), several

    def _answer(self, prompt: Any, chat: ChatArguments, options: Options) -> Answer:
        """Returns the answer to be generated for the arguments of `stream`: a prompt or a conversation."""
        answers = self._streamed(prompt, chat, options)
        if len(answers) > 1:
            raise RequestError(
                f"n is {len(answers)}, but this stream has the text of one answer; use stream_batch, generate or chat"
            )
        return answers[0]

    def _streamed(self, prompt: Any, chat: ChatArguments, options: Options) -> tuple[Answer, ...]:
        """Returns the answers to be generated for a prompt or a conversation whose answers are streamed."""
        if is_messages(prompt):
            ((candidates,), _) = self._replies(prompt, chat, options)
        else:
            chat.check_unused()
            (candidates,) = self._candidates([self._encode(prompt)], True, options)
        if len(candidates.answers) > candidates.n:
            raise RequestError(
                f"best_of is {len(candidates.answers)}, but the best answers are known only at the end of all of them; "
                "use generate or chat, or leave out best_of"
            )
        return candidates.answers

    def _batch(self, prompts: Any, chat: ChatArguments, options: Options) -> list[Answer]:
        """Returns the answers to be generated for the prompts and conversations of `stream_batch`."""
        if not isinstance(prompts, list | tuple):
            raise RequestError(f"prompts is {show(prompts)}; it must be a list of prompts or conversations")
        return [answer for prompt in prompts for answer in self._streamed(prompt, chat, options)]

    def _with_deltas(self, prompt: Any, chat: ChatArguments, progress: bool, options: Options) -> tuple[Answer, ...]:
        """Returns the answers to be generated for the arguments of `start_deltas`."""
        answers = self._streamed(prompt, chat, options)
        for index, answer in enumerate(answers):
            answer.use_deltas(progress and index == 0)
        return answers

    def _beginnings(self, prompts: Any, tools: Any, salt: str, adapter: str | None) -> list[Answer]:
        """Returns answers without tokens, whose requests read the prompts of `warm`."""
        if not isinstance(prompts, list | tuple):
            raise RequestError(f"prompts is {show(prompts)}; it must be a list of prompts or conversations")
        options: Options = {"max_tokens": 0, "min_tokens": 0, "salt": salt, "adapter": adapter}
        answers: list[Answer] = []
        for prompt in prompts:
            chat = ChatArguments(tools, add_generation_prompt=False) if is_messages(prompt) else ChatArguments()
            answers += self._streamed(prompt, chat, options)
        return answers

    def _continuation_losses(
        self, context: Any, continuations: Any, adapter: str | None, exact: bool = True
    ) -> list[PromptLosses]:
        """Returns the results to be computed for the arguments of `score`; `exact` as in `PromptLosses`."""
        loaded = self._adapters.for_text(adapter)
        if not isinstance(continuations, list | tuple):
            raise RequestError(f"continuations is {show(continuations)}; it must be a list of texts or of token ids")
        results = []
        for index, continuation in enumerate(continuations):
            ids, known = self._join(context, continuation)
            if len(ids) == known:
                raise RequestError(
                    f"continuations[{index}] is {show(continuation)}, which adds no token to the context"
                )
            results.append(self._checked(PromptLosses(ids, known - 1, loaded, exact)))
        return results

    def _join(self, context: Any, continuation: Any) -> tuple[tuple[int, ...], int]:
        """Returns the ids of a context and its continuation, and the number of ids of the context."""
        first = self._encode(context)
        if not first:
            raise RequestError(
                "the context has no tokens, but the first token of a continuation must follow another one"
            )
        if not isinstance(continuation, str):
            return first + read_ids(continuation, "a continuation"), len(first)
        separate = tuple(self.tokenizer.encode(continuation, add_special_tokens=False))
        joined = tuple(self.tokenizer.encode(context + continuation)) if isinstance(context, str) else ()
        return join_ids(first, joined, separate)

    def _pooled(self, inputs: Any, pooling: Any, normalize: Any, adapter: str | None) -> list[PromptState]:
        """Returns the results to be computed for the arguments of `embed`."""
        if not isinstance(pooling, str) or pooling not in ("last", "mean"):
            raise RequestError(f"pooling is {show(pooling)}; it must be 'last' or 'mean'")
        if not isinstance(normalize, bool):
            raise RequestError(f"normalize is {show(normalize)}; it must be True or False")
        loaded = self._adapters.loaded(adapter)
        results = []
        for item in split_inputs(inputs):
            ids = self._encode(item)
            first = 0 if pooling == "mean" else max(0, len(ids) - 1)
            results.append(self._checked(PromptState(ids, first, normalize, loaded)))
        return results

    def _classified(self, inputs: Any, adapter: str | None) -> tuple[ClassificationHead, list[PromptState]]:
        """Returns the head of the adapter or the model, and the results to be computed for `classify`."""
        chosen, head = self._adapters.get(adapter), self._classification_head
        if chosen is not None and chosen.score is not None:
            head = ClassificationHead.of(chosen.config, chosen.score)
        if head is None:
            raise RequestError(
                f"the model has no classification head (its head: {self._head}); load a "
                "LlamaForSequenceClassification, or an adapter with a classification head, or use generate"
            )
        loaded = self._adapters.loaded(adapter)
        results = []
        for item in split_inputs(inputs):
            ids = self._encode(item)
            last = last_token(ids, self.config.pad_token_id)
            results.append(self._checked(PromptState(ids[: last + 1], max(0, last), adapter=loaded)))
        return head, results

    def _parts(self, token_ids: Sequence[int], adapter: str | None) -> Iterator[PromptLogits]:
        """Yields results that together have the logits after each token; each needs memory for a part of them."""
        ids, loaded = read_ids(token_ids), self._adapters.for_text(adapter)
        self._checked(PromptLogits(ids, adapter=loaded))
        # A part reads the keys and values of the tokens before it from the prefix cache.
        size = _PART_TOKENS if self._engine.pool.sharing else len(ids)
        for start in range(0, len(ids), size):
            yield PromptLogits(ids[: start + size], start, loaded)

    def _candidates(
        self,
        prompts: Iterable[tuple[int, ...]],
        continues_prompt: bool,
        options: Options,
        turn_end_ids: frozenset[int] = frozenset(),
        *,
        checks_text: bool = True,
    ) -> list[Candidates]:
        """Returns the answers to be generated for prompts; checks the prompts and the options.

        Args:
            checks_text: whether the text of an answer is checked too, if its grammar is not sufficient.
        """
        self._check_open()
        check_language_model(self._head)
        for note in [] if self._reported else generation_notes(self.generation_config):
            warnings.warn(f"{self.path}: {note}", stacklevel=4)
        self._reported = True
        stop_ids = self._stop_ids | turn_end_ids
        rule = self._rule(options)
        return [self._candidates_of(ids, stop_ids, continues_prompt, options, rule, checks_text) for ids in prompts]

    def _candidates_of(
        self,
        ids: tuple[int, ...],
        stop_ids: frozenset[int],
        continues_prompt: bool,
        options: Options,
        rule: AnswerRule | None,
        checks_text: bool,
    ) -> Candidates:
        """Returns the answers to be generated for one prompt."""
        adapter = self._adapters.for_text(options.get("adapter"))
        longest = self._engine.longest - (0 if adapter is None else adapter.virtual_tokens)
        settings = settings_of(options, self.generation_config, len(ids), longest)
        sampling, top = settings.sampling, settings.prompt_logprobs
        if (words := options.get("bad_words")) is not None:
            sampling = replace(sampling, bad_words_ids=(*sampling.bad_words_ids, *self._word_ids(words)))
        if settings.best_of is not None and sampling.logprobs is None:
            sampling = replace(sampling, logprobs=0)
        speculate = self.backend == "native" if settings.speculate is None else settings.speculate
        request = Request(
            ids, settings.max_tokens, sampling, stop_ids, prompt_logits=top is not None, speculate=speculate,
            adapter=adapter, salt=settings.salt, priority=settings.priority, explains_prefix=settings.explain_prefix,
            prediction=self._prediction(options),
            grammar=None if rule is None else rule.grammar(ids if continues_prompt else ()),
        )  # fmt: skip
        self._engine.check(request)
        stops = check_stops(settings.stop)
        rule = rule if checks_text else None
        if stops and rule is not None and not rule.checks_text:
            raise RequestError("stop strings cannot be combined with a grammar that contains special tokens")
        new_answer = functools.partial(
            Answer,
            tokenizer=self.tokenizer,
            stops=stops,
            continues_prompt=continues_prompt,
            rule=rule if rule is not None and (stops or rule.checks_all_answers) else None,
            include_stop=settings.include_stop_str_in_output,
            skip_special_tokens=settings.skip_special_tokens,
        )
        others = range(1, settings.n if settings.best_of is None else settings.best_of)
        return Candidates(
            (
                new_answer(request, prompt_logprobs=top),
                *(new_answer(replace(request, candidate=number, prompt_logits=False)) for number in others),
            ),
            settings.n,
            ranked=settings.best_of is not None,
            logprobs=settings.sampling.logprobs is not None,
            equal=sampling.temperature == 0,
        )

    def _prediction(self, options: Options) -> tuple[int, ...]:
        """Returns the tokens that the answer is expected to resemble."""
        prediction = options.get("prediction")
        if not isinstance(prediction, str):
            return () if prediction is None else read_ids(prediction, "prediction")
        return tuple(self.tokenizer.encode(prediction, add_special_tokens=False))

    def _word_ids(self, words: Any) -> list[tuple[int, ...]]:
        """Returns the ids of words: without a space before them and, if there are as many, with one, as in vLLM."""
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word.strip() for word in words):
            raise RequestError(f"bad_words is {show(words)}; it must be a list of texts that are not blank")
        result = []
        for word in words:
            plain, spaced = (
                tuple(self.tokenizer.encode(space + word.lstrip(), add_special_tokens=False)) for space in ("", " ")
            )
            if not plain:
                raise RequestError(f"bad_words contains {show(word)}, which has no tokens; remove it")
            result += [plain, spaced] if len(spaced) == len(plain) and spaced[0] != plain[0] else [plain]
        return result

    def _rule(self, options: Options) -> AnswerRule | None:
        """Returns the rule that the answer must follow; None if there is none."""
        rule = read_rule(options)
        return None if rule is None else self._compiler.compile(rule)

    @cached_property
    def _compiler(self) -> Compiler:
        try:
            from puna.grammars.compile import Compiler
        except ModuleNotFoundError as exc:
            if exc.name != "llguidance":
                raise
            raise MissingExtraError(
                "structured output needs llguidance; install it with: pip install 'puna[grammar]'"
            ) from exc
        return Compiler(self.tokenizer, self.config.vocab_size)
