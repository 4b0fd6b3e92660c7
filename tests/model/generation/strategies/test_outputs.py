"""Optional outputs, streamers and equivalent ways to run the strategies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from puna import LlamaForCausalLM
from puna.errors import PunaError
from puna.model.generation.loop import Decoding
from puna.model.generation.strategies.assisted import early_exit_model, speculative_sampling
from puna.model.generation.strategies.candidates import PromptLookup
from puna.model.generation.strategies.dola import early_layers
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair, ragged

ALL = {
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict_in_generate": True,
}
NEW = {"max_new_tokens": 9, "eos_token_id": [], "pad_token_id": 0}
PROMPT = torch.tensor([[5, 9, 33, 8, 5, 9]])

WITHOUT_BEAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "contrastive_low_memory": {"penalty_alpha": 0.6, "top_k": 4, "low_memory": True},
    "dola": {"dola_layers": "high"},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "early_exit": {"assistant_early_exit": 1},
    "sampled_prompt_lookup": {"prompt_lookup_num_tokens": 3, "do_sample": True, "seed": 3},
}
WITH_BEAMS: dict[str, dict[str, Any]] = {
    "beam_search": {"num_beams": 3},
    "beam_sample": {"num_beams": 3, "do_sample": True, "seed": 3},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "constrained": {"num_beams": 3, "force_words_ids": [[40, 41], [[50], [51, 52]]]},
}
SMALL: dict[str, Any] = {"num_key_value_heads": 2, "num_hidden_layers": 3, "initializer_range": 0.15}
Pair = tuple[LlamaForCausalLM, Any]


@pytest.fixture(scope="module")
def models() -> Pair:
    return pair(config_of(**SMALL), seed=8)


@pytest.fixture
def model(models: Pair) -> LlamaForCausalLM:
    return models[0]


@pytest.mark.parametrize("name", WITHOUT_BEAMS)
def test_outputs_are_those_of_a_forward_pass_over_the_text(model: LlamaForCausalLM, name: str) -> None:
    out = model.generate(PROMPT, **NEW, **ALL, **WITHOUT_BEAMS[name])
    text, prompt = out.sequences, PROMPT.shape[1]
    full = model(text, output_attentions=True, output_hidden_states=True)
    assert len(out.logits) == len(out.scores) == len(out.attentions) == len(out.hidden_states) == 9
    for step in range(9):
        first, last = (0, prompt) if step == 0 else (prompt + step - 1, prompt + step)
        torch.testing.assert_close(out.logits[step], full.logits[:, last - 1], atol=1e-4, rtol=0)
        for result, expected in zip(out.hidden_states[step], full.hidden_states, strict=True):
            torch.testing.assert_close(result, expected[:, first:last], atol=1e-4, rtol=0)
        for result, expected in zip(out.attentions[step], full.attentions, strict=True):
            torch.testing.assert_close(result, expected[:, :, first:last, :last], atol=1e-5, rtol=0)
    assert out.past_key_values.get_seq_length() >= prompt + 8


@pytest.mark.parametrize("name", WITH_BEAMS)
def test_outputs_of_beams_lead_to_the_scores_of_the_texts(model: LlamaForCausalLM, name: str) -> None:
    ids, mask, _ = ragged(model.config, (6, 4), "left")
    options = {**NEW, **WITH_BEAMS[name]}
    out = model.generate(ids, attention_mask=mask, **options, **ALL, num_return_sequences=2)
    beams = options["num_beams"]
    assert [part.shape for part in out.logits] == [(2 * beams, 67)] * 9
    assert out.hidden_states[0][-1].shape == (2 * beams, 6, 48) and out.hidden_states[8][0].shape == (2 * beams, 1, 48)
    assert out.attentions[0][0].shape == (2 * beams, 4, 6, 6) and out.attentions[8][2].shape == (2 * beams, 4, 1, 14)
    assert out.sequences.shape == (4, 15) and (out.beam_indices >= 0).sum(1).tolist() == [9] * 4
    # The rows that `beam_indices` names computed the tokens: their logits are those of the text.
    rows = torch.arange(2).repeat_interleave(2)
    full_mask = torch.cat((mask[rows], torch.ones(4, 9)), dim=1).long()
    positions = (full_mask.cumsum(1) - 1).clamp(min=0)
    full = model(out.sequences, attention_mask=full_mask, position_ids=positions).logits
    for step in range(9):
        result = out.logits[step][out.beam_indices[:, step]]
        torch.testing.assert_close(result, full[:, 5 + step], atol=1e-4, rtol=0)
    if name != "constrained":  # its `scores` are sums, as in transformers
        total = torch.zeros(4)
        for step in range(9):
            total += out.scores[step][out.beam_indices[:, step]].gather(1, out.sequences[:, 6 + step, None])[:, 0]
        length = 15 if name == "diverse" else 9
        torch.testing.assert_close(total / length, out.sequences_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["beam_search", "beam_sample"])
def test_outputs_of_beams_equal_those_of_transformers(models: Pair, name: str) -> None:
    ids, mask, _ = ragged(models[0].config, (6, 4), "left")
    options = {key: value for key, value in {**NEW, **WITH_BEAMS[name], **ALL}.items() if key != "seed"}
    options = {**options, "eos_token_id": list(range(20)), "attention_mask": mask}
    outputs = []
    for model in models:
        torch.manual_seed(5)
        outputs.append(model.generate(ids, **options))
    result, expected = outputs
    assert result.keys() == expected.keys()
    assert result.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-4, rtol=0)
    for key in ("hidden_states", "attentions"):
        for step, expected_step in zip(result[key][1:], expected[key][1:], strict=True):
            torch.testing.assert_close(step, expected_step, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [*WITHOUT_BEAMS.values(), *WITH_BEAMS.values()], ids=[*WITHOUT_BEAMS, *WITH_BEAMS])
def test_results_depend_neither_on_padding_nor_on_requested_outputs(
    model: LlamaForCausalLM, options: dict[str, Any]
) -> None:
    options = {**NEW, **options}
    plain = model.generate(PROMPT, **options)
    assert torch.equal(model.generate(PROMPT, **options, return_dict_in_generate=True).sequences, plain)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), PROMPT), dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    if "num_beam_groups" not in options and "force_words_ids" not in options:  # the length of the text counts there
        assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], plain)
    if options.get("num_beams", 1) > 1:
        assert torch.equal(model.generate(PROMPT, **options, use_cache=False), plain)


@pytest.mark.parametrize("name", ["contrastive", "dola", "beam_search", "diverse", "constrained"])
def test_prompts_of_a_batch_equal_single_prompts(model: LlamaForCausalLM, name: str) -> None:
    options = {**NEW, **WITHOUT_BEAMS, **WITH_BEAMS[name]} if name in WITH_BEAMS else {**NEW, **WITHOUT_BEAMS[name]}
    options = {key: value for key, value in options.items() if key not in WITHOUT_BEAMS} | {"eos_token_id": [3, 4, 6]}
    if name == "dola":
        options["dola_layers"] = [1]  # of several layers, the rows of a batch choose one together
    ids = torch.tensor([[5, 9, 33, 8], [7, 12, 60, 11], [44, 45, 46, 47]])
    batch = model.generate(ids, **options)
    for row, result in zip(ids, batch, strict=True):
        single = model.generate(row[None], **options)[0]
        assert torch.equal(result[: len(single)], single)


class FirstOfPair(transformers.StoppingCriteria):
    """A criterion of transformers that ends some rows before others."""

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        return (input_ids[:, -1] > 50) & (input_ids[:, -2] < 45)


OPTIONS: dict[str, dict[str, Any]] = {
    "criterion": {"stopping_criteria": transformers.StoppingCriteriaList([FirstOfPair()]), "num_return_sequences": 3},
    "allowed_tokens": {"prefix_allowed_tokens_fn": lambda row, ids: list(range(10 + 20 * row, 40 + 20 * row))},
    "bad_words": {"bad_words_ids": [[5, 6], [7]]},
    "forced_end": {"forced_eos_token_id": 2},
    "decay": {"exponential_decay_length_penalty": (2, 1.5)},
    "guidance": {"guidance_scale": 1.5},
    "bias": {"sequence_bias": [[[5], 3.0]]},
    "sampling": {"do_sample": True, "min_p": 0.05, "typical_p": 0.9, "renormalize_logits": True},
    "without_cache": {"use_cache": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_beam_search_equal_those_of_transformers(models: Pair, name: str) -> None:
    ids, mask, _ = ragged(models[0].config, (6, 4), "left")
    results = []
    for model in models:
        torch.manual_seed(1)
        options = {"num_beams": 3, "eos_token_id": [2, 4, 5], "pad_token_id": 3, "max_new_tokens": 10, **OPTIONS[name]}
        results.append(model.generate(ids, attention_mask=mask, **options).tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}])
def test_beams_continue_embeddings_as_transformers_does(models: Pair, sampling: dict[str, Any]) -> None:
    ids, mask, _ = ragged(models[0].config, (6, 4), "left")
    embeds = models[0].model.embed_tokens(ids)
    results = []
    for model in models:
        torch.manual_seed(1)
        options = {"num_beams": 3, "eos_token_id": [2, 4, 5], "pad_token_id": 3, "max_new_tokens": 10, **sampling}
        results.append(model.generate(inputs_embeds=embeds, attention_mask=mask, **options).tolist())
    assert results[0] == results[1]


def test_texts_that_a_criterion_ends_are_padded_without_end_tokens(model: LlamaForCausalLM) -> None:
    ids, mask, _ = ragged(model.config, (6, 4), "left")
    options = {**NEW, "num_beams": 2, "pad_token_id": 5, "stopping_criteria": [FirstOfPair()], "max_new_tokens": 15}
    result = model.generate(ids, attention_mask=mask, **options)
    assert result[1, 10:].tolist() == [5] * 9  # transformers 5 has -1 here, which no tokenizer can decode


@pytest.mark.parametrize("options", [*WITHOUT_BEAMS.values(), *WITH_BEAMS.values()], ids=[*WITHOUT_BEAMS, *WITH_BEAMS])
def test_a_finished_process_makes_the_forward_passes_of_the_others(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if options.get("low_memory"):
        pytest.skip("the number of passes depends on the candidates")
    expected = model.generate(PROMPT, **NEW, **options)
    rounds: list[bool] = []
    passes: list[int] = []

    def all_finished(decoding: Decoding, finished: bool) -> bool:
        assert decoding.synced
        rounds.append(finished)
        return finished and len(rounds) > 14  # another process makes 14 passes

    monkeypatch.setattr(Decoding, "all_finished", all_finished)
    monkeypatch.setattr(model, "forward", _counted(model.forward, passes))
    assert torch.equal(model.generate(PROMPT, **NEW, **options, synced_gpus=True), expected)
    assert len(passes) == 14 and rounds[-1]


def test_processors_with_a_value_per_row_work_in_groups(model: LlamaForCausalLM) -> None:
    ids, mask, _ = ragged(model.config, (6, 4), "left")
    options = {**NEW, **WITH_BEAMS["diverse"], "repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 1}
    result = model.generate(ids, attention_mask=mask, **options)
    for row, prompt in zip(result, ids, strict=True):
        assert not set(row[6:].tolist()) & set(prompt[prompt > 0].tolist())


class Recorder:
    """A streamer that keeps all tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("name", WITHOUT_BEAMS)
