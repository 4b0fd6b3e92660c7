"""Constraints of beam search: tokens that a text must contain, with the classes and methods of transformers.

A constraint is an automaton. `update(token)` feeds it the tokens of a text one at a time until it is completed, and
`advance()` returns the tokens that bring it closer to completion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from puna.errors import RequestError, show

MAX_STEPS = 10_000
"""Number of tokens after which `Constraint.test` considers a constraint endless, as in transformers."""


class Constraint(ABC):
    """Base class of constraints. Feeding a constraint its own `advance()` must complete it.

    Attributes:
        seqlen: maximum number of tokens that complete the constraint; `ConstraintListState` reads it.
        completed: whether the constraint is completed.
    """

    seqlen: int
    completed: bool

    def __init__(self) -> None:
        self.test()

    def test(self) -> None:
        """Feeds the constraint its own `advance()` until it is completed.

        Raises:
            RequestError: if a token of `advance()` is not one of `does_advance`, or the constraint is not completed
                after 10,000 tokens, or steps remain after its completion.
        """
        completed = False
        for step in range(MAX_STEPS):
            if step == 1:
                self.reset()
            tokens = self.advance()
            token = tokens[0] if isinstance(tokens, list) else tokens
            if token is None or not self.does_advance(token):
                raise RequestError(
                    f"{type(self).__name__}.advance() returned {tokens!r}, for which does_advance() is false; "
                    "advance() must return tokens that bring the constraint closer to completion"
                )
            _, completed, _ = self.update(token)
            if completed:
                break
        if not completed:
            raise RequestError(f"{type(self).__name__} is not completed after {MAX_STEPS} tokens of its advance()")
        if self.remaining() != 0:
            raise RequestError(
                f"{type(self).__name__}.remaining() is {self.remaining()} after its completion; it must be 0"
            )

    @abstractmethod
    def advance(self) -> int | list[int] | None:
        """Returns the token, or the tokens, that bring the constraint closer to completion; None if there is none."""

    @abstractmethod
    def does_advance(self, token_id: int) -> bool:
        """Returns whether the token would bring the constraint closer to completion."""

    @abstractmethod
    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Feeds the constraint one token of the text.

        Returns:
            Whether the token advanced the constraint, whether it completed the constraint, and whether it undid the
            progress so far.
        """

    @abstractmethod
    def reset(self) -> None:
        """Removes all progress."""

    @abstractmethod
    def remaining(self) -> int:
        """Returns the number of tokens that are still needed."""

    @abstractmethod
    def copy(self, stateful: bool = False) -> Constraint:
        """Returns a constraint with the same arguments and, if `stateful`, the same progress."""


