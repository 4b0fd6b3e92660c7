"""Options of evaluation during training, of checkpoints, and of stopping."""

from __future__ import annotations

from dataclasses import dataclass

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Evaluation, samples, checkpoints and early stopping."""

    eval_data: tuple[str, ...] | str | None = option(None, "files with held-out data")
    eval_share: float = option(0.0, "share of the training data that is held out instead", at_least=0, below=1)
    eval_steps: int = option(0, "evaluate after every n steps; 0: only at the end", at_least=0)
    sample_prompts: tuple[str, ...] = option((), "prompts that the model continues before and after the training")
    sample_tokens: int = option(64, "tokens of each sample", at_least=1)
    save_steps: int = option(
        0, "save the state after every n steps; 0: only at the end and when interrupted", at_least=0
    )
    keep_last: int = option(2, "number of latest states to keep", at_least=1)
    keep_steps: int = option(0, "also keep every state whose step is a multiple of n; 0: none", at_least=0)
    best_metric: str = option("loss", "metric of the evaluation that selects the best state; lower is better for loss")
    keep_best: bool = option(False, "save the state with the best metric, and use its parameters for the result")
    patience: int = option(0, "stop after this number of evaluations without a better metric; 0: never", at_least=0)
