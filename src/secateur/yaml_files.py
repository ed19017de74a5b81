"""YAML that people write: words are words, numbers are numbers, and a key stands once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from secateur.errors import InvalidArgument

_BOOL, _INT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int"


def load_yaml(path: str | Path) -> object:
    """The content of a YAML file, a mapping if it is empty.

    Raises:
        InvalidArgument: if the file cannot be read, or gives a key twice.
    """
    try:
        data = yaml.load(Path(path).read_text(), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidArgument(f"cannot read the configuration {str(path)!r}: {error}") from error
    return {} if data is None else data


class _Loader(yaml.SafeLoader):
    """Reads plain words and whole numbers as YAML 1.2 does, and takes each key once.

    PyYAML would read ``off`` as False and ``2:4`` as 124; and of a key that is given twice it would take the
    last value and say nothing.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the loader does, for keys that differ."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            problem = f"key {twice!r} appears twice; keep one of them"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    """The number in decimals; PyYAML takes 010 for eight."""
    return int(loader.construct_scalar(node))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (_BOOL, _INT)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_INT, _whole)
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
