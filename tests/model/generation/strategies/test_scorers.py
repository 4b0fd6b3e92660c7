"""Beam scorers on small hand-made steps. The recorded texts of transformers test them in complete searches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from puna import (
    BeamHypotheses,
    BeamScorer,
    BeamSearchScorer,
    ConstrainedBeamSearchScorer,
    DisjunctiveConstraint,
    PhrasalConstraint,
)
from puna.errors import PunaError

IDS = torch.tensor([[1, 10], [1, 11], [1, 20], [1, 21]])  # two prompts with two beams each
END, PAD = 9, 0


def step(scorer: Any, tokens: list[list[int]], scores: list[list[float]], beams: list[list[int]], **more: Any) -> Any:
    """Returns the lists of the next scores, tokens and rows."""
    values = torch.tensor(scores), torch.tensor(tokens), torch.tensor(beams)
    result = scorer.process(IDS, *values, pad_token_id=PAD, eos_token_id=END, **more)
    return [result[f"next_beam_{name}"].tolist() for name in ("scores", "tokens", "indices")]


def test_hypotheses_keep_the_best_texts() -> None:
    finished = BeamHypotheses(2, length_penalty=2.0, early_stopping=False)
    for score in (-8.0, -4.0, -6.0, -9.0):
        finished.add(torch.tensor([1, 2]), score, beam_indices=[3])
    assert sorted(score for score, _, _ in finished.beams) == [-1.5, -1.0]  # -6 / 2**2, -4 / 2**2
    assert (len(finished), finished.worst_score) == (2, -1.5)
    finished.add(torch.tensor([1, 2]), -2.0, generated_len=1)  # -2 / 1**2 is worse
    assert finished.worst_score == -1.5


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "best", "done"),
    [
        (True, 1.0, -0.1, True),
        (False, 1.0, -7.9, False),  # -7.9 / 4 > -2
        (False, 1.0, -8.0, True),
        ("never", 1.0, -19.0, False),  # the longest text would have -19 / 10
        ("never", 1.0, -20.0, True),
        ("never", -1.0, -0.4, False),  # the shortest text would have -0.4 * 4
        ("never", -1.0, -0.6, True),
    ],
)
def test_early_stopping_decides_when_a_prompt_is_done(
    early_stopping: bool | str, length_penalty: float, best: float, done: bool
) -> None:
    finished = BeamHypotheses(1, length_penalty, early_stopping, max_length=10)
    assert not finished.is_done(-100.0, 4)
    finished.beams, finished.worst_score = [(-2.0, IDS[0], None)], -2.0
    assert finished.is_done(best, 4) is done


def test_the_best_continuations_run_on_and_those_that_end_are_kept() -> None:
    scorer = BeamSearchScorer(2, 2, "cpu")
    assert isinstance(scorer, BeamScorer)
    result = step(
        scorer,
        [[END, 30, 31, END], [40, 41, END, 42]],
        [[-1.0, -2.0, -3.0, -4.0], [-1.5, -2.5, -3.5, -4.5]],
        [[1, 0, 1, 0], [0, 0, 1, 1]],
        beam_indices=[(0,), (1,), (2,), (3,)],
    )
    assert result == [[-2.0, -3.0, -1.5, -2.5], [30, 31, 40, 41], [0, 1, 2, 2]]
    kept = scorer._beam_hyps[0].beams
    assert [(score, ids.tolist(), parents) for score, ids, parents in kept] == [(-0.5, [1, 11], (1, 1))]
    assert scorer._beam_hyps[1].beams == []  # its end token was not among the two best
    assert not scorer.is_done


def test_finished_prompts_are_padded_and_texts_have_one_end_token() -> None:
    scorer = BeamSearchScorer(2, 2, "cpu", do_early_stopping=True, num_beam_hyps_to_keep=2)
    tokens, scores = [[END, END, 32, 33], [40, 41, 42, 43]], [[-1.0, -2.0, -3.0, -4.0]] * 2
    step(scorer, tokens, scores, [[0, 1, 0, 1], [0, 1, 0, 1]])
    assert scorer._done.tolist() == [True, False]
    result = step(scorer, tokens, scores, [[0, 1, 0, 1]] * 2)
    assert result == [[0.0, 0.0, -1.0, -2.0], [PAD, PAD, 40, 41], [0, 0, 2, 3]]
    longer = torch.cat((IDS, torch.tensor([[0], [0], [40], [41]])), dim=1)
    final = scorer.finalize(
        longer, torch.tensor([0.0, 0.0, -1.0, -2.0]), longer, longer, max_length=4, pad_token_id=PAD, eos_token_id=END
    )
    assert final["sequences"].tolist() == [[1, 10, END, PAD], [1, 11, END, PAD], [1, 20, 40, END], [1, 21, 41, END]]
    torch.testing.assert_close(final["sequence_scores"], torch.tensor([-1 / 2, -2 / 2, -1 / 3, -2 / 3]))
    assert final["beam_indices"] is None


def test_groups_of_a_prompt_compete_for_the_result() -> None:
    scorer = BeamSearchScorer(1, 4, "cpu", num_beam_groups=2, num_beam_hyps_to_keep=3)
    assert (scorer.group_size, len(scorer._beam_hyps)) == (2, 2)
    for group in range(2):
        ids, history = IDS[2 * group : 2 * group + 2], [(2 * group,), (2 * group + 1,)]
        values = torch.tensor([[-1.0, -2, -3, -4]]), torch.tensor([[30, END, 31, 32]]), torch.tensor([[0, 1, 1, 0]])
        scorer.process(ids, *values, eos_token_id=END, beam_indices=history, group_index=group)
    assert [hypotheses.beams[0][2] for hypotheses in scorer._beam_hyps] == [(1, 1), (3, 3)]
    final = scorer.finalize(IDS, torch.tensor([-8.0, -3, -1, -9]), IDS, IDS, None, PAD, END)
    assert final["sequences"].tolist() == [[1, 20, END], [1, 21, END], [1, 11, END]]  # of equal scores, the last one


def test_steps_that_cannot_continue_are_refused() -> None:
    scorer = BeamSearchScorer(2, 2, "cpu", do_early_stopping=True)
    with pytest.raises(PunaError, match="only 1 of 4 continuations do not end"):
        step(scorer, [[END, END, END, 3]] * 2, [[-1.0, -2, -3, -4]] * 2, [[0, 0, 1, 1]] * 2)
    with pytest.raises(PunaError, match="4 rows; the scorer expects 3 beams for each of 2"):
        step(BeamSearchScorer(2, 3, "cpu"), [[1]] * 2, [[-1.0]] * 2, [[0]] * 2)
    values = torch.tensor([[-1.0, -2, -3, -4]] * 2), torch.tensor([[END, END, 3, 4], [3, 4, 5, 6]])
    scorer = BeamSearchScorer(2, 2, "cpu", do_early_stopping=True)
    scorer.process(IDS, *values, torch.tensor([[0, 1, 0, 1]] * 2), eos_token_id=END)
    with pytest.raises(PunaError, match="give eos_token_id and pad_token_id"):
        scorer.process(IDS, *values, torch.tensor([[0, 1, 0, 1]] * 2), eos_token_id=END)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 1}, "num_beams is 1"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups is 3"),
        ({"num_beams": 2, "do_early_stopping": "never"}, "needs max_length"),
    ],
)
def test_arguments_of_a_scorer_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PunaError, match=message):
        BeamSearchScorer(batch_size=1, device="cpu", **arguments)


def test_constrained_beams_are_the_best_of_each_level_of_progress() -> None:
    scorer = ConstrainedBeamSearchScorer(2, 2, [PhrasalConstraint([5, 6]), DisjunctiveConstraint([[20], [7]])], "cpu")
    vocab_scores = -torch.arange(50.0).expand(4, 50)
    result = step(
        scorer,
        [[30, 31, 32, 33], [40, 41, 42, 43]],
        [[-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, -4.0]],
        [[0, 1, 1, 1], [0, 1, 0, 1]],
        scores_for_all_vocab=vocab_scores,
    )
    # First prompt: 7 completes a constraint (bank 2), 5 starts one (bank 1), 30 does not advance (bank 0).
    # Second prompt: the first beam contains 20, so its 5 is in bank 3, and 40 and 7 in bank 2.
    assert result == [[-7.0, -5.0, -5.0, -1.0], [7, 5, 5, 40], [0, 0, 2, 2]]


def test_a_text_may_end_only_if_it_satisfies_the_constraints() -> None:
    scorer = ConstrainedBeamSearchScorer(2, 2, [PhrasalConstraint([20])], "cpu", num_beam_hyps_to_keep=1)
    vocab_scores = torch.full((4, 50), -50.0)
    step(
        scorer,
        [[END, 30, 31, 32], [END, 40, 41, 42]],
        [[-1.0, -2.0, -3.0, -4.0]] * 2,
        [[0, 0, 1, 1]] * 2,
        scores_for_all_vocab=vocab_scores,
    )
    assert [len(finished) for finished in scorer._beam_hyps] == [0, 1]
    final = scorer.finalize(IDS, torch.tensor([-3.0, -1, -9, -1]), IDS, IDS, None, PAD, END)
    # No beam of the first prompt satisfies the constraint, so the best one is returned.
    assert final["sequences"].tolist() == [[1, 11, END], [1, 20, END]]
    assert scorer.check_completes_constraints([3, 20]) and not scorer.check_completes_constraints([3, 21])


def test_a_constrained_step_can_push_beams_that_satisfy_the_constraints() -> None:
    scorer = ConstrainedBeamSearchScorer(1, 2, [PhrasalConstraint([20])], "cpu")
    ids = torch.tensor([[1, 20], [1, 21]])
    scores = torch.zeros(2, 50).sub(5.0)
    scores[0, 33] = -4.0
    arguments = 0, ids, scores, torch.tensor([-1.0, -2.0]), torch.tensor([30, 31]), torch.tensor([1, 1])
    assert scorer.step_sentence_constraint(*arguments)[1].tolist() == [20, 30]
    pushed = scorer.step_sentence_constraint(*arguments, push_progress=True)
    assert [part.tolist() for part in pushed] == [[-4.0, -1.0], [33, 30], [0, 1]]


def test_arguments_of_a_constrained_scorer_are_checked() -> None:
    with pytest.raises(PunaError, match="num_beam_groups is 2"):
        ConstrainedBeamSearchScorer(1, 2, [PhrasalConstraint([3])], "cpu", num_beam_groups=2)
    scorer = ConstrainedBeamSearchScorer(2, 2, [PhrasalConstraint([3])], "cpu")
    with pytest.raises(PunaError, match="scores_for_all_vocab is missing"):
        step(scorer, [[30, 31, 32, 33]] * 2, [[-1.0, -2, -3, -4]] * 2, [[0, 0, 1, 1]] * 2)
