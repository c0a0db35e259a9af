"""What can be wrong in the text of one row. Each check gives an excerpt of the fault, or an empty string."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

from duiqi.guards.answers import repetition, units
from duiqi.inspection.findings import excerpt
from duiqi.inspection.row_text import RowText
from duiqi.types import Example, readable

RowCheck = Callable[[RowText], str]

_MARKER = re.compile(
    r"<\|[\w▁]{2,30}\|>|<｜[^｜\n]{1,30}｜>|<<?/?SYS>>|</?s>|<(?:pad|unk|bos|eos|sop|eop|start_of_turn|end_of_turn)>"
    r"|\[/?INST\]|\[(?:gMASK|sMASK|MASK|CLS|SEP|PAD|UNK)\]|<reserved_\d+>"
)
_PLACEHOLDER = re.compile(r"\[(?:NAME|AUTHOR)\]|<(?:NAME|AUTHOR)>|\{\{?\s*(?:name|author|NAME|AUTHOR)\s*\}?\}")
_FORM_FIELD = re.compile(
    r"\[(?:[Yy]our [^\]\n]{1,30}|[Ii]nsert [^\]\n]{1,30}|[你您]的[^\]\n]{1,10}"
    r"|姓名|名字|公司名?称?|日期|地址|电话)\](?!\()"
)
_ANSWER_LABEL = re.compile(
    r"\s*(?:(?:答案?|回答|输出|助手)\s*[：:]|(?:Answer|Assistant|AI|Output|Response)\s?:|### Response)"
)
_QUESTION_LABEL = re.compile(
    r"^\s*(?:问\s*[：:]|用户\s*[：:]|(?:Human|User)\s?:|### Instruction|Below is an instruction that)"
    r"|(?:答\s*[：:]|Assistant\s?:|### Response:?)\s*$"
)
_NEXT_TURN = re.compile(r"\n\s*(?:(?:Human|User)\s?:|问\s*[：:]|用户\s*[：:]|### Instruction)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile(r"[\u00ad\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ue000-\uf8ff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_READ_AS_LATIN = re.compile(
    r"[\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]{2,}"
)
_READ_AS_GBK = re.compile(
    r"锟斤拷|烫烫烫|屯屯屯|[锛銆鈥鐨鏄鎴鍦鍙浠犲涓夎繖]{3,}|(?:[锛銆鈥鐨鏄鎴鍦鍙].{1,3}){2,}[锛銆鈥鐨鏄鎴鍦鍙]"
)
_ENTITY = re.compile(r"&(?:nbsp|lt|gt|amp|quot|#\d{2,5});|<br\s*/?>|</(?:p|div|span)>")
_SECRET = re.compile(
    r"\b(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|ghp_[A-Za-z0-9]{36}|hf_[A-Za-z]{30,}|AKIA[0-9A-Z]{16})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_ADDRESS = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?!example\.)[\w-]+\.[a-z]{2,6}\b")
_MANY_DIGITS = re.compile(r"\d{11}")
_NUMBER = re.compile(r"(?<!\d)1[3-9]\d{9}(?!\d)|(?<!\d)\d{17}[\dXx](?![\dA-Za-z])")
_REFUSAL = re.compile(
    r"作为(?:一个|一名|一种)?(?:人工智能|AI|大?型?语言模型)|(?:对不起|抱歉|很遗憾)[，,][^。\n]{0,12}(?:无法|不能|没办法|没有能力)"
    r"|\b[Aa]s an? (?:AI|artificial intelligence|(?:large )?language model)"
    r"|\bI(?:'m|’m| am) sorry,? but I|\bI (?:cannot|can't|can’t|am unable to) (?:assist|help|fulfill|comply|provide)"
)
_NAME = r"(?:ChatGPT|OpenAI|GPT-?[345]|Claude|Anthropic|Bard|Gemini|Open ?Assistant|Vicuna|文心一言|通义千问|星火)"
_ANY_NAME = re.compile(_NAME)
_OTHER_NAME = re.compile(
    r"(?:我(?:的名字)?[是叫](?:一个|一款|由|名为)?|我[^。！？\n]{0,12}由|\bI(?: am|'m|’m)|\b[Mm]y name is"
    rf"|\bI\b[^.!?\n]{{0,40}} by)\s*{_NAME}"
)
_BREAKS_OFF = re.compile(r"[，,、；;（(]\s*$")
_REPEATS_FROM = 160
"""Characters below which an answer is not searched for loops: a short one may well repeat itself."""
_COMPRESSED = 0.3
"""Of its bytes: what compresses further is looked at closely."""
_LOOPS = 0.6
"""Share of word triples that occurred before, from which an answer goes round in circles."""
_SHORTEST_QUESTION = 6
"""A shorter one may well begin its answer."""


def _half_character(row: RowText) -> str:
    return _first(_SURROGATE, row.whole)


def _replacement_character(row: RowText) -> str:
    place = row.whole.find("\ufffd")
    return excerpt(row.whole, place, place + 1) if place >= 0 else ""


def _wrong_encoding(row: RowText) -> str:
    if found := _READ_AS_GBK.search(row.whole):
        return excerpt(row.whole, *found.span())
    if row.whole.isascii():
        return ""
    for found in _READ_AS_LATIN.finditer(row.whole):
        if _is_utf8_misread(found[0]):
            return excerpt(row.whole, *found.span())
    return ""


def _is_utf8_misread(stretch: str) -> bool:
    """Whether letters with accents are the bytes of other letters, read one by one."""
    for code in ("cp1252", "latin-1"):
        try:
            stretch.encode(code).decode("utf-8")
        except UnicodeError:
            continue
        return True
    return False


def _control_character(row: RowText) -> str:
    return _first(_CONTROL, row.whole)


def _invisible_character(row: RowText) -> str:
    return _first(_INVISIBLE, row.whole)


def _carriage_return(row: RowText) -> str:
    place = row.whole.find("\r")
    return excerpt(row.whole, place, place + 1) if place >= 0 else ""


def _marker(row: RowText) -> str:
    return _first(_MARKER, row.whole)


def _placeholder(row: RowText) -> str:
    return _first(_PLACEHOLDER, row.whole)


def _form_field(row: RowText) -> str:
    return _first(_FORM_FIELD, row.best)


def _answer_label(row: RowText) -> str:
    return next((excerpt(answer) for answer in row.example.answers if _ANSWER_LABEL.match(answer)), "")


def _question_label(row: RowText) -> str:
    return _first(_QUESTION_LABEL, row.question)


def _next_turn(row: RowText) -> str:
    return next((_first(_NEXT_TURN, answer) for answer in row.example.answers if _NEXT_TURN.search(answer)), "")


def _hollow_answer(row: RowText) -> str:
    if row.best and len(row.best) < 40 and not units(row.best):
        return excerpt(row.best)
    return ""


def _answer_is_question(row: RowText) -> str:
    question = row.question.strip()
    if len(question) >= _SHORTEST_QUESTION and row.best.lstrip().startswith(question):
        return excerpt(row.best)
    return ""


def _loops(row: RowText) -> str:
    if len(row.best) < _REPEATS_FROM:
        return ""
    contents = row.best.encode("utf-8", "replace")
    if len(zlib.compress(contents, 1)) > _COMPRESSED * len(contents) or repetition(row.best) < _LOOPS:
        return ""
    return excerpt(row.best, len(row.best) - 40, len(row.best))


def _repeated_turn(row: RowText) -> str:
    earlier = {message.content for message in row.example.prompt if message.role == "assistant"}
    return excerpt(row.best) if row.best and row.best in earlier else ""


def _open_code_block(row: RowText) -> str:
    if row.best.count("```") % 2:
        place = row.best.rfind("```")
        return excerpt(row.best, place, place + 3)
    return ""


def _breaks_off(row: RowText) -> str:
    found = _BREAKS_OFF.search(row.best)
    return excerpt(row.best, *found.span(), around=30) if found else ""


def _edge_space(row: RowText) -> str:
    if row.best and row.best != row.best.strip() and row.best.strip():
        return excerpt(repr(row.best[-24:] if row.best[-1].isspace() else row.best[:24]))
    return ""


def _markup(row: RowText) -> str:
    return _first(_ENTITY, row.whole)


def _secret(row: RowText) -> str:
    found = _SECRET.search(row.whole)
    return f"{found[0][:7]}… ({len(found[0])} characters)" if found else ""


def _personal(row: RowText) -> str:
    found = _NUMBER.search(row.whole) if _MANY_DIGITS.search(row.whole) else None
    found = found or (_ADDRESS.search(row.whole) if "@" in row.whole else None)
    return f"{found[0][:3]}…{found[0][-2:]}" if found else ""


def _refusal(row: RowText) -> str:
    return _first(_REFUSAL, row.best[:200])


def _other_name(row: RowText) -> str:
    return _first(_OTHER_NAME, row.best) if _ANY_NAME.search(row.best) else ""


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return excerpt(text, *found.span()) if found else ""


def has_half_character(example: Example) -> bool:
    """Whether there is a character in the row that has no bytes, on which tokenizers fail."""
    texts = (*(message.content for message in example.prompt), *example.answers)
    return any(_SURROGATE.search(text) for text in texts)


def question_of(row: RowText) -> str:
    """The prompt in a few words, for faults that are in the whole row."""
    return excerpt(row.question or readable(row.example.prompt) or row.best)


ROW_CHECKS: dict[str, RowCheck] = {
    "half_character": _half_character,
    "replacement_character": _replacement_character,
    "wrong_encoding": _wrong_encoding,
    "control_character": _control_character,
    "invisible_character": _invisible_character,
    "carriage_return": _carriage_return,
    "marker": _marker,
    "placeholder": _placeholder,
    "form_field": _form_field,
    "answer_label": _answer_label,
    "question_label": _question_label,
    "next_turn": _next_turn,
    "hollow_answer": _hollow_answer,
    "answer_is_question": _answer_is_question,
    "loops": _loops,
    "repeated_turn": _repeated_turn,
    "open_code_block": _open_code_block,
    "breaks_off": _breaks_off,
    "edge_space": _edge_space,
    "markup": _markup,
    "secret": _secret,
    "personal": _personal,
    "refusal": _refusal,
    "other_name": _other_name,
}
PLAIN_TEXT_CHECKS: dict[str, RowCheck] = {
    kind: ROW_CHECKS[kind]
    for kind in (
        *("half_character", "replacement_character", "wrong_encoding", "control_character", "invisible_character"),
        *("carriage_return", "marker", "markup", "loops", "secret", "personal"),
    )
}
"""What is wrong in a text that answers nothing, too."""
