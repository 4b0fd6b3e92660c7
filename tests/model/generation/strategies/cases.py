"""Random calls of `generate()` for each decoding strategy, and the environments of other releases that run them."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna import Constraint, DisjunctiveConstraint, LlamaConfig, LlamaForCausalLM, PhrasalConstraint
from puna.model.generation.outputs import GenerateOutput
from tests.golden.files import LAYOUTS
from tests.helpers.configurations import SIZES, config_of
from tests.helpers.reference_models import pair, ragged

ROOT = Path(__file__).parents[4]
LENT = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "isympy.py")
"""Modules of PyTorch that the environments of other releases use from this environment."""

MODELS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 2, "rope_theta": 500000.0},
    {"num_key_value_heads": 1, "tie_word_embeddings": True},
    {"attention_bias": True, "num_hidden_layers": 3},
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "hidden_act": "gelu_new"},
    {"num_hidden_layers": 4, "initializer_range": 0.12},
]
"""Configurations that transformers 4.34 has."""


def _pick(rng: random.Random, **choices: list[Any]) -> dict[str, Any]:
    """Returns a random value for each name; a name whose value is None is left out."""
    chosen = {name: rng.choice(values) for name, values in choices.items()}
    return {name: value for name, value in chosen.items() if value is not None}


def _common(rng: random.Random) -> dict[str, Any]:
    ends: list[Any] = [2, list(range(2, 9)), list(range(10, 40)), [5, 6, 7]]
    limit = rng.choice([1, 5, 12, 20])
    return _pick(
        rng,
        max_new_tokens=[limit],
        eos_token_id=ends,
        pad_token_id=[0, 3],
        repetition_penalty=[None, None, 1.3],
        no_repeat_ngram_size=[None, None, 2],
        min_new_tokens=[None, None, min(limit, 3)],
    )


def _beams(rng: random.Random) -> dict[str, Any]:
    beams = rng.choice([2, 3, 5])
    return _pick(
        rng,
        num_beams=[beams],
        length_penalty=[None, 0.0, 0.7, 2.0, -1.0],
        early_stopping=[None, True, False, "never"],
        num_return_sequences=[None, beams],
    )


def beam_search(rng: random.Random) -> dict[str, Any]:
    """Options of a beam search."""
    return {**_common(rng), **_beams(rng)}


def beam_sample(rng: random.Random) -> dict[str, Any]:
    """Options of beam sampling."""
    options = {**_common(rng), **_beams(rng), "do_sample": True}
    return {**options, **_pick(rng, temperature=[None, 0.7, 1.6], top_k=[0, 8, 30], top_p=[None, 0.8])}


def diverse(rng: random.Random) -> dict[str, Any]:
    """Options of a diverse beam search."""
    beams, groups = rng.choice([(4, 2), (6, 3), (3, 3), (6, 2)])
    options = {**_common(rng), **_beams(rng), "num_beams": beams, "num_beam_groups": groups}
    if "num_return_sequences" in options:
        options["num_return_sequences"] = rng.choice([2, beams])
    return {**options, "diversity_penalty": rng.choice([0.3, 1.0, 4.0])}


def constrained(rng: random.Random) -> dict[str, Any]:
    """Options of a constrained beam search."""
    tokens = rng.sample(range(41, 67), 8)
    choices: list[dict[str, Any]] = [
        {"force_words_ids": [tokens[:1]]},
        {"force_words_ids": [tokens[:2], tokens[2:3]]},
        {"force_words_ids": [[tokens[:2], tokens[2:3], tokens[3:6]]]},
        {"force_words_ids": [[tokens[:2], [tokens[0], tokens[3]]]]},
        {"constraints": [{"phrase": tokens[:3]}]},
        {"constraints": [{"any": [tokens[:1], tokens[1:3]]}, {"phrase": tokens[5:7]}]},
    ]
    return {**_common(rng), **_beams(rng), "num_beams": rng.choice([2, 4, 6]), **rng.choice(choices)} | {
        "num_return_sequences": rng.choice([1, 2])
    }


def contrastive(rng: random.Random) -> dict[str, Any]:
    """Options of a contrastive search."""
    return {**_common(rng), **_pick(rng, penalty_alpha=[0.2, 0.6, 0.9], top_k=[2, 4, 9])}


def assisted(rng: random.Random) -> dict[str, Any]:
    """Options of assisted generation.

    When tokens are drawn, the temperature is 1, because transformers divides an assistant's logits by it twice. The
    padding token is an end token, because transformers masks padding tokens that the assistant drew.
    """
    sampling = {"do_sample": True, "top_k": rng.choice([0, 10])}
    options = {**_common(rng), **(sampling if rng.random() < 0.5 else {})}
    ends = options["eos_token_id"]
    return {**options, "pad_token_id": ends[0] if isinstance(ends, list) else ends}


def _plain_or_sampled(rng: random.Random) -> dict[str, Any]:
    sampling = {"do_sample": True, "top_k": rng.choice([0, 10]), "temperature": rng.choice([0.8, 1.5])}
    return {**_common(rng), **(sampling if rng.random() < 0.5 else {})}


def prompt_lookup(rng: random.Random) -> dict[str, Any]:
    """Options of prompt lookup."""
    options = _pick(rng, prompt_lookup_num_tokens=[1, 3, 8], max_matching_ngram_size=[None, 1, 3])
    return {**_plain_or_sampled(rng), **options}


def dola(rng: random.Random) -> dict[str, Any]:
    """Options of DoLa. It excludes most tokens, so those that are left must not be forbidden."""
    options = {**_plain_or_sampled(rng), "dola_layers": rng.choice(["low", "high", [0], [0, 1]])}
    return {name: value for name, value in options.items() if name not in ("no_repeat_ngram_size", "min_new_tokens")}


FAMILIES: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "beam_search": beam_search,
    "beam_sample": beam_sample,
    "diverse": diverse,
    "constrained": constrained,
    "contrastive": contrastive,
    "assisted": assisted,
    "prompt_lookup": prompt_lookup,
    "dola": dola,
}
ONE_ROW = ("assisted", "prompt_lookup")
RELEASES = dict.fromkeys(("diverse", "constrained", "contrastive"), "4.34.1")
"""The release of transformers that has the strategy, unless it is the one that is installed."""


@dataclass
class Call:
    """A call of `generate()`.

    Attributes:
        model: the model of puna.
        config: its configuration, as transformers 4.34 reads it.
        ids, mask: the prompt.
        options: the settings.
        seed: of the random generator.
        assistant: the configuration of the assistant model, its weights and its generation settings.
        embeds: embeddings of the prompt, which replace its ids.
    """

    model: LlamaForCausalLM
    config: dict[str, Any]
    ids: Tensor
    mask: Tensor
    options: dict[str, Any]
    seed: int
    assistant: dict[str, Any] | None = None
    embeds: Tensor | None = None

    def job(self) -> dict[str, Any]:
        """Returns the call as the script tests/oracles/generate_texts.py reads it."""
        names = ("config", "ids", "mask", "options", "seed", "assistant", "embeds")
        return {**{name: getattr(self, name) for name in names}, "weights": self.model.state_dict()}

    def run(self, **more: Any) -> GenerateOutput:
        """Returns the output of puna."""
        options: dict[str, Any] = {**self.options, **more}
        if "constraints" in options:
            options["constraints"] = [constraint_of(fields) for fields in options["constraints"]]
        if self.assistant is not None:
            assistant = LlamaForCausalLM(LlamaConfig(**self.assistant["config"])).eval()
            assistant.load_state_dict(self.assistant["weights"])
            assistant.generation_config.update(**self.assistant["settings"])
            options["assistant_model"] = assistant
        prompt = {"inputs": self.ids} if self.embeds is None else {"inputs_embeds": self.embeds}
        torch.manual_seed(self.seed)
        return self.model.generate(
            **prompt, attention_mask=self.mask, return_dict_in_generate=True, output_scores=True, **options
        )


def constraint_of(fields: dict[str, Any]) -> Constraint:
    """Returns the constraint that a job describes."""
    return PhrasalConstraint(fields["phrase"]) if "phrase" in fields else DisjunctiveConstraint(fields["any"])


def random_call(family: str, number: int) -> Call:
    """Returns a random call with a random model."""
    rng = random.Random(f"{family} {number}")
    fields = dict(rng.choice(MODELS))
    model, _ = pair(config_of(**fields), seed=number)
    ids, mask = _prompt(rng, family, model.config, number)
    call = Call(model, {**SIZES, **fields}, ids, mask, _options(rng, family, mask), number)
    if family == "assisted":
        call.assistant = _assistant(rng, call)
    return call


def embedded_call(family: str, number: int) -> Call:
    """Returns a random call whose prompt is given as embeddings, without options that depend on its ids."""
    call = random_call(family, number)
    call.embeds = call.model.get_input_embeddings()(call.ids).detach()
    for name in ("repetition_penalty", "no_repeat_ngram_size"):
        call.options.pop(name, None)
    return call


def golden_call(family: str, number: int) -> Call:
    """Returns a random call with the committed model."""
    rng = random.Random(f"golden {family} {number}")
    model = LlamaForCausalLM.from_pretrained(LAYOUTS["hf"]).eval()
    ids, mask = _prompt(rng, family, model.config, number)
    names = [*SIZES, "num_key_value_heads"]
    fields = {name: getattr(model.config, name) for name in names if name != "initializer_range"}
    return Call(model, fields, ids, mask, _options(rng, family, mask), number)


def _options(rng: random.Random, family: str, mask: Tensor) -> dict[str, Any]:
    options = FAMILIES[family](rng)
    if not mask.all():
        options.pop("repetition_penalty", None)  # transformers 4 also penalises the padding token
    return options


def _prompt(rng: random.Random, family: str, config: LlamaConfig, seed: int) -> tuple[Tensor, Tensor]:
    lengths = rng.choice([(7,), (4,), (1,)] if family in ONE_ROW else [(7,), (6, 6), (3, 8, 5), (5, 4)])
    if family == "contrastive":
        lengths = (lengths[0],) * len(lengths)  # 4.34 compares tokens with the hidden states of padding
    ids, mask, _ = ragged(config, lengths, "left", seed=seed)
    copies = 3 if family == "prompt_lookup" else 1
    return ids.repeat(1, copies), mask.repeat(1, copies)


def _assistant(rng: random.Random, call: Call) -> dict[str, Any]:
    """Returns an assistant that has the first layer of the model, so that it is often right."""
    config = {**call.config, "num_hidden_layers": 1}
    names = LlamaForCausalLM(LlamaConfig(**config)).state_dict()
    weights = {name: tensor for name, tensor in call.model.state_dict().items() if name in names}
    settings = _pick(rng, num_assistant_tokens=[2, 5], num_assistant_tokens_schedule=["constant", "heuristic"])
    return {"config": config, "weights": weights, "settings": settings}


def run_release(python: Path, calls: list[Call], folder: Path) -> list[dict[str, Any]]:
    """Returns the outputs of the calls in the environment of another release, which uses PyTorch from this one."""
    site, lent = Path(torch.__file__).parents[1], folder / "lent"
    lent.mkdir(exist_ok=True)
    for name in [*LENT, *(path.name for path in site.glob("torch-*.dist-info"))]:
        if (site / name).exists() and not (lent / name).exists():
            (lent / name).symlink_to(site / name)
    torch.save([call.job() for call in calls], folder / "jobs.pt")
    paths = [str(lent), *filter(None, [os.environ.get("PYTHONPATH_OF_ORACLE")])]
    script = ROOT / "tests/oracles/generate_texts.py"
    command = [python, "-W", "ignore", script, folder / "jobs.pt", folder / "results.pt"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    results: list[dict[str, Any]] = torch.load(folder / "results.pt")
    return results
