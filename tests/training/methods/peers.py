"""The training methods of PEFT on transformers' models, with the initial values of puna's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from puna.model import LlamaForCausalLM, LlamaForSequenceClassification
from puna.tokenizer import load_tokenizer
from puna.training.methods.base import Trainable
from puna.training.methods.table import METHODS
from puna.training.settings import TrainingSettings
from tests.golden.files import HELD_OUT, LAYOUTS

_LINEAR = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8}

PEERS: dict[str, tuple[dict[str, Any], peft.PeftConfig | None]] = {
    "full": ({"method": "full"}, None),
    "lora": ({"method": "lora", "rank": 4, "alpha": 8}, peft.LoraConfig(**_LINEAR)),
    "rslora": ({"method": "lora", "rank": 4, "alpha": 4, "rslora": True},
               peft.LoraConfig(**_LINEAR | {"lora_alpha": 4}, use_rslora=True)),
    "dora": ({"method": "lora", "rank": 4, "alpha": 8, "dora": True}, peft.LoraConfig(**_LINEAR, use_dora=True)),
    "patterns": (
        {"method": "lora", "rank": 4, "alpha": 8, "targets": ("q_proj", "down_proj", "up_proj", "lm_head"), "layers": 1,
         "exclude": ("up_proj",), "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["1.self_attn.q_proj", "1.mlp.down_proj", "lm_head"],
                        rank_pattern={"down_proj": 2}, alpha_pattern={"q_proj": 3}),
    ),
    "saved": (
        {"method": "lora", "rank": 2, "targets": ("v_proj",), "modules_to_save": ("lm_head", "input_layernorm")},
        peft.LoraConfig(r=2, lora_alpha=32, target_modules=["v_proj"], modules_to_save=["lm_head", "input_layernorm"]),
    ),
    "tokens": (
        {"method": "lora", "rank": 2, "targets": ("v_proj",), "trainable_tokens": (263, 5, 80)},
        peft.LoraConfig(r=2, lora_alpha=32, target_modules=["v_proj"], trainable_token_indices=[5, 80, 263]),
    ),
    "ia3": ({"method": "ia3"}, peft.IA3Config()),
    "prompt": ({"method": "prompt", "virtual_tokens": 5}, peft.PromptTuningConfig(num_virtual_tokens=5)),
    "mlp": (
        {"method": "ptuning", "virtual_tokens": 5, "encoder_size": 24},
        peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=24),
    ),
    "lstm": (
        {"method": "ptuning", "virtual_tokens": 5, "encoder": "lstm", "encoder_size": 24},
        peft.PromptEncoderConfig(
            num_virtual_tokens=5, encoder_hidden_size=24, encoder_reparameterization_type="LSTM", encoder_dropout=0.0
        ),
    ),
    "prefix": ({"method": "prefix", "virtual_tokens": 5}, peft.PrefixTuningConfig(num_virtual_tokens=5)),
}  # fmt: skip
"""Settings of puna and the configuration of PEFT, by name; None: transformers' model itself."""

EXACT_LIMIT = 1e-5
"""Limit of the relative difference of logits after training was saved and loaded."""


def adapted_pair(name: str, folder: Path, classes: int = 0, **changes: Any) -> tuple[Any, Trainable, Any]:
    """Returns puna's model, its trainable, and PEFT's model with the same weights and initial values.

    Args:
        folder: the base model, in Hugging Face's layout.
        classes: number of labels of a classification; 0: a language model.
        changes: other settings of puna.
    """
    settings, config = PEERS[name]
    kind = LlamaForSequenceClassification if classes else LlamaForCausalLM
    model = kind.from_pretrained(folder)
    trainable = METHODS[settings["method"]].attach(model, None, TrainingSettings.of(settings | changes))
    theirs = reference(folder, classes)
    if config is not None:
        config.task_type = "SEQ_CLS" if classes else "CAUSAL_LM"
        config.base_model_name_or_path = None
        theirs = peft.get_peft_model(theirs, config)
        copy_values(trainable, theirs)
    return model, trainable, theirs.train()


def reference(folder: Path, classes: int = 0) -> Any:
    """Returns transformers' model of a folder."""
    kind = transformers.LlamaForSequenceClassification if classes else transformers.LlamaForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def golden(folder: Path, classes: int = 0) -> Path:
    """Returns the golden checkpoint, with the head of a classification if there are classes."""
    if not classes:
        return LAYOUTS["hf"]
    torch.manual_seed(5)
    model = transformers.LlamaForSequenceClassification.from_pretrained(
        LAYOUTS["hf"], num_labels=classes, pad_token_id=0, dtype=torch.float32
    )
    with torch.no_grad():
        model.score.weight.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def peers_name(name: str) -> str:
    """Returns puna's name of a parameter of PEFT."""
    for part in ("base_model.", ".default", ".modules_to_save"):
        name = name.replace(part, "")
    name = (
        name.replace("model.model.", "model.", 1).replace("model.lm_head.", "lm_head.").replace("model.score", "score")
    )
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def peers_parameters(trainable: Trainable, model: Any) -> dict[str, Tensor]:
    """Returns the trained parameters of PEFT's model by puna's names."""
    result = {peers_name(name): item for name, item in model.named_parameters() if item.requires_grad}
    if "prompt_embeddings" in trainable.parameters:
        result["prompt_embeddings"] = result.pop("prompt_encoder.embedding.weight")
    return result


def copy_values(trainable: Trainable, model: Any) -> None:
    """Copies puna's initial values to PEFT's model, whose parameters must be the same."""
    theirs = peers_parameters(trainable, model)
    assert theirs.keys() == trainable.parameters.keys()
    with torch.no_grad():
        for name, ours in trainable.parameters.items():
            values = ours
            if name == "prompt_embeddings" and ours.dim() == 5:  # a prefix
                values = ours.permute(3, 0, 1, 2, 4).reshape(ours.shape[3], -1)
            if name.endswith(("magnitude_vector", "ia3_l")) or name in ("lm_head.weight", "score.weight"):
                torch.testing.assert_close(theirs[name].reshape(-1), values.reshape(-1))  # PEFT begins with these too
            theirs[name].copy_(values.reshape(theirs[name].shape))


def text_batches(count: int, size: int = 2, length: int = 20) -> list[Tensor]:
    """Returns batches of token ids, (size, length), of a real text."""
    ids = torch.tensor(load_tokenizer(LAYOUTS["hf"])(HELD_OUT.read_text())["input_ids"])
    starts = torch.arange(count * size) * 13 % (len(ids) - length)
    return list(torch.stack([ids[start : start + length] for start in starts]).view(count, size, length))


def train(
    model: Any, parameters: Any, batches: list[Tensor], labels: Callable[[Tensor], Tensor], rate: float
) -> list[float]:
    """Returns the losses of a plain loop with AdamW, one step per batch."""
    optimizer = torch.optim.AdamW(list(parameters), lr=rate, weight_decay=0.0)
    losses = []
    for ids in batches:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels(ids)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
