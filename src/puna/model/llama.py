"""The LLaMA decoder (Touvron et al., arXiv:2302.13971 and 2307.09288; Llama 3, arXiv:2407.21783).

Tokens are embedded; each layer adds to the hidden states the output of attention and then of a gated feed-forward
network, each applied after an RMSNorm; a final RMSNorm follows. The heads are in causal_lm.py and classification.py.

Legend: B batch, T tokens, S keys (cached and new), D hidden, I intermediate, H heads, K kv heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from puna.config import LlamaConfig
from puna.model.activations import activation_of
from puna.model.attention import Pair, build_mask
from puna.model.base import default_to, new_embedding
from puna.model.cache import KVCache, LegacyCache, returned
from puna.model.checks import check_cached_positions, check_ids, check_one_input, check_positions
from puna.model.huggingface.packing import separate_sequences
from puna.model.outputs import BaseModelOutputWithPast
from puna.model.pretrained import LlamaPreTrainedModel
from puna.model.rope import LlamaRotaryEmbedding, Rope
from puna.model.step import NO_TRACE, Step, Trace

LayerOutput = tuple[Tensor, Tensor | None, Pair]
"""(hidden states (B, T, D), attention weights (B, H, T, S) or None, the layer's keys and values (B, K, S, E))."""


class LlamaRMSNorm(nn.Module):
    """Root mean square normalisation (arXiv:1910.07467): computed in float32, cast back, then scaled by the weight."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised x, (..., D)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class LlamaMLP(nn.Module):
    """down(act(gate(x)) * up(x)): SwiGLU (arXiv:2002.05202) when the activation is silu."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = activation_of(config)

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Returns gate(x) and up(x), each (..., I)."""
        return self.gate_proj(x), self.up_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the network for x, (..., D)."""
        gate, up = self.project(x)
        out: Tensor = self.down_proj(self.act_fn(gate) * up)
        return out


class LlamaAttention(nn.Module):
    """Self-attention with rotary positions; H query heads share K kv heads (grouped queries, arXiv:2305.13245)."""

    kv_heads: Tensor | None

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)
        self.dropout = config.attention_dropout
        self.register_buffer("kv_heads", None, persistent=False)  # the kv head of each query head, if groups differ

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Returns q(x), (..., H * E), k(x) and v(x), (..., K * E)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, hidden_states: Tensor, step: Step, past: Pair | None, **unused: Any) -> LayerOutput:
        """Attends from the states, (B, T, D), to each other and to `past`, cached keys and values, (B, K, S - T, E)."""
        shape = *hidden_states.shape[:2], -1, self.head_dim
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.project(hidden_states))  # (B, H or K, T, E)
        if self.kv_heads is not None:
            k, v = k[:, self.kv_heads], v[:, self.kv_heads]  # (B, H, T, E)
        dropout = self.dropout if self.training else 0.0
        out, weights, cached = step.rope.attend(q, k, v, past, step.mask, dropout, step.eager)
        return self.o_proj(out.transpose(1, 2).flatten(2)), weights, cached