def test_streamers_receive_prompt_and_tokens(model: LlamaForCausalLM, name: str) -> None:
    streamer = Recorder()
    out = model.generate(PROMPT, **NEW, **WITHOUT_BEAMS[name], streamer=streamer)
    assert streamer.tokens == out[0].tolist() and streamer.ended


def test_assisted_generation_equals_greedy_search_with_any_assistant(model: LlamaForCausalLM) -> None:
    torch.manual_seed(1)
    other = LlamaForCausalLM(config_of(num_hidden_layers=1)).eval()
    for assistant in (model, other):
        for options in ({}, {"repetition_penalty": 1.4}, {"min_new_tokens": 8, "eos_token_id": [*range(40)]}):
            common = {**NEW, "max_new_tokens": 30, **options}
            expected = model.generate(PROMPT, **common)
            for tokens, threshold in ((1, 0.0), (4, 0.4), (50, 0.0)):
                assistant.generation_config.num_assistant_tokens = tokens
                assistant.generation_config.assistant_confidence_threshold = threshold
                assert torch.equal(model.generate(PROMPT, assistant_model=assistant, **common), expected)


def test_a_correct_assistant_saves_forward_passes(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    torch.manual_seed(2)
    assistant = LlamaForCausalLM(model.config).eval()
    assistant.load_state_dict(model.state_dict())
    assistant.generation_config.assistant_confidence_threshold = 0.0
    monkeypatch.setattr(model, "forward", _counted(model.forward, passes))
    model.generate(PROMPT, assistant_model=assistant, num_assistant_tokens=4, **{**NEW, "max_new_tokens": 20})
    assert len(passes) == 4  # each accepts four tokens and adds one
    assert assistant.generation_config.num_assistant_tokens == 20
    passes.clear()
    schedule = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "heuristic"}
    model.generate(PROMPT, assistant_model=assistant, **schedule, **{**NEW, "max_new_tokens": 20})
    assert len(passes) == 3  # 4 + 1, 6 + 1, 7 + 1
    assert assistant.generation_config.num_assistant_tokens == 10


