"""Facts and helpers of `PreTrainedModel`: compared with transformers."""

from __future__ import annotations

import copy
import mmap
import warnings
from typing import Any

import pytest
import torch
import transformers

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import BackendError, ConfigError, RequestError
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from puna.model.huggingface.masks import extended
from puna.model.pretrained import LlamaPreTrainedModel
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))
KINDS = [LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification]


@pytest.mark.parametrize("tied", [False, True])
def test_sizes_equal_those_of_transformers(tied: bool) -> None:
    model, reference = pair(config_of(tie_word_embeddings=tied))
    assert model.get_memory_footprint(return_buffers=False) == reference.get_memory_footprint(return_buffers=False)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert model.get_memory_footprint() == weights + model.model.rotary_emb.inv_freq.nbytes
    inputs = {"input_ids": IDS}
    assert model.estimate_tokens(inputs) == 14
    assert model.floating_point_ops(inputs) == 6 * 14 * reference.num_parameters(exclude_embeddings=True)
    assert model.floating_point_ops(inputs, exclude_embeddings=False) == 6 * 14 * reference.num_parameters()
    with pytest.warns(UserWarning, match="cannot be estimated"):
        assert model.floating_point_ops({}) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_class_attributes_are_those_of_transformers(kind: Any) -> None:
    reference = getattr(transformers, kind.__name__)
    names = ["base_model_prefix", "main_input_name", "supports_gradient_checkpointing", "_no_split_modules",
             "_auto_class", "_supports_sdpa", "_can_compile_fullgraph", "_is_stateful",
             "_keep_in_fp32_modules"]  # fmt: skip
    for name in names:
        assert getattr(kind, name) == getattr(reference, name), name
    assert kind.config_class is LlamaConfig
    assert kind.is_parallelizable is False
    assert kind._skip_keys_device_placement == "past_key_values"
    assert kind._tied_weights_keys == (["lm_head.weight"] if kind is LlamaForCausalLM else None)
    model = kind(config_of())
    assert (model.framework, model.is_parallelizable, kind.is_backend_compatible()) == ("pt", False, False)
    assert (model.generation_config is None) == (kind is not LlamaForCausalLM)
    assert kind.generation_config_class is GenerationConfig
    assert torch.equal(model.dummy_inputs["input_ids"], reference(config=_small()).dummy_inputs["input_ids"])
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    assert model.bfloat16().dtype == torch.bfloat16 and model.half().dtype == torch.float16


def _small() -> Any:
    return transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )


def test_tags_are_collected_without_duplicates() -> None:
    model, other = LlamaModel(config_of()), LlamaModel(config_of())
    model.add_model_tags(["a", "b"])
    model.add_model_tags("a")
    assert model.model_tags == ["a", "b"]
    assert other.model_tags is None


def test_classes_can_be_registered_for_auto_classes() -> None:
    class Custom(LlamaForCausalLM):
        pass

    Custom.register_for_auto_class("AutoModelForCausalLM")
    assert Custom._auto_class == "AutoModelForCausalLM"
    assert LlamaForCausalLM._auto_class is None
    assert Custom.is_remote_code() and Custom.is_custom_code() and not LlamaForCausalLM.is_custom_code()


def test_masks_have_the_values_of_transformers_4() -> None:
    model = LlamaModel(config_of())
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    lowest = torch.finfo(torch.float32).min
    inverted = model.invert_attention_mask(mask)
    assert inverted.shape == (2, 1, 1, 3) and inverted[0, 0, 0].tolist() == [lowest, 0, 0]
    assert torch.equal(model.get_extended_attention_mask(mask, (2, 3)), inverted)
    model.config.is_decoder = True
    causal = model.get_extended_attention_mask(mask, (2, 3), dtype=torch.float64)
    least = torch.finfo(torch.float64).min
    assert causal[0, 0].tolist() == [[least] * 3, [least, 0, least], [least, 0, 0]]
    assert model.create_extended_attention_mask_for_decoder((2, 2), mask)[1, 0].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert torch.equal(model.invert_attention_mask(mask[:, None]), inverted)
    with pytest.raises(ValueError, match="Wrong shape"):
        model.get_extended_attention_mask(mask[0], (3,))
    assert extended(mask, (2, 3), torch.float32, causal=False).dtype == torch.float32


