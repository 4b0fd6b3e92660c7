"""Matrices that products read in panels: stored, trained and packed values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from puna.native import training as native
from puna.training.forward.fused import matrices, products
from puna.training.forward.fused.matrices import (
    Packed,
    Stored,
    Variable,
    matrix_of,
    packed_head,
    product_with,
    product_with_rows,
)
from tests.training.forward.test_decoding import packed

FORMS = (("q4_K", 33), ("q4_0", 5), ("q5_0", 9), ("q6_K", 18))  # q5_0 has no native decoder
ROWS, COLUMNS = sum(rows for _, rows in FORMS), 512


def layers_of_blocks():
    return [SimpleNamespace(packed=packed(form, rows, seed)) for seed, (form, rows) in enumerate(FORMS)]


def layers_of_values(values, **options):
    layers = []
    for part in torch.split(values, [rows for _, rows in FORMS]):
        layer = torch.nn.Linear(COLUMNS, len(part), bias=False, **options)
        layer.weight.data = part.clone()
        layers.append(layer)
    return layers


@pytest.fixture
def values():
    return torch.cat([layer.packed.dequantize(torch.bfloat16) for layer in layers_of_blocks()])


@pytest.fixture(params=["packed", "stored", "joined", "trained"])
def matrix(request, values):
    if request.param == "packed":
        return Packed(layers_of_blocks(), torch.bfloat16)
    if request.param == "stored":
        return Stored(values, torch.bfloat16)
    layers = layers_of_values(values)
    for layer in layers:
        layer.weight.requires_grad_(request.param == "trained")
    return matrix_of(layers, torch.bfloat16)


@pytest.fixture
def few_values(monkeypatch):
    """Panels of seven rows, in float32."""
    monkeypatch.setattr(matrices, "PANEL_VALUES", 7 * COLUMNS)
    monkeypatch.setattr(products, "has_bf16_products", lambda: False)


def test_panels_have_all_values_in_order(matrix, values, few_values):
    assert matrix.rows == ROWS
    panels = [(rows, panel.clone()) for rows, panel in matrix.panels()]
    assert [rows.start for rows, _ in panels] == [0, *(rows.stop for rows, _ in panels[:-1])]
    assert panels[-1][0].stop == ROWS and all(1 <= len(panel) == rows.stop - rows.start <= 7 for rows, panel in panels)
    assert torch.equal(torch.cat([panel for _, panel in panels]), values.float())


@pytest.mark.parametrize("is_small", [False, True])
def test_products_in_panels_are_those_of_the_values(matrix, values, is_small, few_values, monkeypatch):
    if not is_small:
        monkeypatch.setattr(matrices, "PANEL_VALUES", 1 << 22)
        assert len(list(matrix.panels())) == 1
    x, g = torch.randn(6, COLUMNS), torch.randn(6, ROWS)
    expected, expected_rows = x.double() @ values.double().t(), g.double() @ values.double()
    assert (product_with(x, matrix) - expected).norm() < 1e-6 * expected.norm()
    assert (product_with_rows(g, matrix) - expected_rows).norm() < 1e-6 * expected_rows.norm()
    if products.writes_products(torch.float32):
        out = torch.empty(6, ROWS)
        assert product_with(x, matrix, out) is out
        assert (out - expected).norm() < 1e-6 * expected.norm()


def test_products_in_the_type_of_the_values_have_one_panel(matrix, values, few_values, monkeypatch):
    monkeypatch.setattr(products, "has_bf16_products", lambda: True)
    ((rows, panel),) = matrix.panels()
    assert rows == slice(0, ROWS) and torch.equal(panel, values)


def test_changes_of_a_trained_matrix_are_seen(values, few_values):
    layers = layers_of_values(values)
    matrix = Variable(layers, torch.bfloat16)
    with torch.no_grad():
        layers[1].weight.fill_(3)
    assert bool((torch.cat([panel for _, panel in matrix.panels()])[33:38] == 3).all())


@pytest.mark.parametrize("form", ["q4_K", "q5_0"])
@pytest.mark.parametrize("is_fast", [False, True])
def test_a_packed_head_is_stored_unless_its_values_are_converted_for_each_product(form, is_fast, monkeypatch):
    monkeypatch.setattr(products, "has_bf16_products", lambda: is_fast)
    layer = SimpleNamespace(packed=packed(form, 40, 1))
    head = packed_head(layer, torch.bfloat16)
    decodes = not is_fast and form in native.DECODED and native.is_available()
    assert isinstance(head, Packed if decodes else Stored)
    expected = layer.packed.dequantize(torch.bfloat16).float()
    assert torch.equal(torch.cat([panel.float() for _, panel in head.panels()]), expected)
