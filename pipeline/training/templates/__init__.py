"""Training chat templates: a model's own template with marks around what the assistant says.

A template is found by its text, and the marks are put into that very text, so that prompts stay what the
model was made with. The marks are transformers' ``{% generation %}`` blocks; each takes in the assistant's
words and the token that ends its turn. Not covered: templates that are not listed, edited ones among them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cogumi.errors import RunError

_OPEN, _CLOSE = "{%- generation %}", "{%- endgeneration %}"


@dataclass(frozen=True, slots=True)
class MarkedFamily:
    """Models that share a chat template, and where the assistant's words stand in it."""

    name: str
    sha256: str
    """Of the template's text, as ``normalised`` returns it."""
    edits: tuple[tuple[str, str], ...]
    """What is replaced by what; each occurs exactly once."""


# In all of Llama's templates one expression writes role, words and end of any turn.
_LLAMA_TURN = (
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim"
    " + '<|eot_id|>' }}",
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    f"{_OPEN}{{{{- message['content'] | trim + '<|eot_id|>' }}}}{_CLOSE}"
    "{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}",
)
_PYTHON_CALL = '{{- "<|python_tag|>" + tool_call.name + ".call(" }}'
_PYTHON_END = '{{- ")" }}'
_JSON_CALL = "{{- '{\"name\": \"' + tool_call.name + '\", ' }}"
_JSON_END = '{{- "}" }}'
_END_OF_MESSAGE = '{{- "<|eom_id|>" }}'
_END_OF_CALL = '{%- else %}\n            {{- "<|eot_id|>" }}'
_END_OF_JSON_CALL = '{{- "}" }}\n        {{- "<|eot_id|>" }}'

# Sources of the texts: tests/pipeline/fixtures/README.md.
FAMILIES = (
    MarkedFamily(
        "Llama-3.1-Instruct",
        "93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7",
        (
            _LLAMA_TURN,
            (_PYTHON_CALL, _OPEN + _PYTHON_CALL),
            (_PYTHON_END, _PYTHON_END + _CLOSE),
            (_JSON_CALL, _OPEN + _JSON_CALL),
            (_JSON_END, _JSON_END + _CLOSE),
            (_END_OF_MESSAGE, _OPEN + _END_OF_MESSAGE + _CLOSE),
            (_END_OF_CALL, "{%- else %}\n            " + _OPEN + '{{- "<|eot_id|>" }}' + _CLOSE),
        ),
    ),
    MarkedFamily(
        "Llama-3.2-Instruct",
        "d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f",
        (
            _LLAMA_TURN,
            (_JSON_CALL, _OPEN + _JSON_CALL),
            (_END_OF_JSON_CALL, _END_OF_JSON_CALL + _CLOSE),
        ),
    ),
    MarkedFamily(
        "SmolLM2-Instruct",
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
        (
            (
                "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
                "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
                "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
                "{% else %}{{ message['content'] + '<|im_end|>' + '\n'}}{% endif %}",
            ),
        ),
    ),
)


def normalised(template: str) -> str:
    """Return a template without what files and formats change of it: line ends and outer white space."""
    return template.replace("\r\n", "\n").replace("\r", "\n").strip()


def family_of(template: str) -> MarkedFamily | None:
    """Return the family whose own template this is, to the letter; None for any other text."""
    found = hashlib.sha256(normalised(template).encode()).hexdigest()
    return next((family for family in FAMILIES if family.sha256 == found), None)


def training_template(template: str) -> str | None:
    """Return a model's own chat template with ``{% generation %}`` around the assistant's words.

    It renders to the same text as ``template`` does. None where the template is none of ``FAMILIES``.
    """
    family = family_of(template)
    if family is None:
        return None
    # Jinja reads \r\n and \r as \n (jinja2.lexer), so that this changes nothing that is rendered.
    text = template.replace("\r\n", "\n").replace("\r", "\n")
    for old, new in family.edits:
        if text.count(old) != 1:
            raise RunError(f"the marks of {family.name} do not fit its template; report this as a bug")
        text = text.replace(old, new)
    return text
