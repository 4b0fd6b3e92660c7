"""Constraints of beam search: their progress, token by token, and how a list of them combines."""

from __future__ import annotations

import pytest

from puna import Constraint, ConstraintListState, DisjunctiveConstraint, PhrasalConstraint
from puna.errors import PunaError
from puna.model.generation.strategies.constraints import forced_words


class Repeated(Constraint):
    """A constraint of a user's own: one token, several times, in any place."""

    def __init__(self, token: int, count: int, offered: int | None = None) -> None:
        self.token, self.seqlen, self.offered = token, count, token if offered is None else offered
        self.reset()
        super().__init__()

    def advance(self) -> int | list[int] | None:
        return None if self.completed else [self.offered]

    def does_advance(self, token_id: int) -> bool:
        return not self.completed and token_id == self.token

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        advances = self.does_advance(token_id)
        self.count += advances
        self.completed = self.count == self.seqlen
        return advances, self.completed, False

    def reset(self) -> None:
        self.count, self.completed = 0, False

    def remaining(self) -> int:
        return self.seqlen - self.count

    def copy(self, stateful: bool = False) -> Repeated:
        other = Repeated(self.token, self.seqlen)
        other.reset()
        if stateful:
            other.count, other.completed = self.count, self.completed
        return other


def test_a_phrase_advances_token_by_token_and_starts_again_after_another_token() -> None:
    phrase = PhrasalConstraint([4, 5, 6])
    assert (phrase.seqlen, phrase.advance(), phrase.remaining()) == (3, 4, 3)
    assert phrase.update(4) == (True, False, False)
    assert (phrase.advance(), phrase.remaining(), phrase.completed) == (5, 2, False)
    assert phrase.update(6) == (False, False, True)
    assert (phrase.advance(), phrase.remaining()) == (4, 3)
    assert [phrase.update(token) for token in (4, 5)] == [(True, False, False)] * 2
    partial = phrase.copy(stateful=True)
    assert phrase.update(6) == (True, True, False)
    assert (phrase.completed, phrase.advance(), phrase.remaining(), phrase.does_advance(4)) == (True, None, 0, False)
    assert (partial.remaining(), partial.completed, phrase.copy().remaining()) == (1, False, 3)


def test_one_of_several_phrases_is_enough() -> None:
    constraint = DisjunctiveConstraint([[1, 2, 3], [1, 2, 4, 5], [7]])
    assert (constraint.seqlen, constraint.advance()) == (4, [1, 7])
    assert [constraint.update(token) for token in (1, 2)] == [(True, False, False)] * 2
    assert (constraint.advance(), constraint.remaining()) == ([3, 4], 2)
    assert constraint.update(9) == (False, False, True)
    assert (constraint.current_seq, constraint.remaining()) == ([], 4)
    assert constraint.update(7) == (True, True, False)
    assert (constraint.advance(), constraint.remaining(), constraint.completed) == (None, 0, True)
    copy = constraint.copy(stateful=True)
    assert (copy.completed, copy.current_seq, constraint.copy().completed) == (True, [7], False)


@pytest.mark.parametrize("value", [[], "ab", [1, -2], [1.5], [[1]], (1, 2)])
def test_a_phrase_must_be_a_list_of_ids(value: object) -> None:
    with pytest.raises(PunaError, match="token_ids"):
        PhrasalConstraint(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[], [1, 2], [[1], (2,)], [[1], [-2]]])
def test_alternatives_must_be_a_list_of_phrases(value: object) -> None:
    with pytest.raises(PunaError, match="nested_token_ids"):
        DisjunctiveConstraint(value)  # type: ignore[arg-type]


def test_no_alternative_may_be_the_start_of_another_one() -> None:
    with pytest.raises(PunaError, match=r"\[\[1, 2\], \[1, 2, 3\]\]"):
        DisjunctiveConstraint([[1, 2], [1, 2, 3]])


@pytest.mark.parametrize("constraint", [PhrasalConstraint([1]), DisjunctiveConstraint([[1]])])
def test_tokens_must_be_integers(constraint: Constraint) -> None:
    with pytest.raises(PunaError, match="'1' is of type str"):
        constraint.update("1")  # type: ignore[arg-type]


def test_a_list_finishes_one_constraint_before_it_starts_another() -> None:
    state = ConstraintListState([PhrasalConstraint([1, 2]), DisjunctiveConstraint([[3, 4, 5], [6]])])
    assert (state.n_constraints, state.max_seqlen, state.advance(), state.get_bank()) == (2, 3, [1, 3, 6], 0)
    assert state.add(3) == (False, True)
    assert (state.advance(), state.get_bank()) == ([4], 1)  # 1 is not offered while the phrase is in progress
    copied = state.copy()
    assert state.add(9) == (False, False)
    assert (state.advance(), state.get_bank(), copied.get_bank()) == ([1, 3, 6], 0, 1)
    assert state.add(6) == (True, True)
    assert (state.advance(), state.get_bank(), state.completed) == ([1], 3, False)
    state.reset([9, 1, 2, 8, 3, 4, 5])
    assert (state.completed, state.get_bank(), state.advance(), state.add(7)) == (True, 6, None, (True, False))
    state.reset(None)
    assert (state.completed, state.get_bank()) == (True, 0)  # as in transformers, `completed` is not undone


def test_a_constraint_of_ones_own_works_in_a_list() -> None:
    state = ConstraintListState([Repeated(5, 2), PhrasalConstraint([1, 2])])
    state.reset([5, 9, 5, 1, 2])
    assert state.completed and state.get_bank() == 4


def test_a_constraint_that_cannot_be_completed_is_refused() -> None:
    with pytest.raises(PunaError, match=r"advance\(\) returned \[6\]"):
        Repeated(5, 2, offered=6)
    with pytest.raises(PunaError, match="not completed after 10000"):
        Repeated(5, 20_000)


def test_forced_words_are_phrases_or_alternatives() -> None:
    phrase, one_of = forced_words([[1, 2], [[3], [4, 5]]])
    assert isinstance(phrase, PhrasalConstraint) and phrase.token_ids == [1, 2]
    assert isinstance(one_of, DisjunctiveConstraint) and one_of.token_ids == [[3], [4, 5]]
    for value in ([], [1, 2], [[]], "ab", [[-1]], [[[1], 2]]):
        with pytest.raises(PunaError, match=r"force_words_ids|token_ids"):
            forced_words(value)
