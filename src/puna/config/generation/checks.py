"""Checks of the relations between the fields of `GenerationConfig`: errors, and settings that have no effect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from puna.config.generation.fields import CALL_ARGUMENTS, DEFAULTS, check_sampling, id_list
from puna.errors import ConfigError, show

_SAMPLING_ONLY = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
_BEAMS_ONLY = ("early_stopping", "num_beam_groups", "diversity_penalty", "length_penalty")
_DICT_ONLY = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def check_relations(fields: Mapping[str, Any]) -> None:
    """Raises ConfigError if fields contradict each other, or an argument of `generate()` is among them.

    Values that only sampling uses may be out of range if `do_sample` is not True: `minor_issues` reports them.
    """
    if fields["do_sample"]:
        for name in _SAMPLING_ONLY:
            check_sampling(name, fields[name])
    for name in CALL_ARGUMENTS:
        if name in fields:
            raise ConfigError(f"Argument {name} is not a setting; pass it to generate() directly")
    beams, groups = fields["num_beams"] or 1, fields["num_beam_groups"] or 1
    if beams > 1:
        _check_groups(fields, beams, groups)
    copies = fields["num_return_sequences"] or 1
    if copies > 1 and beams == 1 and not fields["do_sample"]:
        raise ConfigError(
            f"num_return_sequences is {copies}, but without sampling or beams all texts would be equal; set "
            "do_sample=True and a temperature above 0, or num_beams"
        )
    if 1 < beams < copies:
        raise ConfigError(f"num_return_sequences is {copies}; it must be smaller or equal to num_beams, {beams}")
    suppressed = set(id_list(fields["suppress_tokens"]))
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = set(id_list(fields[name]))
        if forced and forced <= suppressed:
            raise ConfigError(f"{name} is {show(fields[name])}, but suppress_tokens forbids it; remove it from one")


def _check_groups(fields: Mapping[str, Any], beams: int, groups: int) -> None:
    sampled, penalty = bool(fields["do_sample"]), fields["diversity_penalty"] or 0.0
    constrained = fields["constraints"] is not None or fields["force_words_ids"] is not None
    if fields["constraints"] is not None and sampled:
        raise ConfigError("constraints need do_sample=False, but do_sample is True")
    if constrained and groups > 1:
        raise ConfigError(f"constraints and force_words_ids need num_beam_groups=1, but it is {groups}")
    if groups == 1 and penalty == 0.0:
        return
    if sampled:
        raise ConfigError("diversity_penalty and num_beam_groups need do_sample=False, but do_sample is True")
    if beams % groups:
        raise ConfigError(f"num_beams is {beams}; it should be divisible by num_beam_groups, {groups}")
    if penalty == 0.0:
        raise ConfigError(
            f"num_beam_groups is {groups} and diversity_penalty 0; it should be greater than 0, or all groups are equal"
        )


def minor_issues(fields: Mapping[str, Any], assigned: Collection[str] | None = None) -> dict[str, str]:
    """Returns a message for each field that has no effect because of another field.

    Args:
        fields: all fields.
        assigned: only issues of these fields are returned; None for all.
    """
    changed = {
        name: fields[name]
        for name in (*_SAMPLING_ONLY, *_BEAMS_ONLY, *_DICT_ONLY)
        if fields[name] is not None and fields[name] != DEFAULTS[name] and (assigned is None or name in assigned)
    }
    issues = {}
    contrastive = fields["penalty_alpha"] is not None
    if not fields["do_sample"]:
        for name in _SAMPLING_ONLY:
            if name in changed and not (name == "top_k" and contrastive):
                issues[name] = (
                    f"do_sample is not True, but {name} is {show(changed[name])}, which only sampling uses; set "
                    f"do_sample=True or remove {name}"
                )
    elif fields["force_words_ids"] is not None and (assigned is None or "do_sample" in assigned):
        issues["do_sample"] = (
            "do_sample is True, but force_words_ids selects a beam search that draws no tokens; remove do_sample"
        )
    if (fields["num_beams"] or 1) == 1:
        for name in _BEAMS_ONLY:
            if name in changed:
                issues[name] = (
                    f"num_beams is 1, but {name} is {show(changed[name])}, which only beam search uses; set num_beams "
                    f"above 1 or remove {name}"
                )
    if not fields["return_dict_in_generate"]:
        for name in _DICT_ONLY:
            if name in changed:
                issues[name] = f"{name} has no effect, because return_dict_in_generate is not True"
    return issues
