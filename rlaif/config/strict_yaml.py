"""YAML for configurations: duplicate keys are errors, and octal numbers, sexagesimal numbers and dates are text."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


def load(text: str) -> Any:
    """Parse a YAML document. Raises yaml.YAMLError if it is not valid or has a duplicate key.

    PyYAML follows YAML 1.1, which reads `017` as 15 and `1:30` as 90, and keeps the last of two equal keys.
    """
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
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in lines:
                problem = f"duplicate key `{key.value}` (the first is in line {lines[key.value]})"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_FLOAT = r"^([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
_Loader.add_implicit_resolver(_NUMBERS[1], re.compile(_FLOAT), list("-+.0123456789"))