def test_head_masks_have_one_row_per_layer() -> None:
    model = LlamaModel(config_of())
    assert model.get_head_mask(None, 2) == [None, None]
    one = model.get_head_mask(torch.tensor([1, 0, 1, 1]), 2)
    assert isinstance(one, torch.Tensor) and one.shape == (2, 1, 4, 1, 1) and one.dtype == torch.float32
    layers = model.get_head_mask(torch.tensor([[1, 0], [0, 1]]), 2, is_attention_chunked=True)
    assert isinstance(layers, torch.Tensor) and layers.shape == (2, 1, 2, 1, 1, 1)
    with pytest.raises(RequestError, match="head_mask has shape"):
        model.get_head_mask(torch.ones(1, 1, 1), 2)


def test_padding_without_a_mask_is_reported() -> None:
    model = LlamaForCausalLM(config_of(pad_token_id=2))
    ids = torch.tensor([[3, 4, 2]])
    with pytest.warns(UserWarning, match="strongly recommend passing in an `attention_mask`.*identical to the"):
        model.warn_if_padding_and_no_attention_mask(ids, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.warn_if_padding_and_no_attention_mask(ids, torch.ones_like(ids))
        model.warn_if_padding_and_no_attention_mask(torch.tensor([[3, 2, 4]]), None)
        LlamaForCausalLM(config_of()).warn_if_padding_and_no_attention_mask(ids, None)


def test_the_implementation_of_attention_can_be_changed() -> None:
    model = LlamaForCausalLM(config_of()).eval()
    expected = model(IDS).logits
    model.set_attn_implementation("eager")
    assert model.attn_implementation == model.model.attn_implementation == "eager"
    assert torch.allclose(model(IDS).logits, expected, atol=1e-5)
    model.set_attn_implementation({"": "sdpa"}, allow_all_kernels=False)
    assert model.model.attn_implementation == "sdpa" == model.get_correct_attn_implementation(None)
    with pytest.raises(ConfigError, match=r"flash_attention_2.*'sdpa'"):
        model.set_attn_implementation("flash_attention_2")
    with pytest.raises(BackendError, match="not needed"):
        model.to_bettertransformer()
    with pytest.raises(BackendError, match="was not converted"):
        model.reverse_bettertransformer()


def test_modules_and_tensors_are_found_by_name() -> None:
    model = LlamaForCausalLM(config_of())
    assert model.retrieve_modules_from_names(["model.norm.weight", "lm_head.weight"]) == [
        model.model.norm,
        model.lm_head,
    ]
    assert model.retrieve_modules_from_names(["norm.weight"], remove_prefix=True) == [model.model.norm]
    assert model.model.retrieve_modules_from_names(["model.norm.weight"], add_prefix=True) == [model.model.norm]
    assert model.get_parameter_or_buffer("model.rotary_emb.inv_freq") is model.model.rotary_emb.inv_freq
    assert model.get_parameter_or_buffer("lm_head.weight") is model.lm_head.weight
    with pytest.raises(AttributeError, match="neither a parameter nor a buffer"):
        model.get_parameter_or_buffer("model.norm.scale")
    assert [name for name, _ in model.named_non_persistent_buffers()] == ["model.rotary_emb.inv_freq"]


def test_memory_hooks_count_the_growth_of_the_process() -> None:
    model = LlamaForCausalLM(config_of())
    model.add_memory_hooks()
    kept = []

    def grow(*_: Any) -> None:  # runs before the hook that measures
        kept.append(mmap.mmap(-1, 64_000_000))  # not memory that an earlier test has freed
        kept[0].write(b"x" * 64_000_000)

    model.model.norm.register_forward_hook(grow)
    model(IDS)
    assert model.mem_rss_diff > 32_000_000
    model.reset_memory_hooks_state()
    assert model.mem_rss_diff == model.model.layers[0].mem_rss_diff == 0


def test_a_compiled_call_is_kept() -> None:
    model = LlamaForCausalLM(config_of()).eval()
    call = model.get_compiled_call({"backend": "eager"})
    assert model.get_compiled_call({"backend": "eager"}) is call
    assert torch.allclose(call(IDS).logits, model(IDS).logits, atol=1e-5)
    assert model.get_compiled_call({"backend": "aot_eager"}) is not call


def test_weights_are_initialised_once() -> None:
    model = LlamaForCausalLM(config_of())
    before = copy.deepcopy(model.state_dict())
    model.post_init()
    model.init_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model._init_weights(model.lm_head)
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])
    with torch.device("meta"):
        empty = LlamaForCausalLM(config_of())
    empty.to_empty(device="cpu")
    empty.init_weights()
    assert empty.lm_head.weight.std().item() == pytest.approx(0.2, rel=0.1)