class Letters:
    """A tokenizer with one token per character, whose ids start at `first`."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - 256 + self.first for letter in text]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(token + 256 - self.first) for token in ids if token >= self.first)


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "seed": 5}])
def test_an_assistant_may_have_another_tokenizer(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    assistant = LlamaForCausalLM(config_of(**{**SMALL, "vocab_size": 68})).eval()
    weights = {name: value for name, value in model.state_dict().items() if value.shape[0] != 67}
    assistant.load_state_dict(weights, strict=False)
    with torch.no_grad():  # the same model, with ids that are higher by one
        assistant.model.embed_tokens.weight[1:] = model.model.embed_tokens.weight
        assistant.lm_head.weight[1:] = model.lm_head.weight
    assistant.generation_config.assistant_confidence_threshold = 0.0
    options = {**NEW, "max_new_tokens": 20, **sampling}
    plain = model.generate(PROMPT, **options)
    passes: list[int] = []
    monkeypatch.setattr(model, "forward", _counted(model.forward, passes))
    tokenizers = {"tokenizer": Letters(0), "assistant_tokenizer": Letters(1)}
    result = model.generate(PROMPT, assistant_model=assistant, num_assistant_tokens=4, **tokenizers, **options)
    if not sampling:
        assert torch.equal(result, plain)
        assert len(passes) < 10
    assert result.shape == plain.shape


def _counted(forward: Any, passes: list[int]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return forward(*args, **kwargs)

    return call


def test_a_criterion_ends_assisted_generation_at_the_same_token(model: LlamaForCausalLM) -> None:
    expected = model.generate(PROMPT, **NEW)
    stop = int(expected[0, 9])
    options = {**NEW, "stopping_criteria": [lambda ids, scores: bool(ids[0, -1] == stop)]}
    plain = model.generate(PROMPT, **options)
    assert plain.shape[1] < expected.shape[1]
    assert torch.equal(model.generate(PROMPT, assistant_model=model, **options), plain)


def test_an_early_exit_model_shares_weights_and_leaves_the_model_unchanged(model: LlamaForCausalLM) -> None:
    early = early_exit_model(model, 2)
    assert len(early.model.layers) == early.config.num_hidden_layers == 2
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    assert early.lm_head.weight is model.lm_head.weight
    states = model(PROMPT, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(early(PROMPT).logits, model.lm_head(model.model.norm(states)))
    with pytest.raises(PunaError, match="assistant_early_exit is 3; it must be from 1 to 2"):
        early_exit_model(model, 3)


def test_speculative_sampling_has_the_distribution_of_the_model() -> None:
    generator = torch.Generator().manual_seed(0)
    model, assistant = torch.randn(3, 5, generator=generator), torch.randn(2, 5, generator=generator)
    probabilities = assistant.softmax(-1)
    counts, count = torch.zeros(5, 5), 4000
    for _ in range(count):
        candidates = torch.multinomial(probabilities, 1, generator=generator).T  # (1, 2)
        tokens, accepted = speculative_sampling(candidates, assistant[None], model[None], generator)
        assert tokens.shape == (1, accepted + 1) and torch.equal(tokens[:, :accepted], candidates[:, :accepted])
        counts[0, tokens[0, 0]] += 1
        if accepted:  # the second token is drawn only if the first one was accepted
            counts[1, tokens[0, 1]] += 1
    for position in range(2):
        share = counts[position] / counts[position].sum()
        torch.testing.assert_close(share, model[position].softmax(-1), atol=0.03, rtol=0)


def test_prompt_lookup_finds_the_longest_match_that_the_processors_allow() -> None:
    def no_tokens_above_7(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.arange(8, 10), float("-inf"))

    def propose(text: list[int], tokens: int = 3, words: int = 2, limit: int = 5) -> list[int]:
        lookup = PromptLookup(tokens, words, (4,), 10, no_tokens_above_7)
        return lookup.propose(torch.tensor([text]), limit)[0][0].tolist()

    assert propose([1, 2, 3, 5, 6, 1, 2]) == [3, 5, 6]
    assert propose([2, 7, 1, 2, 3, 5, 1, 2]) == [3, 5, 1]  # two tokens are preferred to one
    assert propose([2, 7, 1, 2, 3, 5, 1, 2], words=1) == [7, 1, 2]
    assert propose([1, 2, 8, 1, 2, 3, 1, 2]) == [3, 1, 2]  # 8 is forbidden
    assert propose([1, 2, 3, 8, 6, 1, 2]) == [3]
    assert propose([1, 2, 3, 4, 6, 1, 2]) == [3]  # 4 ends the text
    assert propose([1, 2, 3], limit=5) == propose([1, 2, 3, 1, 2], limit=0) == propose([5]) == []


@pytest.mark.parametrize(
    ("choice", "count", "tied", "layers"),
    [
        ("low", 8, False, [0, 2]),
        ("low", 8, True, [2]),
        ("low", 2, True, [1]),
        ("low", 1, True, [0]),
        ("low", 48, False, list(range(0, 20, 2))),
        ("high", 8, False, [4, 6]),
        ("high", 48, True, list(range(28, 48, 2))),
        ([1, 3, 8, 9], 8, False, [1, 3]),
    ],
)
def test_layers_of_dola(choice: Any, count: int, tied: bool, layers: list[int]) -> None:
    assert early_layers(choice, count, tied) == layers


TWO = torch.tensor([[3, 4], [5, 6]])


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (TWO, {"prompt_lookup_num_tokens": 2}, "the batch has 2 rows"),
        (PROMPT, {"prompt_lookup_num_tokens": 2, "use_cache": False}, "needs use_cache=True"),
        (PROMPT, {"penalty_alpha": 0.5, "top_k": 3, "use_cache": False}, "needs use_cache=True"),
        (PROMPT, {"force_words_ids": [[4]], "num_beams": 1}, "num_beams"),
        (PROMPT, {"dola_layers": "middle"}, "dola_layers is 'middle'"),
        (PROMPT, {"dola_layers": [3, 4]}, r"dola_layers is \[3, 4\]"),
    ],
)
def test_calls_that_a_strategy_cannot_run_are_refused(
    model: LlamaForCausalLM, ids: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PunaError, match=message):
        model.generate(ids, **NEW, **options)


def test_an_assistant_with_another_vocabulary_is_refused(model: LlamaForCausalLM) -> None:
    assistant = LlamaForCausalLM(config_of(vocab_size=68))
    with pytest.raises(PunaError, match="vocabulary has 68 tokens and the model's 67"):
        model.generate(PROMPT, assistant_model=assistant, **NEW)


def test_contrastive_search_refuses_a_cache(model: LlamaForCausalLM) -> None:
    cache = model(PROMPT).past_key_values
    text = torch.cat((PROMPT, torch.tensor([[4]])), dim=1)
    with pytest.raises(PunaError, match="without past_key_values"):
        model.generate(text, past_key_values=cache, penalty_alpha=0.6, top_k=4, **NEW)
    result = model.generate(text.repeat(1, 1), past_key_values=cache, num_beams=3, **NEW)
    assert torch.equal(result, model.generate(text, num_beams=3, **NEW))
