"""Worker of OpenVINO: a stateful model as exported by optimum-intel, on the CPU plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from peers.serve import serve


def limit_head_to_last_token(model: ov.Model) -> None:
    """Limits the head to the last token of each sequence, as OpenVINO GenAI does before it compiles a model."""
    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    hidden = head.input_value(0)
    second_axis = ops.constant(np.array(1, np.int64))
    last = ops.unsqueeze(ops.gather(hidden, ops.constant(np.array(-1, np.int64)), second_axis), second_axis)
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


class OpenVino:
    """A compiled model and its state, with the latency hint and default settings (u8 cache, dynamic quantisation)."""

    def __init__(self, load: dict[str, Any]) -> None:
        core = ov.Core()
        model = core.read_model(Path(load["model"]) / "openvino_model.xml")
        limit_head_to_last_token(model)
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": load["threads"], **load["options"]}
        compiled = core.compile_model(model, "CPU", options)
        self.request = compiled.create_infer_request()
        self.vocab_size = model.output("logits").get_partial_shape()[-1].get_length()
        self.settings = {"openvino": ov.__version__, "head": "last token", **options}
        for name in (
            "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_NUM_THREADS"
        ):  # fmt: skip
            self.settings[name] = str(compiled.get_property(name))

    def _infer(self, ids: np.ndarray[Any, Any], start: int) -> None:
        sequences, tokens = ids.shape
        positions = np.broadcast_to(np.arange(start, start + tokens, dtype=np.int64), ids.shape)
        self.request.infer({
            "input_ids": ids,
            "attention_mask": np.ones((sequences, start + tokens), np.int64),
            "position_ids": np.ascontiguousarray(positions),
            "beam_idx": np.arange(sequences, dtype=np.int32),
        })  # fmt: skip
        self.request.get_tensor("logits").data[:, -1].argmax(axis=-1)

    def read(self, ids: Sequence[int], sequences: int) -> None:
        """See `peers.serve.Engine`."""
        self.request.reset_state()
        self._infer(np.array([ids] * sequences, np.int64), 0)

    def step(self, token: int, position: int, sequences: int) -> None:
        """See `peers.serve.Engine`."""
        self._infer(np.full((sequences, 1), token, np.int64), position)


if __name__ == "__main__":
    serve(OpenVino)