class PhrasalConstraint(Constraint):
    """Requires a phrase: tokens that follow each other.

    Args:
        token_ids: the ids of the phrase.

    Raises:
        RequestError: unless `token_ids` is a list of ids that is not empty.
    """

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = _check_ids("token_ids", token_ids)
        self.seqlen = len(token_ids)
        self.reset()

    def advance(self) -> int | None:
        """Returns the next token of the phrase."""
        return None if self.completed else self.token_ids[self.fulfilled_idx + 1]

    def does_advance(self, token_id: int) -> bool:
        """Returns whether the token is the next one of the phrase."""
        return _check_token(token_id) == self.advance()

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Feeds one token: the phrase advances, or starts again."""
        advances = self.does_advance(token_id)
        if advances:
            self.fulfilled_idx += 1
            self.completed = self.fulfilled_idx == self.seqlen - 1
        else:
            self.reset()
        return advances, self.completed, not advances

    def reset(self) -> None:
        """Returns to the start of the phrase. transformers then takes the first token for given, by mistake."""
        self.completed = False
        self.fulfilled_idx = -1  # index of the last token that was fed

    def remaining(self) -> int:
        """Returns the number of tokens that are still needed."""
        return self.seqlen - (self.fulfilled_idx + 1)

    def copy(self, stateful: bool = False) -> PhrasalConstraint:
        """Returns a constraint for the same phrase and, if `stateful`, with the same progress."""
        other = PhrasalConstraint(self.token_ids)
        if stateful:
            other.fulfilled_idx, other.completed = self.fulfilled_idx, self.completed
        return other


class DisjunctiveTrie:
    """A trie of phrases.

    Args:
        nested_token_ids: the phrases.
        no_subsets: refuse a phrase that another one starts with.

    Raises:
        RequestError: if a phrase is the start of another one and `no_subsets` is set.
    """

    def __init__(self, nested_token_ids: list[list[int]], no_subsets: bool = True) -> None:
        self.max_height = max(len(phrase) for phrase in nested_token_ids)
        self.trie: dict[int, Any] = {}
        for phrase in nested_token_ids:
            level = self.trie
            for token in phrase:
                level = level.setdefault(token, {})
        if no_subsets and self.has_subsets(self.trie, nested_token_ids):
            raise RequestError(
                f"one phrase of {nested_token_ids} is the start of another one; keep only the shorter of the two"
            )

    def next_tokens(self, current_seq: list[int]) -> list[int]:
        """Returns the tokens that follow `current_seq` in a phrase."""
        level = self.trie
        for token in current_seq:
            level = level[token]
        return list(level)

    def reached_leaf(self, current_seq: list[int]) -> bool:
        """Returns whether `current_seq` is a complete phrase."""
        return not self.next_tokens(current_seq)

    def count_leaves(self, root: dict[int, Any]) -> int:
        """Returns the number of phrases below a node."""
        return sum(self.count_leaves(child) for child in root.values()) if root else 1

    def has_subsets(self, trie: dict[int, Any], nested_token_ids: list[list[int]]) -> bool:
        """Returns whether a phrase is the start of another one, or equal to it."""
        return self.count_leaves(trie) != len(nested_token_ids)


class DisjunctiveConstraint(Constraint):
    """Requires one of several phrases.

    Args:
        nested_token_ids: the ids of the phrases, none of which may be the start of another one.

    Raises:
        RequestError: unless `nested_token_ids` is a list of such phrases.
    """

    def __init__(self, nested_token_ids: list[list[int]]) -> None:
        if not isinstance(nested_token_ids, list) or not nested_token_ids:
            raise RequestError(f"nested_token_ids is {nested_token_ids!r}; it must be a list of phrases, not empty")
        for phrase in nested_token_ids:
            _check_ids("a phrase of nested_token_ids", phrase, may_be_empty=True)
        self.trie = DisjunctiveTrie(nested_token_ids)
        self.token_ids = nested_token_ids
        self.seqlen = self.trie.max_height
        self.reset()

    def advance(self) -> list[int] | None:
        """Returns the tokens that continue the phrases in progress."""
        return self.trie.next_tokens(self.current_seq) or None

    def does_advance(self, token_id: int) -> bool:
        """Returns whether the token continues a phrase in progress."""
        return _check_token(token_id) in self.trie.next_tokens(self.current_seq)

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Feeds one token: a phrase advances, or all start again."""
        advances = self.does_advance(token_id)
        if advances:
            self.current_seq.append(token_id)
        else:
            self.reset()
        self.completed = self.trie.reached_leaf(self.current_seq)
        return advances, self.completed, not advances

    def reset(self) -> None:
        """Returns to the start of the phrases."""
        self.completed = False
        self.current_seq: list[int] = []

    def remaining(self) -> int:
        """Returns the number of tokens that the longest phrase still needs; 0 once one is completed."""
        return 0 if self.completed else self.seqlen - len(self.current_seq)

    def copy(self, stateful: bool = False) -> DisjunctiveConstraint:
        """Returns a constraint for the same phrases and, if `stateful`, with the same progress.

        The copy shares the list of tokens in progress, as in transformers. Of the continuations of one beam,
        constrained search therefore counts only the first as progress; a separate list would change its results.
        """
        other = DisjunctiveConstraint(self.token_ids)
        if stateful:
            other.current_seq, other.completed = self.current_seq, self.completed
        return other


def check_constraints(constraints: Any) -> None:
    """Raises RequestError unless the argument is a list of constraints that is not empty."""
    if not isinstance(constraints, list | tuple) or not constraints:
        raise RequestError(f"constraints is {show(constraints)}; it must be a list with at least one Constraint")
    if wrong := [item for item in constraints if not hasattr(item, "does_advance")]:
        raise RequestError(
            f"constraints has {show(wrong[0])}; each item must be a Constraint, such as PhrasalConstraint"
        )