def test_a_loss_function_can_be_assigned() -> None:
    model, reference = pair(config_of())
    labels = IDS.clone()
    labels[0, :3] = -100
    arguments: list[dict[str, Any]] = [{}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(7)}]
    for more in arguments:
        assert torch.allclose(model(IDS, labels=labels, **more).loss, reference(IDS, labels=labels, **more).loss)
    shifted = torch.cat((labels[:, 1:], torch.full((2, 1), -100)), 1)
    expected = reference(IDS, labels=labels).loss
    assert torch.allclose(model(IDS, shift_labels=shifted).loss, expected)
    assert torch.allclose(model.loss_function(model(IDS).logits, labels, vocab_size=67), expected)
    model.loss_function = lambda logits, labels, **more: logits.sum() * 0 + 3
    assert model(IDS, labels=labels).loss == 3
    with pytest.raises(AttributeError, match="loss_function"):
        _ = LlamaForSequenceClassification(config_of()).loss_function


def test_further_arguments_of_forward() -> None:
    model = LlamaForCausalLM(config_of()).eval()
    out = model(IDS[:, :4], cache_position=torch.arange(4), output_router_logits=None)
    step = model(IDS[:, 4:], past_key_values=out.past_key_values, cache_position=torch.arange(4, 7))
    assert torch.allclose(step.logits, model(IDS).logits[:, 4:], atol=1e-5)
    with pytest.raises(RequestError, match=r"cache_position.*must be 4 to 6"):
        model(IDS[:, 4:], past_key_values=out.past_key_values, cache_position=torch.arange(3))
    with pytest.raises(TypeError, match="unexpected keyword argument 'head_mask'"):
        model(IDS, head_mask=torch.ones(4))
    for kind in KINDS:
        assert kind(config_of())(IDS, num_items_in_batch=3, cache_position=None)[0].isfinite().all()


def test_every_public_name_of_transformers_has_a_counterpart_or_a_reason() -> None:
    """The absent names are about sharding, kernels and experts, or belong to adapters, which PEFT applies."""
    absent = {
        "barrier_after_gathered_checkpoint_save", "gather_sharded_state_dict_for_save", "init_parallel_plans",
        "is_distributed_loading_by_transformers", "maybe_distribute_model", "prepare_distribute_model",
        "save_distributed_checkpoint", "should_save_on_this_rank", "get_expanded_tied_weights_keys",
        "mark_tied_weights_as_initialized", "get_init_context", "set_use_kernels", "get_correct_experts_implementation",
        "get_experts_implementation", "set_experts_implementation", "enable_peft_hotswap",
        "active_adapters", "add_adapter", "delete_adapter", "disable_adapters", "enable_adapters",
        "get_adapter_state_dict", "load_adapter", "set_adapter",
    }  # fmt: skip
    names = set(dir(transformers.PreTrainedModel)) - set(dir(torch.nn.Module))
    ours = {name for base in LlamaForCausalLM.__mro__ if base.__module__.startswith("puna.") for name in vars(base)}
    missing = {name for name in names if not name.startswith("_")} - ours - {"smart_apply"}
    assert missing - absent == set()
    assert LlamaPreTrainedModel in LlamaForCausalLM.__mro__
