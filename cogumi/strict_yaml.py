"""Reads YAML into a strict pydantic model; what is wrong becomes one line with file, line and mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cogumi.errors import RunError, UsageError, nearest

# The C parser where PyYAML has it: the registry's files take 20 ms instead of 500.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_DEEPEST = 200
_SHALLOW = 2 * _DEEPEST
"""Characters: a shorter text cannot be nested deeper."""
_MOST_VALUES = 1_000_000

Model = TypeVar("Model", bound=BaseModel)


def load_strict(path: Path, model: type[Model]) -> Model:
    """Parse ``path`` and validate it as ``model``.

    Raises ``UsageError`` for a missing file or content that does not fit the model, ``RunError`` for a file
    that is no YAML at all.
    """
    data, root = read_mapping(path)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, model, root)}") from None


def read_mapping(path: Path) -> tuple[dict[str, Any], yaml.Node]:
    """Parse ``path`` as one YAML mapping; return its content and the nodes, which know their lines.

    Raises like ``load_strict``; a key that stands twice is an error, where YAML would keep the last one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        _refuse_depth(text, path)
        loader = _Loader(text)
        root = loader.get_single_node()
        data: Any = loader.construct_document(root) if root is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise RunError(f"{path}: {line}no valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        # A date of month 13, `!!int abc`: the constructor's own errors, which know no line.
        told = str(error)[:120] or type(error).__name__
        raise RunError(f"{path}: a value that YAML cannot read: {told}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path}: line 1: must be a mapping of keys to values")
    _expanded(root, path, {})
    return data, root


def _refuse_depth(text: str, path: Path) -> None:
    """Raise for nesting that would overflow the C parser's stack, and with it end the process."""
    if len(text) <= _SHALLOW:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                line = event.start_mark.line + 1 if event.start_mark is not None else "?"
                raise RunError(f"{path}: line {line}: nested more than {_DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _expanded(node: yaml.Node, path: Path, known: dict[int, int | None]) -> int:
    """Return how many values a node is with its aliases written out; ``known`` has the nodes seen so far.

    Raises for a key that a mapping holds twice (YAML would keep the last one silently), for a node within
    itself, and where the aliases come to more values than any file of ours has.
    """
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise RunError(f"{path}: line {node.start_mark.line + 1}: an alias within its own anchor")
        return size
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise UsageError(
                    f"{path}: line {key.start_mark.line + 1}: the key '{key.value}' stands here twice"
                )
            seen.add(str(key.value))
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_expanded(child, path, known) for child in children)
    if size > _MOST_VALUES:
        raise RunError(f"{path}: line {node.start_mark.line + 1}: its aliases come to {size:,} values")
    known[id(node)] = size
    return size


def explain(
    error: ValidationError,
    model: type[BaseModel],
    root: yaml.Node | None = None,
    at: tuple[int | str, ...] = (),
) -> str:
    """Tell the first problem of a validation error in one line, with its line where the nodes are known.

    ``at`` is where the validated mapping stands below ``root``.
    """
    # A misspelt key is also a missing one; the spelling is what to mend.
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    loc = first["loc"]
    where = ".".join(str(part) for part in loc)
    line = f"line {_line_of(root, (*at, *loc))}: " if root is not None else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        return f"{line}unknown key {where}{nearest(str(loc[-1]), known)}"
    if first["type"] == "missing":
        return f"{line}the key {where} is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = first["input"]
    if first["type"] == "float_type" and isinstance(value, str) and _is_number(value):
        message = "YAML reads this as text; write it with a point and a sign, as 540.0e+6, or as plain digits"
    return f"{line}{where}: {message}{_shown(value)}" if where else f"{line}{message}"


def _shown(value: Any) -> str:
    return f" (found {value!r})" if isinstance(value, str | int | float | bool) else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line_of(node: yaml.Node, loc: tuple[int | str, ...]) -> int:
    """Return the line (from 1) of the deepest node on the way to ``loc``."""
    line = node.start_mark.line + 1
    for part in loc:
        step: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, step = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            step = node.value[part]
            line = step.start_mark.line + 1
        if step is None:
            return line
        node = step
    return line


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that ``model`` knows at ``loc``, following nested models through lists and unions."""
    current: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int):
            continue
        if current is None:
            return []
        field = current.model_fields.get(part)
        if field is not None:
            # Where there is no such field, the part is a key of a mapping, whose values have the same model.
            current = _model_in(field.annotation)
    return list(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
