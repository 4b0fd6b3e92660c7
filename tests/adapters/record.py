"""Records what PEFT saves and computes for the cases of `cases.py`: `python -m tests.adapters.record` (needs peft)."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.adapters.cases import CASES, IDS, LOGITS, RECORDED, base_tensors, weights, write_adapter, write_base


def base_model(folder: Path) -> Any:
    """Returns transformers' model of a folder."""
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    classes = {"LlamaForCausalLM": LlamaForCausalLM, "LlamaForSequenceClassification": LlamaForSequenceClassification}
    return classes[name].from_pretrained(folder).eval()


def logits(folder: Path, adapter: Path) -> np.ndarray:
    """Returns the logits that PEFT computes for IDS."""
    import peft
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="(?s).*missing adapter keys")
        model = peft.PeftModel.from_pretrained(base_model(folder), str(adapter)).eval()
        output: np.ndarray = model(input_ids=torch.tensor(IDS)).logits[0].numpy()
    return output


def saved(folder: Path, case: str, out: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Returns the configuration, and the shapes of the tensors, that PEFT saves for a case."""
    import peft
    import safetensors.numpy

    _, name, arguments = CASES[case]
    peft.get_peft_model(base_model(folder), getattr(peft, name)(**arguments)).save_pretrained(out)
    config = json.loads((out / "adapter_config.json").read_text())
    for key, value in config.items():
        if isinstance(value, list):
            config[key] = sorted(value)  # PEFT holds them as sets
    config["base_model_name_or_path"] = "example/base"
    tensors = safetensors.numpy.load_file(out / "adapter_model.safetensors")
    return config, {key: list(tensor.shape) for key, tensor in sorted(tensors.items())}


def main() -> None:
    records, results = {}, {}
    for case, (base, _, _) in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_base(Path(temporary) / "base", base)
            config, shapes = saved(folder, case, Path(temporary) / "saved")
            adapter = Path(temporary) / "adapter"
            write_adapter(adapter, config, weights(case, shapes, base_tensors(base)))
            records[case] = {"config": config, "shapes": shapes}
            results[case] = logits(folder, adapter)
            print(case, len(shapes), results[case].std())
    lines = ",\n".join(f'"{case}": {json.dumps(record)}' for case, record in records.items())
    RECORDED.write_text(f"{{\n{lines}\n}}\n")
    np.savez_compressed(LOGITS, **results)


if __name__ == "__main__":
    main()
