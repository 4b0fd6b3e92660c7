"""`Trainer`: the four primitives of training: forward_backward, optim_step, sample, and the state.

A training method decides which parameters train, a task which loss and which batches; the loop calls these primitives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.errors import TrainingError
from puna.model import LlamaForCausalLM
from puna.model.cache import KVCache
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Batch
from puna.training.forward.base import Forward
from puna.training.forward.float_products import float_products
from puna.training.methods.base import Trainable
from puna.training.optimizers.base import Optimizer
from puna.training.tasks.base import Task

_PARAMETER, _OPTIMIZER = "parameter.", "optimizer."


@dataclass(frozen=True)
class StepResult:
    """The result of a forward and a backward pass.

    Attributes:
        loss: the summed loss of the batch times the scale.
        tokens: number of tokens.
    """

    loss: float
    tokens: int


class Trainer:
    """A model in training.

    Args:
        task: computes the loss.
        trainable: the model with its trainable parameters.
        forward: the forward pass of this model.
        optimizer: of these parameters.
        tokenizer: for samples.
    """

    def __init__(
        self,
        task: Task,
        trainable: Trainable,
        forward: Forward,
        optimizer: Optimizer,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.task, self.trainable, self.forward = task, trainable, forward
        self.optimizer, self.tokenizer = optimizer, tokenizer
        trainable.model.eval()  # dropout depends on seeds of batches, never on the mode of the model

    def forward_backward(self, batch: Batch, scale: float = 1.0) -> StepResult:
        """Adds the gradients of the summed loss times `scale` to those of earlier batches."""
        self.forward.training = True
        loss = self.task.loss(self.forward, batch, scale)
        loss.backward()  # type: ignore[no-untyped-call]
        return StepResult(float(loss.detach()), batch.tokens)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Returns the task's metrics of held-out batches; changes neither gradients nor random states."""
        self.forward.training = False
        with torch.no_grad():
            return self.task.evaluate(self.forward, batches)

    def gradient_norm(self) -> float:
        """Returns the Euclidean norm of the accumulated gradients."""
        return self.optimizer.gradient_norm()

    def optim_step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Changes the parameters by the accumulated gradients times `scale`, and removes the gradients."""
        self.optimizer.step(learning_rate, scale)
        self.trainable.after_step()
        self.optimizer.zero_gradients()

    def sample(self, prompts: Sequence[str], max_tokens: int = 64) -> list[str]:
        """Returns the most likely continuation of each prompt."""
        model, tokenizer = self.trainable.model, self.tokenizer
        assert isinstance(model, LlamaForCausalLM) and tokenizer is not None, "only language models write text"
        with torch.no_grad(), float_products(model.dtype):
            return [self._continue(model, tokenizer, prompt, max_tokens) for prompt in prompts]

    def _continue(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int
    ) -> str:
        cache, count = self._virtual_cache(model)
        ids = torch.tensor([[0] * count + self.task.encode_prompt(prompt, tokenizer)])  # (1, N + T)
        pad = model.config.pad_token_id or tokenizer.eos_token_id  # one row needs no padding; None would be reported
        inputs: dict[str, Any] = {"input_ids": ids, "past_key_values": cache, "max_new_tokens": max_tokens}
        out = model.generate(**inputs, do_sample=False, pad_token_id=pad)
        assert isinstance(out, Tensor), "generate() returns ids unless dictionaries are requested"
        return str(tokenizer.decode(out[0, ids.shape[1] :].tolist(), skip_special_tokens=True))

    def _virtual_cache(self, model: LlamaForCausalLM) -> tuple[KVCache | None, int]:
        """Returns the keys and values of the N virtual tokens of a prompt or a prefix, and N."""
        prompt, prefix = self.trainable.prompt, self.trainable.prefix
        if prompt is not None:
            out = model.model(inputs_embeds=prompt.to(model.dtype)[None], use_cache=True)
            return out.past_key_values, len(prompt)
        if prefix is not None:
            return KVCache((keys[None], values[None]) for keys, values in prefix.to(model.dtype)), prefix.shape[3]
        return None, 0

    def save_state(self) -> dict[str, Tensor]:
        """Returns the parameters and the state of the optimizer by name; they share memory with the trainer."""
        state = {f"{_PARAMETER}{name}": value.detach() for name, value in self.trainable.parameters.items()}
        return state | {f"{_OPTIMIZER}{name}": value for name, value in self.optimizer.state().items()}

    def load_state(self, state: Mapping[str, Tensor], parameters_only: bool = False) -> None:
        """Restores the result of `save_state` exactly.

        Raises:
            TrainingError: the state belongs to other parameters.
        """
        parameters = self.trainable.parameters
        stored = {name.removeprefix(_PARAMETER): item for name, item in state.items() if name.startswith(_PARAMETER)}
        shapes = {name: tuple(item.shape) for name, item in stored.items()}
        if shapes != {name: tuple(item.shape) for name, item in parameters.items()}:
            raise TrainingError("the state belongs to other parameters than those of this run; use the run's settings")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])
        self.trainable.after_step()
        if not parameters_only:
            names = [name for name in state if name.startswith(_OPTIMIZER)]
            self.optimizer.load_state({name.removeprefix(_OPTIMIZER): state[name] for name in names})
