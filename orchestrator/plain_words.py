"""Pydantic's errors in plain words: what is wrong, and the fix where there is one to give.

Owns every word of them that reaches people, from a request, a setting or an option. Pure; imports
nothing of Longhaul.
"""

from __future__ import annotations

from typing import Any

_NAME = "^[a-z][a-z0-9-]"
_NAME_RULE = "lower-case letters, digits and dashes, a letter first, at most 40 characters"


def unmarked(message: str) -> str:
    """Without the mark that pydantic puts before the words of a check of our own, or of Typer's."""
    return message.removeprefix("Value error, ")


def in_words(detail: Any) -> tuple[str, str | None]:
    """What is wrong, and the fix where there is one to give."""
    kind, context, given = detail["type"], detail.get("ctx", {}), _number(detail.get("input"))
    match kind:
        case "missing":
            return "This field is required.", "Add it."
        case "extra_forbidden":
            return "There is no such field.", "Remove it."
        case "greater_than":
            return f"Must be greater than {context['gt']}{given}.", None
        case "greater_than_equal":
            return f"Must be {context['ge']} or more{given}.", None
        case "less_than":
            return f"Must be less than {context['lt']}{given}.", None
        case "less_than_equal":
            return f"Must be {context['le']} or less{given}.", None
        case "int_type" | "int_parsing" | "int_from_float":
            return f"Must be a whole number{given}.", None
        case "float_type" | "float_parsing":
            return "Must be a number.", None
        case "finite_number":
            return "Must be a finite number.", None
        case "bool_type" | "bool_parsing":
            return "Must be true or false.", None
        case "string_type":
            return "Must be text.", None
        case "literal_error" | "enum":
            return f"Must be {context['expected']}.", None
        case "union_tag_invalid":
            return f"'kind' must be one of {context['expected_tags']}.", None
        case "union_tag_not_found":
            return "Says not what kind it is.", "Add 'kind'."
        case "string_pattern_mismatch" if not context["pattern"].startswith(_NAME):
            return f"Does not have the form {context['pattern']}.", None
        case "string_pattern_mismatch":
            return "Does not have the form of a name.", f"Names are {_NAME_RULE}."
        case "tuple_type" | "list_type" | "set_type":
            return "Must be a list.", "Write it like [a, b]."
        case "model_type" | "dict_type" | "model_attributes_type":
            return "Must be an object with named fields.", None
        case "value_error":
            words = unmarked(str(detail["msg"]))
            what, _, fix = words.partition("; ")
            return _sentence(what), _sentence(fix) if fix else None
        case _:
            return f"{detail['msg']}.", None


def _sentence(words: str) -> str:
    first = words.split(" ", 1)[0]
    named = "." in first or "_" in first  # a field's name is written as it must be typed
    return (words if named else words[:1].upper() + words[1:]) + "."


def _number(given: object) -> str:
    if isinstance(given, bool) or not isinstance(given, int | float):
        return ""
    return f", and is {given}"
