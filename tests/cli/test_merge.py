"""`puna merge` as a command."""

from __future__ import annotations

import json

from tests.adapters.cases import write_case
from tests.cli.test_cli import as_json, run
from tests.convert.test_merging import GOLDEN, golden_adapter


def run_merge(*arguments):
    return run("merge", str(GOLDEN), *map(str, arguments))


def test_the_report_lists_errors_and_nll(tmp_path):
    adapter = golden_adapter(tmp_path / "adapter")
    result = run_merge(adapter, tmp_path / "merged.gguf", "--quantize", "q8_0")
    assert result.exit_code == 0, result.stderr
    assert "changed    14 matrices" in result.stdout
    assert "self_attn.q_proj.weight" in result.stdout and "error" in result.stdout and "NLL " in result.stdout
    assert (tmp_path / "merged.gguf").exists()


def test_json_and_no_verify(tmp_path):
    adapter = golden_adapter(tmp_path / "adapter")
    output = as_json("merge", str(GOLDEN), str(adapter), str(tmp_path / "merged"), "--no-verify")
    assert output["nll"] == {} and output["verified"] is None
    assert len(output["tensors"]) == 14 and all(item["change"] > 0 for item in output["tensors"].values())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["hidden_size"] == 64


def test_errors_name_the_fault(tmp_path):
    result = run_merge(tmp_path / "absent", tmp_path / "merged")
    assert result.exit_code == 1 and "no such file or folder" in result.stderr
    result = run_merge(write_case(tmp_path / "adapter", "lora"), tmp_path / "merged")
    assert result.exit_code == 1 and "Use the adapter's base model" in result.stderr
    assert run_merge(tmp_path, tmp_path / "merged", "--quantize", "q9").exit_code == 2
