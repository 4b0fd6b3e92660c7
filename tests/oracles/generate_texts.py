"""Generates texts with one release of transformers; runs in that release's environment.

Usage: generate_texts.py JOBS RESULTS ; both files are written by torch.save. JOBS is a list of {config, weights, ids,
mask, options, seed, assistant}; `embeds`, if it is not None, replaces the ids. `weights` is a state dictionary;
`assistant` is None or {config, weights, settings}: the settings are those of its generation configuration.
`options["constraints"]` lists {"phrase": ids} and {"any": phrases}. RESULTS has the fields of each output, or {"error":
text}.
"""

import sys
import warnings

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM


def model_of(config, weights):
    """Returns the model with these weights."""
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    model.load_state_dict(weights, strict=False)  # some releases have buffers in their state dictionaries
    return model


def constraint_of(fields):
    """Returns the constraint that a job describes."""
    if "phrase" in fields:
        return transformers.PhrasalConstraint(fields["phrase"])
    return transformers.DisjunctiveConstraint(fields["any"])


def run(job):
    """Returns the fields of the output of one call of `generate()`."""
    options = dict(job["options"])
    if "constraints" in options:
        options["constraints"] = [constraint_of(fields) for fields in options["constraints"]]
    if job.get("assistant"):
        assistant = model_of(job["assistant"]["config"], job["assistant"]["weights"])
        for name, value in job["assistant"]["settings"].items():
            setattr(assistant.generation_config, name, value)
        options["assistant_model"] = assistant
    torch.manual_seed(job["seed"])
    model = model_of(job["config"], job["weights"])
    torch.manual_seed(job["seed"])
    prompt = {"inputs": job["ids"]} if job.get("embeds") is None else {"inputs_embeds": job["embeds"]}
    out = model.generate(
        **prompt, attention_mask=job["mask"], return_dict_in_generate=True, output_scores=True, **options
    )
    names = ("sequences", "sequences_scores", "scores", "beam_indices", "logits", "attentions", "hidden_states")
    return {name: out[name] for name in names if out.get(name) is not None}


def attempt(job):
    """Returns the fields of the output, or the error."""
    try:
        with torch.no_grad():
            return run(job)
    except Exception as exc:
        return {"error": f"{type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.save([attempt(job) for job in torch.load(sys.argv[1])], sys.argv[2])
