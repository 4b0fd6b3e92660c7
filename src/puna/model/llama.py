"""The LLaMA decoder (Touvron et al., arXiv:2302.13971 and 2307.09288; Llama 3, arXiv:2407.21783).

Tokens are embedded; each layer adds to the hidden states the output of attention and then of a gated feed-forward
network, each applied after an RMSNorm; a final RMSNorm follows. The heads are in causal_lm.py and classification.py.

Legend: B batch, T tokens, S keys (cached and new), D hidden, I intermediate, H heads, K kv heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from puna.config import LlamaConfig
from puna.errors import RequestError
from puna.model.activations import activation_of
from puna.model.attention import AttentionMask, attend, attend_by_length, build_mask
from puna.model.cache import KVCache, LegacyCache, extend
from puna.model.checks import check_embeddings, check_ids
from puna.model.outputs import BaseModelOutputWithPast
from puna.model.pretrained import LlamaPreTrainedModel, default_to, new_embedding
from puna.model.rope import LengthRotation, LlamaRotaryEmbedding, Rotation, rotate

LayerOutput = tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]
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

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the network for x, (..., D)."""
        hidden = self.act_fn(self.gate_proj(x)) * self.up_proj(x)  # (..., I)
        out: Tensor = self.down_proj(hidden)
        return out


class LlamaAttention(nn.Module):
    """Self-attention with rotary positions; H query heads share K kv heads (grouped queries, arXiv:2305.13245)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)
        self.dropout = config.attention_dropout

    def forward(
        self,
        x: Tensor,
        rope: Rotation | LengthRotation,
        mask: AttentionMask,
        past: tuple[Tensor, Tensor] | None,
        weights: bool,
    ) -> LayerOutput:
        """Attends from x, (B, T, D), to x and `past`, the layer's cached keys and values, (B, K, S - T, E)."""
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (B, H, T, E)
        k = self.k_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (B, K, T, E)
        v = self.v_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (B, K, T, E)
        dropout = self.dropout if self.training else 0.0
        if isinstance(rope, Rotation):
            k, v = extend(past, rotate(k, rope.angles), v)  # (B, K, S, E)
            out, attention = attend(rotate(q, rope.angles), k, v, mask, dropout, weights)
        else:
            k, v = extend(past, k, v)  # (B, K, S, E), keys unrotated
            out, attention = attend_by_length(q, k, v, rope, mask, dropout, weights)
        out = out.transpose(1, 2).reshape(batch, tokens, -1)  # (B, T, H * E)
        return self.o_proj(out), attention, (k, v)


