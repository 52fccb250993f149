"""YAML as a spec may use it, the same for a file on the command line and for a request's body."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import yaml


class StrictLoader(yaml.SafeLoader):
    """YAML's safe subset; a key given twice is an error, a date is the text that was written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a field's name must be a word", key.start_mark
                )
            name = key.value
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """What its tag or its form promises and a value does not keep is an error of the text."""
        try:
            return cast(Any, super()).construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, "a value does not fit its type", node.start_mark
            ) from error


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
