"""The model type `puna` of EleutherAI's lm-eval.

    python -m puna.evaluation.harness run --model puna --model_args pretrained=model.gguf --tasks hellaswag

or, in Python, import this module and call `lm_eval.simple_evaluate(model="puna", model_args="pretrained=model.gguf")`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from puna.errors import MissingExtraError
from puna.evaluation.likelihood import Pair, encode, prefix_token, score_pairs
from puna.evaluation.perplexity import rolling_likelihood
from puna.llm import LLM

try:
    import lm_eval.models  # noqa: F401 - lm-eval registers its own models only while no other is registered
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as exc:
    raise MissingExtraError(f"this module needs lm-eval ({exc.name} is missing): pip install lm-eval") from exc

_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("puna")
class PunaLM(TemplateLM):  # type: ignore[misc]
    """A model of puna.

    Args:
        pretrained: a path or name as in `LLM`, or an `LLM`.
        adapter: path of an adapter; with an `LLM`, its name.
        max_gen_toks: maximum length of an answer, unless the task sets it.
        batch_size: number of sequences at once.
        device, max_batch_size: arguments of lm-eval that have no effect: the native runtime uses the CPU.
        options: further arguments of `LLM`, such as quantize and threads.
    """

    def __init__(
        self,
        pretrained: str | LLM | None = None,
        adapter: str | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, LLM):
            self.llm = pretrained
        else:
            size = int(str(batch_size)) if str(batch_size).isdecimal() else 16
            adapters = None if adapter is None else {adapter: adapter}
            self.llm = LLM(pretrained, max_batch=size, adapters=adapters, **options)
        self.adapter, self.max_gen_toks, self.tokenizer = adapter, max_gen_toks, self.llm.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The EOS token, else BOS."""
        token = self.llm.tokenizer.eos_token_id
        return prefix_token(self.llm) if token is None else int(token)

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes a text without a context."""
        return prefix_token(self.llm)

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of a sequence."""
        return self.llm.longest_text(self.adapter)

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in caches of requests."""
        return str(self.llm.path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Returns the ids of a text; by default with the tokenizer's special tokens, unless it begins with BOS."""
        if add_special_tokens is None:
            return encode(self.llm, string)
        return list(self.llm.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as text."""
        return str(
            self.llm.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs: list[Pair] = [(context, continuation) for _, context, continuation in requests]
        results = [(likelihood.value, likelihood.greedy) for likelihood in score_pairs(self.llm, pairs, self.adapter)]
        for (key, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text."""
        results = []
        for request in requests:
            results.append(rolling_likelihood(self.llm, request.args[0], self.adapter)[0])
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the answer to each prompt; those with the same settings are computed together."""
        texts: dict[int, str] = {}
        ranking = sorted(range(len(requests)), key=lambda index: repr(requests[index].args[1]))
        for _, group in groupby(ranking, key=lambda index: repr(requests[index].args[1])):
            indices = list(group)
            texts |= self._generate(
                indices, [requests[index].args[0] for index in indices], requests[indices[0]].args[1]
            )
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[index])
        return [texts[index] for index in range(len(requests))]

    def _generate(self, indices: Sequence[int], contexts: Sequence[str], settings: Mapping[str, Any]) -> dict[int, str]:
        """Returns the answers to several prompts by their index."""
        length = int(next((settings[name] for name in _LIMITS if settings.get(name) is not None), self.max_gen_toks))
        until = settings.get("until") or []
        sampling = {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
        if not settings.get("do_sample", sampling.get("temperature", 0) > 0):
            sampling = {"temperature": 0.0}
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        prompts = [encode(self.llm, context)[-max(1, self.max_length - length) :] for context in contexts]
        texts = dict.fromkeys(indices, "")
        stream = self.llm.stream_batch(prompts, max_tokens=length, stop=stop or None, adapter=self.adapter, **sampling)
        for position, piece in stream:
            texts[indices[position]] += piece
        return texts


def main() -> None:
    """Runs the command of lm-eval, with the model type `puna`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