class ConstraintListState:
    """The progress of one text through a list of constraints, of which one is in progress at a time.

    Args:
        constraints: the constraints; they are copied.
    """

    def __init__(self, constraints: list[Constraint]) -> None:
        check_constraints(constraints)
        self.constraints = constraints
        self.max_seqlen = max(constraint.seqlen for constraint in constraints)
        self.n_constraints = len(constraints)
        self.completed = False
        self.init_state()

    def init_state(self) -> None:
        """Makes all constraints pending."""
        self.complete_constraints: list[Constraint] = []
        self.inprogress_constraint: Constraint | None = None
        self.pending_constraints = [constraint.copy(stateful=False) for constraint in self.constraints]

    def get_bank(self) -> int:
        """Returns the measure of progress by which constrained search groups its beams."""
        bank = len(self.complete_constraints) * self.max_seqlen
        if self.inprogress_constraint is not None:
            bank += self.max_seqlen - self.inprogress_constraint.remaining()
        return bank

    def advance(self) -> list[int] | None:
        """Returns the tokens that advance the constraint in progress or, if there is none, a pending one."""
        active = self.pending_constraints if self.inprogress_constraint is None else [self.inprogress_constraint]
        tokens: list[int] = []
        for constraint in active:
            advance = constraint.advance()
            if advance is not None:
                tokens += advance if isinstance(advance, list) else [advance]
        return tokens or None

    def reset(self, token_ids: list[int] | None) -> None:
        """Starts again and feeds the tokens of a text until all constraints are completed."""
        self.init_state()
        for token in token_ids or ():
            self.add(token)
            if self.completed:
                break

    def add(self, token_id: int) -> tuple[bool, bool]:
        """Feeds one token.

        Returns:
            Whether the token completed a constraint, and whether it advanced one.
        """
        _check_token(token_id)
        if self.completed:
            return True, False
        if self.inprogress_constraint is not None:
            return self._continue(self.inprogress_constraint, token_id)
        for index, constraint in enumerate(self.pending_constraints):
            if constraint.does_advance(token_id):
                return self._start(index, constraint, token_id)
        return False, False

    def _continue(self, constraint: Constraint, token: int) -> tuple[bool, bool]:
        stepped, complete, reset = constraint.update(token)
        if reset:
            self.pending_constraints.append(constraint.copy(stateful=False))
            self.inprogress_constraint = None
        if complete:
            self.complete_constraints.append(constraint)
            self.inprogress_constraint = None
            self.completed = self.completed or not self.pending_constraints
        return complete, stepped

    def _start(self, index: int, constraint: Constraint, token: int) -> tuple[bool, bool]:
        stepped, complete, _ = constraint.update(token)
        if not stepped:
            raise RequestError(
                f"{type(constraint).__name__}.update({token}) reports no progress, but does_advance({token}) is true"
            )
        if complete:
            self.complete_constraints.append(constraint)
        else:
            self.inprogress_constraint = constraint
        self.pending_constraints = self.pending_constraints[:index] + self.pending_constraints[index + 1 :]
        self.completed = self.completed or (not self.pending_constraints and self.inprogress_constraint is None)
        return complete, stepped

    def copy(self, stateful: bool = True) -> ConstraintListState:
        """Returns a list of the same constraints and, if `stateful`, with the same progress."""
        other = ConstraintListState(self.constraints)
        if stateful:
            other.complete_constraints = [constraint.copy(stateful=True) for constraint in self.complete_constraints]
            if self.inprogress_constraint is not None:
                other.inprogress_constraint = self.inprogress_constraint.copy(stateful=True)
            other.pending_constraints = [constraint.copy() for constraint in self.pending_constraints]
        return other


def forced_words(words: Any) -> list[Constraint]:
    """Returns the constraints of `force_words_ids`: a phrase for a list of ids, one of several for a list of lists.

    Raises:
        RequestError: unless `words` is a list of phrases or of lists of phrases, not empty.
    """
    if not isinstance(words, list) or not words or not all(isinstance(word, list) and word for word in words):
        raise RequestError(
            f"force_words_ids is {words!r}; it must be a list of phrases (lists of ids) or of lists of phrases, "
            "none of which is empty"
        )
    return [DisjunctiveConstraint(word) if isinstance(word[0], list) else PhrasalConstraint(word) for word in words]


def _check_ids(name: str, ids: Any, may_be_empty: bool = False) -> list[int]:
    valid = isinstance(ids, list) and all(isinstance(token, int) and token >= 0 for token in ids)
    if not valid or not (ids or may_be_empty):
        raise RequestError(f"{name} is {ids!r}; it must be a list of token ids (integers from 0)")
    return list(ids)


def _check_token(token: Any) -> int:
    if not isinstance(token, int):
        raise RequestError(f"a token id must be an int, but {token!r} is of type {type(token).__name__}")
    return token
