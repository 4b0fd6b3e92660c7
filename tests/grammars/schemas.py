"""Small JSON schemas with valid and invalid documents, and schemas that are refused."""

from __future__ import annotations

from typing import Any

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}

SCHEMAS: dict[str, tuple[Any, list[str], list[str]]] = {
    "any object": (True, ["{}", '{"a":[1,{"b":null}]}'], ["[]", "1", '{"a":1', '{"a": 1}', " {}", "{} "]),
    "null": ({"type": "null"}, ["null"], ["nul", "0", '"null"', ""]),
    "boolean": ({"type": "boolean"}, ["true", "false"], ["True", "1", "null"]),
    "integer": ({"type": "integer"}, ["0", "-7", "123"], ["01", "+1", "1.5", "-", '"1"']),
    "number": ({"type": "number"}, ["0", "-1.5", "2e3", "1E-2"], [".5", "1.", "NaN", "Infinity", "0x1"]),
    "range": ({"type": "integer", "minimum": -3, "maximum": 12}, ["-3", "0", "12"], ["-4", "13", "100"]),
    "open range": (
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
        ["1", "9"],
        ["0", "10", "-1"],
    ),
    "range of numbers": (
        {"type": "number", "minimum": 0.5, "maximum": 2.25},
        ["0.5", "1", "2.25"],
        ["0.49", "2.26", "-1", "3"],
    ),
    "excluded bounds": (
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ["0.5", "0.001", "0.99"],
        ["0", "0.0", "-0", "1", "1.0"],
    ),
    "excluded integer farther from 0": (
        {"anyOf": [{"type": "number", "minimum": 0.5, "exclusiveMaximum": 1},
                   {"type": "number", "exclusiveMinimum": -2, "maximum": -1.25}]},
        ["0.5", "0.99", "-1.25", "-1.99"],
        ["1", "1.0", "-2", "-2.0", "-1.2"],
    ),
    "excluded fractions": (
        {"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.75},
        ["0.51", "0.75"],
        ["0.5", "0.50", "0.76"],
    ),
    "properties named as keywords": (
        {"type": "object", "properties": {"exclusiveMinimum": {"const": 0}, "maximum": {"const": 0.5}},
         "required": ["exclusiveMinimum", "maximum"], "additionalProperties": False},
        ['{"exclusiveMinimum":0,"maximum":0.5}'],
        ["{}"],
    ),
    "multiple": ({"type": "integer", "multipleOf": 7}, ["0", "7", "-14", "49"], ["1", "8", "50"]),
    "string": ({"type": "string"}, ['""', '"é\\n"', '"日本"', '"a\\"b"'], ["a", '"a', '"a\n"', '"\\x"']),
    "length": ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"éö日"'], ['"a"', '"abcd"', '""']),
    "pattern": ({"type": "string", "pattern": "^[a-c]+\\d$"}, ['"abc1"'], ['"1"', '"abcd1"', '"abc1 "', '"abc٣"']),
    "pattern inside": ({"type": "string", "pattern": "b"}, ['"b"', '"abc"'], ['"a"', '""']),
    "date": ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-2-28"', '"2024-13-01"', '"today"']),
    "uuid": (
        {"type": "string", "format": "uuid"},
        ['"123e4567-e89b-12d3-a456-426614174000"'],
        ['"123e4567e89b12d3a456426614174000"', '"123e4567-e89b-12d3-a456-42661417400g"'],
    ),
    "ipv4": ({"type": "string", "format": "ipv4"}, ['"10.0.0.255"'], ['"10.0.0.256"', '"10.0.0"']),
    "enum": ({"enum": ["a", 1, None, [1, "x"], {"k": True}]}, ['"a"', "1", "null", '[1,"x"]', '{"k":true}'],
             ['"b"', "2", "true", '["x",1]', '{"k":false}']),
    "const": ({"const": {"b": 1, "a": "é"}}, ['{"b":1,"a":"é"}'], ['{"b":2,"a":"é"}', "{}", '{"b":1}']),
    "array": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        ["[1]", "[1,2,3]"],
        ["[]", "[1,2,3,4]", '["1"]', "[1, 2]", "[1,]"],
    ),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
        ['["a",1]'],
        ['["a"]', '[1,"a"]', '["a",1,2]'],
    ),
    "object": (POINT, ['{"x":1}', '{"x":1,"y":2}'],
               ["{}", '{"y":2}', '{"x":1,"z":2}', '{"x":"1"}', '{"x":1,"x":2,"y":3}']),
    "additional properties": (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
        ["{}", '{"a":null}', '{"b":1}', '{"a":null,"b":1,"c":2}'],
        ['{"a":1}', '{"b":null}', '{"b":"1"}'],
    ),
    "pattern properties": (
        {"type": "object", "patternProperties": {"^n[0-9]$": {"type": "integer"}}, "additionalProperties": False},
        ["{}", '{"n1":1}', '{"n1":1,"n2":2}'],
        ['{"n":1}', '{"n1":"a"}', '{"m1":1}', '{"n11":1}'],
    ),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, ["12", '"a"'],
              ['"ab"', "null", "1.5"]),
    "oneOf of disjoint types": ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ['"a"', "true"]),
    "allOf": (
        {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]},
        ["3", "5"],
        ["2", "6"],
    ),
    "types": ({"type": ["integer", "null"]}, ["1", "null"], ['"a"', "1.5", "true"]),
    "reference": (
        {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}}},
        ["[]", "[[],[[]]]"],
        ["[1]", "[[],[],[]]", "{}"],
    ),
    "nested": (
        {"type": "object", "properties": {"points": {"type": "array", "items": POINT}}, "required": ["points"],
         "additionalProperties": False},
        ['{"points":[]}', '{"points":[{"x":1},{"x":2,"y":3}]}'],
        ["{}", '{"points":[{}]}', '{"points":[{"x":1}'],
    ),
    "annotations": ({"type": "null", "title": "t", "description": "d", "default": 1}, ["null"], ["1"]),
    "draft 4, included bound": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "type": "number", "minimum": 0, "maximum": 0.5,
         "exclusiveMinimum": False},
        ["0", "0.5"],
        ["0.6", "-0.1"],
    ),
    "draft 4": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True, "maximum": 9},
        ["4"],
        ["3", "2", "10"],
    ),
}  # fmt: skip
"""Name: (schema, texts of valid documents, other texts). Keys are in the order of the schema."""

