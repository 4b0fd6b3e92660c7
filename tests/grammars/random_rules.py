"""Random JSON schemas, regular expressions and choices."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["a", "name", "x y", "é", "k1", "日本", 'q"uote', "back\\slash", "new\nline", ""]


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Returns a schema of supported keywords."""
    simple = ["integer", "number", "multiple", "string", "pattern", "enum", "boolean", "types"]
    nested = ["array", "tuple", "object", "object", "object", "anyOf"]
    kind = rng.choice(simple if depth > 2 else simple + nested)
    if kind == "integer":
        return {"type": "integer", "minimum": rng.randint(-100, 10), "maximum": rng.randint(11, 1000)}
    if kind == "number":
        return {"type": "number", "minimum": rng.choice([-2.5, 0, 0.001]), "exclusiveMaximum": rng.choice([1, 7.25])}
    if kind == "multiple":
        return {"type": "integer", "multipleOf": rng.choice([1, 2, 3, 7, 10])}
    if kind == "string":
        return {"type": "string", "minLength": rng.randint(0, 5), "maxLength": rng.randint(5, 12)}
    if kind == "pattern":
        patterns = ["^[a-z]{2,4}$", r"^\d{3}-\d{2}$", "^(foo|ba[rz])+$", "x", r"^[^\"\\]*$", "^a.c$"]
        return {"type": "string", "pattern": rng.choice(patterns)}
    if kind == "enum":
        values = [1, "a", None, True, [1, 2], {"z": 1.5}, 'é\n"\\', -0.5, ""]
        return {"enum": rng.sample(values, rng.randint(1, 4))}
    if kind == "boolean":
        return {"type": "boolean"}
    if kind == "types":
        return {"type": rng.sample(["null", "integer", "boolean"], 2)}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": rng.randint(0, 3)}
    if kind == "tuple":
        items = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    names = rng.sample(_NAMES, rng.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": False,
    }


def random_expression(rng: random.Random, depth: int = 0) -> str:
    """Returns a regular expression that has the same meaning in Python and in llguidance.

    Only in llguidance does \\w match combining marks.
    """
    atoms = ["a", "b", " ", "é", "日", "-", "/", "yes", r"\.", r"\\", '"', r"\{", "_", "🦙", ".", r"\t", r"\x41",
             "[a-c]", r"\d", "[^a-z]", r"\s", "[é-ü]", r"[ab\-/]", r"\*", r"\|"]  # fmt: skip
    kind = rng.choice(["atom", "either", "sequence", "repeat", "optional"]) if depth < 4 else "atom"
    if kind == "atom":
        return rng.choice(atoms)
    first = random_expression(rng, depth + 1)
    if kind == "either":
        return f"(?:{first}|{random_expression(rng, depth + 1)})"
    if kind == "sequence":
        return first + random_expression(rng, depth + 1)
    return f"({first})" + (rng.choice(["+", "*", "{2,3}", "{2}"]) if kind == "repeat" else "?")


def random_choices(rng: random.Random) -> list[str]:
    """Returns one to five texts."""
    parts = ["a", "b", "yes", "é", "日", "\n", '"', "(", "\\", "🦙", "."]
    return ["".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(rng.randint(1, 5))]
