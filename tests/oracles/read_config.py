"""Prints the configuration that a release of transformers reads from each folder; runs in that release's environment.

Usage: read_config.py FOLDER... ; prints a JSON list. `rope` is [inverse frequencies, attention factor]. It is
None if the release does not compute them from the configuration, or if the rope type is "default".
"""

import json
import sys

from transformers import GenerationConfig, LlamaConfig

FIELDS = """
vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
max_position_embeddings initializer_range rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id
pretraining_tp tie_word_embeddings attention_bias attention_dropout mlp_bias head_dim num_labels id2label label2id
problem_type output_attentions output_hidden_states use_return_dict my_own_key
"""


def rope(config):
    """Returns the frequencies and the attention factor that this release computes."""
    try:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    except ImportError:
        return None
    settings = getattr(config, "rope_parameters", None) or config.rope_scaling or {}
    kind = settings.get("rope_type", "default")
    if kind == "default":
        return None
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=1)
    return [frequencies.double().tolist(), factor]


def read(folder):
    """Returns the fields read from one folder, or the error."""
    try:
        config = LlamaConfig.from_pretrained(folder)
    except Exception as exc:
        return {"error": f"{type(exc).__name__}: {exc}"}
    names = FIELDS.split()
    fields = {name: getattr(config, name) for name in names if hasattr(config, name)}
    settings = getattr(config, "rope_parameters", None) or {}
    fields["rope_theta"] = settings.get("rope_theta", getattr(config, "rope_theta", None))
    fields["rope_scaling"] = config.rope_scaling
    fields["dtype"] = str(getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)).replace("torch.", "")
    fields["rope"] = rope(config)
    generation = GenerationConfig.from_pretrained(folder)
    fields["generation"] = {
        name: getattr(generation, name) for name in ("max_new_tokens", "temperature", "do_sample", "eos_token_id")
    }
    return fields


if __name__ == "__main__":
    print(json.dumps([read(folder) for folder in sys.argv[1:]]))