class LlamaDecoderLayer(nn.Module):
    """Adds to x the attention and then the feed-forward network, each applied to the normalised x."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, step: Step, past: Pair | None) -> LayerOutput:
        """Applies the layer to x, (B, T, D)."""
        normed = self.input_layernorm(x)
        # Modules that wrap attention, such as PEFT's adaption prompt, know the states and the angles by these names.
        out, weights, cached = self.self_attn(hidden_states=normed, step=step, past=past, position_embeddings=step.rope)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), weights, cached


class LlamaModel(LlamaPreTrainedModel):
    """Embeddings, decoder layers and the final norm: converts token ids to hidden states."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self._gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., LayerOutput] = partial(checkpoint, use_reentrant=False)
        self._checkpointed_layers = 1  # every n-th layer is recomputed
        self.embed_tokens = new_embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()

    def get_decoder(self) -> LlamaModel:
        """Returns this model."""
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **arguments: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Computes the hidden states of the tokens.

        Args:
            input_ids: (B, T) token ids. Exactly one of `input_ids` and `inputs_embeds` must be given.
            attention_mask: (B, S), 0 for padding (slower if given); or (B, 1, T, S), bool or float, with causal order.
            position_ids: (B, T) or (1, T); by default they follow the cached tokens; padding counts as tokens
                (but not in the length of the context, which determines the frequencies of dynamic and longrope).
                Without a mask and without caches, a position that is not the next one starts another sequence.
            past_key_values: the returned cache of an earlier call; (keys, values) per layer; or one of transformers.
            inputs_embeds: (B, T, D) in place of `input_ids`.
            use_cache, output_attentions, output_hidden_states, return_dict: select the outputs; by default as in the
                configuration. In training with gradient checkpointing, no cache is returned.
            arguments: those of rows with several sequences (`packing.py`), or without effect (`cache_position`).

        Raises:
            RequestError: if the inputs do not match each other or the model.
            ArgumentError: if an argument is unknown.
        """
        check_one_input(input_ids, inputs_embeds, self.config.hidden_size)
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        cache = KVCache.read(past_key_values, self.config, x.shape[0])
        trace = Trace(
            states=default_to(output_hidden_states, self.config.output_hidden_states),
            weights=default_to(output_attentions, self.config.output_attentions),
            cache=default_to(use_cache, self.config.use_cache) and not self._recompute,
        )
        mask, positions = separate_sequences(arguments, x, cache.length, attention_mask, position_ids, trace.cache)
        out = self.hidden(x, self.step(x, cache, mask, positions, trace), cache)
        out.past_key_values = returned(out.past_key_values, past_key_values)
        return out if default_to(return_dict, self.config.use_return_dict) else out.to_tuple()

    def embed(self, input_ids: Tensor | None) -> Tensor:
        """Returns the embeddings, (B, T, D), of ids, (B, T).

        Raises:
            RequestError: if the ids are not integers, or (checked only on the CPU) outside the vocabulary.
        """
        check_ids(input_ids, getattr(self.embed_tokens, "num_embeddings", None))  # adapters wrap the module
        x: Tensor = self.embed_tokens(input_ids)
        return x

    def step(
        self,
        x: Tensor,
        cache: KVCache,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        trace: Trace = NO_TRACE,
    ) -> Step:
        """Returns the rotation and the mask of embedded tokens x, (B, T, D), that follow the cached tokens."""
        batch, tokens, _ = x.shape
        start = cache.length if position_ids is None else None
        if position_ids is None:
            positions = torch.arange(cache.length, cache.length + tokens, device=x.device).expand(batch, tokens)
        else:
            check_positions(position_ids, batch, tokens)
            positions = position_ids.to(x.device).long().view(-1, tokens).expand(batch, tokens)  # (B, T)
        eager = trace.weights or self.attn_implementation == "eager"
        mask = build_mask(attention_mask, x, cache.length, explicit=eager or self.rotary_emb.by_length)
        rope: Rope = self.rotary_emb(positions, cache, start, attention_mask)
        if rope.key_positions is not None and cache and cache.positions is None:
            check_cached_positions(cache.length, positions, attention_mask)
        return Step(rope, mask, trace, eager)

    def hidden(self, x: Tensor, step: Step, cache: Sequence[Pair] = ()) -> BaseModelOutputWithPast:
        """Applies the layers and the final norm to embedded tokens x, (B, T, D); an empty cache has no layers."""
        states: list[Tensor] = []
        weights: list[Tensor] = []
        cached: list[Pair] = []
        for index, layer in enumerate(self.layers):
            if step.trace.states:
                states.append(x)
            recomputed = self._recompute and not index % self._checkpointed_layers
            run = partial(self._gradient_checkpointing_func, layer) if recomputed else layer
            x, attention, pair = run(x, step, cache[index] if cache else None)
            if step.trace.weights and attention is not None:
                weights.append(attention)
            if step.trace.cache:
                cached.append(pair)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=KVCache(cached, step.rope.key_positions) if step.trace.cache else None,
            hidden_states=(*states, x) if step.trace.states else None,
            attentions=tuple(weights) if step.trace.weights else None,
        )

    @property
    def _recompute(self) -> bool:
        """Whether the backward pass recomputes the activations of layers: gradient checkpointing, in training."""
        return self._gradient_checkpointing and self.training
