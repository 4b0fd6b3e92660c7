"""`Compiler`: compiles the rules of answers for one vocabulary. `AnswerRule`: a compiled rule."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from puna.engine.grammar import Grammar, GrammarState, Masks, Matcher
from puna.errors import RuleError
from puna.grammars.check import check_rule
from puna.grammars.keywords import with_keyword
from puna.grammars.library import byte_tokenizer, make_matcher
from puna.grammars.rules import Rule, unique_keys
from puna.grammars.vocabulary import Vocabulary
from puna.lazy import cached_property

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast

_CACHED_RULES = 64
"""Number of compiled rules that are kept for later requests."""


class Compiler:
    """Compiles rules for one vocabulary.

    Args:
        vocab_size: the model's number of logits.
    """

    def __init__(self, tokenizer: LlamaTokenizer | LlamaTokenizerFast, vocab_size: int) -> None:
        self._vocabulary = Vocabulary(tokenizer, vocab_size)
        self._rules: OrderedDict[Rule, AnswerRule] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, rule: Rule) -> AnswerRule:
        """Returns a compiled rule.

        Raises:
            RuleError: the rule is invalid, not supported, or too large.
        """
        with self._lock:
            compiled = self._rules.pop(rule, None)
        if compiled is None:
            check_rule(rule.kind, rule.grammar, self._vocabulary.special)
            compiled = AnswerRule(rule, self._vocabulary)
        with self._lock:
            self._rules[rule] = compiled
            if len(self._rules) > _CACHED_RULES:
                self._rules.popitem(last=False)
        return compiled


class AnswerRule:
    """A compiled rule.

    Args:
        rule: a rule that `check_rule` accepts.
        vocabulary: the tokens of the answers.
    """

    def __init__(self, rule: Rule, vocabulary: Vocabulary) -> None:
        self._rule = rule
        self._vocabulary = vocabulary
        self._matcher = self._new_matcher()
        # A grammar may contain special tokens, which cannot be recognised in a text: there is then no matcher of bytes.
        matcher, error = make_matcher(rule.grammar, byte_tokenizer())
        self._byte_matcher: Matcher | None = None if error else matcher

    def grammar(self, prompt_ids: Sequence[int]) -> Grammar:
        """Returns the grammar of an answer.

        Args:
            prompt_ids: the prompt that the text of the answer continues, or nothing for a chat answer.

        Raises:
            RuleError: no token of the vocabulary can begin the answer.
        """
        return self._after_space if self._vocabulary.removes_space(prompt_ids) else self._plain

    @cached_property
    def _plain(self) -> Grammar:
        return self._check_start(Grammar(((self._matcher, None),), self._vocabulary.size))

    @cached_property
    def _after_space(self) -> Grammar:
        spaced = self._new_matcher(after_space=True)
        without_space, unchanged = self._vocabulary.first_tokens
        return self._check_start(Grammar(((spaced, without_space), (self._matcher, unchanged)), self._vocabulary.size))

    @property
    def checks_text(self) -> bool:
        """Whether `matches` can check a text."""
        return self._byte_matcher is not None

    @property
    def checks_all_answers(self) -> bool:
        """Whether `matches` is useful for an answer that no stop string has truncated.

        The tokens of every answer are checked when they are chosen. The second check finds repeated keys of JSON. For
        an ambiguous grammar, its time increases fast: 0.3 s for 300 bytes, 4.7 s for 600.
        """
        return self._rule.kind != "grammar"

    def matches(self, text: str) -> bool:
        """Returns whether a text follows the rule. Objects in JSON must not repeat a key."""
        if self._byte_matcher is None:
            return True
        try:
            if self._rule.kind == "json_schema":
                json.loads(text, object_pairs_hook=unique_keys)
            matcher = self._byte_matcher.deep_copy()
            return all(map(matcher.consume_token, text.encode())) and matcher.is_accepting()
        except (ValueError, RecursionError):
            return False

    def _new_matcher(self, after_space: bool = False) -> Matcher:
        matcher, error = make_matcher(self._rule.grammar, self._vocabulary.library, after_space)
        if error is not None:
            if self._rule.kind == "json_schema":
                error = with_keyword(error, self._rule.text)
            raise RuleError(f"{self._rule.kind} cannot be used: {error}")
        return matcher

    def _check_start(self, grammar: Grammar) -> Grammar:
        state = GrammarState(grammar, np.zeros(-(-(grammar.size - 1) // 32), np.uint32))
        Masks().compute([state])
        if not (state.allowed.any() or state.accepts):
            raise RuleError(
                f"{self._rule.kind} cannot be used: no token of the model's vocabulary can begin such an answer"
            )
        return grammar
