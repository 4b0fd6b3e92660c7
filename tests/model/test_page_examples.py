"""The examples of Hugging Face's LLaMA page, with imports from puna and a smaller model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def test_a_model_is_built_from_a_configuration() -> None:
    from puna import LlamaConfig, LlamaModel

    with torch.device("meta"):  # the default configuration is a model of 27 GB
        # Initializing a LLaMA llama-7b style configuration
        configuration = LlamaConfig()

        # Initializing a model from the llama-7b style configuration
        model = LlamaModel(configuration)

    # Accessing the model configuration
    configuration = model.config
    assert configuration.hidden_size == 4096
    assert model.num_parameters() == 6_607_343_616


@pytest.mark.slow
def test_the_example_of_generate_runs(smollm2: Path) -> None:
    from puna import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    prompt = "Hey, are you conscious? Can you talk to me?"
    inputs = tokenizer(prompt, return_tensors="pt")

    # Generate
    generate_ids = model.generate(inputs.input_ids, max_length=30)
    text = tokenizer.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
    assert generate_ids.shape[1] <= 30
    assert text.startswith(prompt)
    assert len(text) > len(prompt) + 20
    assert torch.equal(model.generate(**inputs, max_length=30), generate_ids)