REFUSED: dict[str, Any] = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "not": {"not": {"type": "null"}},
    "if": {"if": {"type": "null"}, "then": {}},
    "contains": {"contains": {"type": "integer"}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "a"}},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "strin": {"type": "strin"},
    "foo": {"type": "string", "format": "foo"},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    r"http://example\.com": {"$ref": "http://example.com/schema"},
    r"minLength \(5\)": {"type": "string", "minLength": 5, "maxLength": 2},
    "required property 'a'": {"type": "object", "required": ["a"], "additionalProperties": False},
    "x-guidance": {"x-guidance": {"lenient": True}, "type": "null"},
    "12345678901234567890": {"const": 12345678901234567890},
    "exclusiveMinimum 0 and another bound": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    "exclusiveMinimum 2": {"allOf": [{"type": "number", "exclusiveMinimum": 2.0}, {"exclusiveMaximum": 2.75}]},
    "exclusiveMaximum 0": {"items": {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}},
    "exclusiveMinimum 7": {
        "$schema": "http://json-schema.org/draft-04/schema#", "type": "number", "minimum": 7, "maximum": 7.5,
        "exclusiveMinimum": True,
    },
    "9007199254740993": {"type": "integer", "minimum": 9007199254740993},
}  # fmt: skip
"""A part of the error's message: the schema that is refused with it."""
