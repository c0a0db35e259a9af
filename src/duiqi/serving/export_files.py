"""What stands beside exported weights: a chat template in Jinja, a model card, a Modelfile for Ollama."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from duiqi.data.named_templates import NamedStyle
from duiqi.data.templates import TOKENIZER_TEMPLATE, Template, render_chat
from duiqi.models.card import ModelCard
from duiqi.types import Message

_TALK = (
    Message("user", "你好"),
    Message("assistant", "Hello."),
    Message("user", "一加一？"),
    Message("assistant", "二。"),
    Message("user", "And two?"),
)
"""Conversations on which a chat template is compared with the template that it stands for."""


def with_chat_template(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, ...]:
    """Give the tokenizer a chat template that writes what the model was trained with. Returns what is to be said."""
    if template.name == TOKENIZER_TEMPLATE and not template.system and not template.source_prefix:
        return ()
    if not isinstance(template.style, NamedStyle):
        return (f"the template {template.name} has no chat template in Jinja: duiqi chat knows it, others do not",)
    before = tokenizer.chat_template
    tokenizer.chat_template = as_jinja(template, template.style, str(tokenizer.bos_token or ""))
    for length in (1, 3, 5):
        for system in ((), (Message("system", "Be brief."),)):
            talk = [*system, *_TALK[:length]]
            if rendered(tokenizer, talk) != written(template, tokenizer, talk):
                tokenizer.chat_template = before
                return (f"the template {template.name} could not be written as a chat template in Jinja",)
    return ()


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """A prompt as the tokenizer's chat template writes it."""
    talk = [{"role": message.role, "content": message.content} for message in messages]
    return render_chat(tokenizer, talk, expects_answer=True)


def written(template: Template, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """A prompt as it was in training, as text: with what begins it, and stop tokens behind learned answers."""
    parts = [tokenizer.decode(list(template.bos_token_ids))]
    for segment in template.prompt_segments(messages):
        parts.append(segment.text + (template.stop_tokens[0] if segment.learned else ""))
    return "".join([*parts, tokenizer.decode(list(template.opening_token_ids))])


def as_jinja(template: Template, style: NamedStyle, bos_token: str) -> str:
    """The Jinja text of a named template."""
    stop = template.stop_tokens[0] if style.learns_history else ""
    opening = (bos_token if template.bos_token_ids else "") + template.source_prefix
    first = "{%- if loop.first and system -%}" + _expression(style.first, style.first_round)
    if style.only_turn is not None:
        alone = "{%- if messages | length == 1 and not system -%}" + _expression(style.only_turn)
        first = alone + first.replace("{%- if", "{%- elif", 1)
    return (
        f"{{%- set system = {(template.system or style.default_system)!r} -%}}"
        "{%- if messages[0].role == 'system' -%}"
        "{%- set system = messages[0].content -%}{%- set messages = messages[1:] -%}"
        "{%- endif -%}"
        f"{{{{- {opening!r} -}}}}"
        "{%- for message in messages -%}{%- if message.role == 'user' -%}"
        f"{first}{{%- else -%}}{_expression(style.turn, style.first_round)}{{%- endif -%}}"
        "{%- else -%}{{- message.content -}}"
        f"{{%- if loop.last -%}}{{{{- {template.stop_tokens[0]!r} -}}}}"
        f"{{%- else -%}}{{{{- {stop + style.between!r} -}}}}{{%- endif -%}}"
        "{%- endif -%}{%- endfor -%}"
    )


def _expression(frame: str, first_round: int = 0) -> str:
    """A Python format string as a Jinja expression."""
    text = frame.format(
        system="\x00system\x00",
        content="\x00message.content\x00",
        round=f"\x00loop.index0 // 2 + {first_round}\x00",
    )
    parts = [f"({part})" if index % 2 else repr(part) for index, part in enumerate(text.split("\x00")) if part]
    return "{{- " + " ~ ".join(parts) + " -}}"


def modelfile(template: Template) -> str:
    """A Modelfile with which `ollama create` takes the directory it stands in."""
    user = Message("user", "{{ .Prompt }}")
    plain = "".join(segment.text for segment in template.prompt_segments([user]))
    with_system = "".join(
        segment.text for segment in template.prompt_segments([Message("system", "{{ .System }}"), user])
    )
    stops = "\n".join(f'PARAMETER stop "{token}"' for token in template.stop_tokens)
    whole = f"{{{{ if .System }}}}{with_system}{{{{ else }}}}{plain}{{{{ end }}}}{{{{ .Response }}}}"
    return f'FROM .\nTEMPLATE """{whole}"""\n{stops}\n'


def model_card(name: str, parents: Sequence[str], model: PreTrainedModel, card: ModelCard, gap: float) -> str:
    """A README.md: what it is made of and how to talk to it."""
    base, *adapters = parents
    sizes = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    made = "\n".join(f"{index}. `{path}`" for index, path in enumerate((base, *adapters), start=1))
    template = card.template["name"] if card.template else "none"
    kind, use = ("A language model", _ANSWERS) if card.role == "policy" else ("A reward model", _SCORES)
    return f"""---
library_name: transformers
base_model: {base}
---

# {name}

{kind} of {sizes:,} parameters in {dtype}, merged from a base and what was trained on it,
one above the other:

{made}

Its outputs differed by {gap:.1e} of their size from those of base and adapters.
Template: {template}.

```python
{use.format(name=name)}
```
"""


_ANSWERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
prompt = [{{"role": "user", "content": "你好"}}]
ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0, ids["input_ids"].shape[1] :]))"""

_SCORES = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
talk = [{{"role": "user", "content": "你好"}}, {{"role": "assistant", "content": "你好！"}}]
ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)
print(model(**ids).logits)"""
