"""Writes grouped_golden.npz: small matrices packed and unpacked by the code of AutoGPTQ 0.7.1 and AutoAWQ 0.2.9.

    python make_grouped_golden.py AUTO_GPTQ_FOLDER AUTOAWQ_FOLDER

The folders are the unpacked distributions; this program loads only a few of their modules. Run it in an environment
with torch and transformers; the tests need neither AutoGPTQ nor AutoAWQ.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

INPUTS, OUTPUTS, GROUP = 64, 32, 32


def load(name: str, path: Path) -> types.ModuleType:
    """Loads one file of an unpacked distribution as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    gptq = Path(sys.argv[1]) / "auto_gptq/nn_modules/qlinear"
    awq = Path(sys.argv[2]) / "awq"
    generator = torch.Generator().manual_seed(0)
    groups = INPUTS // GROUP
    scales = (torch.rand(OUTPUTS, groups, generator=generator) * 0.01 + 0.001).half().float()
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.02
    eights = torch.full((OUTPUTS, groups), 8.0)
    zeros = torch.randint(1, 16, (OUTPUTS, groups), generator=generator).float()
    in_order = torch.arange(INPUTS) // GROUP
    shuffled = in_order[torch.randperm(INPUTS, generator=generator)]
    arrays: dict[str, torch.Tensor] = {}

    def add(name: str, layer: torch.nn.Module, values: torch.Tensor) -> None:
        parts = {key: value for key, value in layer.state_dict().items() if key != "bias"}
        arrays.update({f"{name}.{key}": value.clone() for key, value in parts.items()})
        arrays[f"{name}.values"] = values

    def clamp_to_4_bits(zero: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Returns weights whose quantised values are between 0 and 15, as after GPTQ."""
        step, offset = scales[:, group], zero[:, group]
        return (torch.clamp(torch.round(weight / step) + offset, 0, 15) - offset) * step

    for name, zero, group, module in (
        ("gptq_symmetric", eights, in_order, "qlinear_cuda_old"),
        ("gptq", zeros, in_order, "qlinear_cuda_old"),
        ("gptq_act_order", zeros, shuffled, "qlinear_cuda"),
    ):
        linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
        linear.weight.data = clamp_to_4_bits(zero, group)
        layer = load(module, gptq / f"{module}.py").QuantLinear(
            4, GROUP, INPUTS, OUTPUTS, False, weight_dtype=torch.float16
        )
        layer.pack(linear, scales.clone(), zero.clone(), group.to(torch.int32))
        layer.scales = layer.scales.float()  # multiplies in float32, so that the values are exact
        values = layer(torch.eye(INPUTS)).T
        layer.scales = layer.scales.half()
        add(name, layer, values)

    # Stubs for the modules that AutoAWQ's modules import and that need a GPU or other packages.
    helpers = types.ModuleType("awq.utils.module")
    helpers.try_import = lambda name: (None, "")
    device = types.ModuleType("awq.utils.utils")
    device.get_best_device = lambda: "cpu"
    triton = types.ModuleType("awq.modules.triton.gemm")
    triton.awq_gemm_triton = triton.awq_dequantize_triton = None
    sys.modules |= {helpers.__name__: helpers, device.__name__: device, triton.__name__: triton}
    packing = load("awq.utils.packing_utils", awq / "utils/packing_utils.py")
    gemm = load("awq.modules.linear.gemm", awq / "modules/linear/gemm.py")
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = clamp_to_4_bits(zeros, in_order)
    layer = gemm.WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    add("awq", layer, packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, GROUP).T)
    np.savez_compressed(
        Path(__file__).with_name("grouped_golden.npz"),
        **{name: value.detach().numpy() for name, value in arrays.items()},
    )
    for name, value in arrays.items():
        print(name, value.dtype, tuple(value.shape))


if __name__ == "__main__":
    main()