class LlamaDecoderLayer(nn.Module):
    """Adds to x the attention and then the feed-forward network, each applied to the normalised x."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: Rotation | LengthRotation,
        mask: AttentionMask,
        past: tuple[Tensor, Tensor] | None,
        weights: bool,
    ) -> LayerOutput:
        """Applies the layer to x, (B, T, D)."""
        out, attention, cached = self.self_attn(self.input_layernorm(x), rope, mask, past, weights)
        x = x + out
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, attention, cached


class LlamaModel(LlamaPreTrainedModel):
    """Embeddings, decoder layers and the final norm: converts token ids to hidden states."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self._gradient_checkpointing = False
        self.embed_tokens = new_embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.apply(self.init_weights)

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
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Computes the hidden states of the tokens.

        Args:
            input_ids: (B, T) token ids. Exactly one of `input_ids` and `inputs_embeds` must be given.
            attention_mask: (B, S), 0 for padding; or (B, 1, T, S), bool or float, which must include causal order.
            position_ids: (B, T) or (1, T); by default they follow the cached tokens; padding counts as tokens.
            past_key_values: the cache returned by an earlier call, or a tuple of (keys, values) per layer.
            inputs_embeds: (B, T, D) in place of `input_ids`.
            use_cache, output_attentions, output_hidden_states, return_dict: select the outputs; by default as in the
                configuration. In training with gradient checkpointing, no cache is returned.

        Raises:
            RequestError: if the inputs do not match each other or the model.
        """
        config = self.config
        x = self._embed(input_ids, inputs_embeds)
        cache = KVCache.read(past_key_values, config, x.shape[0])
        positions = self._positions(position_ids, cache.length, x)
        rope = self.rotary_emb(positions, cache)
        if isinstance(rope, LengthRotation):
            cache.check_positions(positions, attention_mask)
        return_states = default_to(output_hidden_states, config.output_hidden_states)
        return_weights = default_to(output_attentions, config.output_attentions)
        return_cache = default_to(use_cache, config.use_cache) and not self._recompute
        eager = return_weights or self.attn_implementation == "eager"
        mask = build_mask(attention_mask, x, cache.length, explicit=eager or isinstance(rope, LengthRotation))

        states: list[Tensor] = []
        weights: list[Tensor] = []
        cached: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(self.layers):
            if return_states:
                states.append(x)
            x, attention, pair = self._run(layer, x, rope, mask, cache[index] if cache else None, eager)
            if return_weights and attention is not None:
                weights.append(attention)
            if return_cache:
                cached.append(pair)
        x = self.norm(x)

        out = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=KVCache(cached, rope.key_positions) if return_cache else None,
            hidden_states=(*states, x) if return_states else None,
            attentions=tuple(weights) if return_weights else None,
        )
        return out if default_to(return_dict, config.use_return_dict) else out.to_tuple()

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            which = "neither" if input_ids is None else "both"
            raise RequestError(f"You must specify exactly one of input_ids or inputs_embeds; {which} was given")
        if inputs_embeds is not None:
            check_embeddings(inputs_embeds, self.config.hidden_size)
            return inputs_embeds
        assert input_ids is not None
        check_ids(input_ids)
        rows = self.embed_tokens.num_embeddings
        # On an accelerator, this check would wait for the device; there the embedding itself reports invalid ids.
        if input_ids.device.type == "cpu" and not 0 <= input_ids.min() <= input_ids.max() < rows:
            invalid = int(input_ids.min()) if input_ids.min() < 0 else int(input_ids.max())
            raise RequestError(
                f"input_ids holds {invalid}; the embedding has rows 0 to {rows - 1}. If the tokenizer has more tokens "
                "than the model, call resize_token_embeddings"
            )
        x: Tensor = self.embed_tokens(input_ids)  # (B, T, D)
        return x

    def _positions(self, position_ids: Tensor | None, past: int, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if position_ids is None:
            return torch.arange(past, past + tokens, device=x.device).expand(batch, tokens)
        if (
            position_ids.dim() > 2
            or position_ids.shape[-1] != tokens
            or position_ids.numel() not in (tokens, x[..., 0].numel())
        ):
            raise RequestError(
                f"position_ids has shape {tuple(position_ids.shape)}; it must be (batch, tokens) = {(batch, tokens)}, "
                f"or (1, {tokens})"
            )
        return position_ids.to(x.device).long().view(-1, tokens).expand(batch, tokens)  # (B, T)

    @property
    def _recompute(self) -> bool:
        return self._gradient_checkpointing and self.training

    def _run(
        self,
        layer: nn.Module,
        x: Tensor,
        rope: Rotation | LengthRotation,
        mask: AttentionMask,
        past: tuple[Tensor, Tensor] | None,
        weights: bool,
    ) -> LayerOutput:
        """Runs a layer; with gradient checkpointing, the backward pass recomputes its activations."""
        if self._recompute:
            # Re-entrant checkpointing would lose the gradients if the embeddings are frozen, as with LoRA.
            recomputed: LayerOutput = checkpoint(layer, x, rope, mask, past, weights, use_reentrant=False)
            return recomputed
        out: LayerOutput = layer(x, rope, mask, past, weights)
        return out
