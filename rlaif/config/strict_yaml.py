"""YAML for configurations: duplicate keys are errors, and octal numbers, sexagesimal numbers and dates are text."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """Parse a YAML document. Raises yaml.YAMLError if it is not valid or has a duplicate key."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="brackets nested too deeply") from error
    except (ValueError, AttributeError) as error:
        raise yaml.MarkedYAMLError(problem="a value that does not fit its tag, or a number too long") from error


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; raise ConstructorError for a duplicate key, of which PyYAML would keep the last."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in lines:
                problem = f"duplicate key `{key.value}` (the first is in line {lines[key.value]})"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, which reads `017` as 15, `1:30` as 90 and `2024-01-01` as a date. Narrower resolvers replace
# those of numbers, and there is none for dates; those of null and truth values stay.
_INTEGER, _FLOAT, _DATE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


def _other_resolvers() -> dict[str, list]:
    others = {}
    for first_character, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        others[first_character] = [pair for pair in resolvers if pair[0] not in (_INTEGER, _FLOAT, _DATE)]
    return others


_Loader.yaml_implicit_resolvers = _other_resolvers()
_INTEGERS = r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"
_Loader.add_implicit_resolver(_INTEGER, re.compile(_INTEGERS), list("-+0123456789"))
_FLOATS = r"^([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
_Loader.add_implicit_resolver(_FLOAT, re.compile(_FLOATS), list("-+.0123456789"))
