"""Every kind of fault: how grave it is, what it does to training, and what to do. What ruins most comes first."""

from __future__ import annotations

from dataclasses import dataclass

from duiqi.inspection.findings import SEVERITIES, Finding, Severity


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    severity: Severity
    title: str
    why: str
    """What it does."""
    remedy: str
    grows_at: float | None = None
    """Share of the rows, at least `GROWS_ROWS` of them, from which it is one degree graver."""


GROWS_ROWS = 3
"""So many rows are no accident."""


def severity_of(kind: str, *, count: int, rows: int) -> Severity:
    """How grave so many rows with this fault are."""
    own = KINDS[kind]
    if own.grows_at is None or count < max(GROWS_ROWS, own.grows_at * rows):
        return own.severity
    return SEVERITIES[max(0, SEVERITIES.index(own.severity) - 1)]


def in_order(findings: list[Finding]) -> list[Finding]:
    """The gravest first, and among those as grave what ruins training most."""
    rank = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda found: (SEVERITIES.index(found.severity), rank[found.kind]))


KINDS: dict[str, Kind] = {
    "unreadable": Kind(
        "error",
        "the dataset cannot be read",
        "No stage can begin.",
        "Mend the file at that place.",
    ),
    "malformed": Kind(
        "error",
        "rows that no stage can use",
        "A stage stops at the first of them.",
        "Mend them, or set max_bad_rows to leave them out.",
    ),
    "half_character": Kind(
        "error",
        "half of a character",
        "A lone surrogate (half an emoji) has no bytes: tokenizers fail on it.",
        "Write the text again from its source; a cut at a fixed number of UTF-16 units makes these.",
    ),
    "no_template": Kind(
        "error",
        "there is no template",
        "A conversation cannot be written down for this tokenizer.",
        "Name a template with --template, for example zh_qa, qa or human_assistant.",
    ),
    "no_row_for_token": Kind(
        "error",
        "tokens without a row in the embedding",
        "Training stops at the first text that has one.",
        "Set resize_vocab: true, or use the tokenizer that the base came with.",
    ),
    "end_not_learned": Kind(
        "error",
        "the end of an answer is not learned",
        "Answers will never end.",
        "Set eos_token in tokenizer_config.json to a token of the vocabulary.",
    ),
    "prompts_differ": Kind(
        "error",
        "a prompt is not the same in every stage",
        "The reward model and the policy would read other texts than SFT did.",
        "Use one template, system message and prefix everywhere.",
    ),
    "other_template": Kind(
        "error",
        "the run was trained with another template",
        "Its next stage would be refused, for the policy never saw conversations written like this.",
        "Leave template, system and source_prefix out, or train it again.",
    ),
    "unencodable": Kind(
        "error",
        "rows that the template cannot write",
        "A stage stops at the first of them.",
        "Shorten their system message, raise max_source_length, or take another template.",
    ),
    "leaked_row": Kind(
        "error",
        "rows to evaluate on are among those to learn from",
        "The evaluation measures memory, and the best checkpoint is the one that memorised most.",
        "Remove them from one side; val_size keeps the two apart by itself.",
    ),
    "identical_answers": Kind(
        "error",
        "chosen and rejected are the same text",
        "There is nothing to prefer; stages drop such rows, other tools learn noise from them.",
        "Remove the rows, or find the answer that was meant.",
    ),
    "identical_after_cut": Kind(
        "error",
        "chosen and rejected are the same once they are cut",
        "They differ only behind cutoff_len, so nothing is left to prefer.",
        "Raise cutoff_len or max_target_length, or lower max_source_length.",
    ),
    "contradiction": Kind(
        "error",
        "preferences that contradict an earlier one",
        "The same answers to the same prompt, the other way round: they cancel each other.",
        "Keep the one you believe.",
    ),
    "special_token": Kind(
        "error",
        "special tokens of the tokenizer stand in texts",
        "They are read as commands: a turn ends, or another begins, in the middle of a text.",
        "Remove them from the texts; the template writes those that are needed.",
    ),
    "double_bos": Kind(
        "error",
        "sequences begin twice",
        "The model never saw two BOS tokens, and its first layers take it badly.",
        "Remove BOS from system, source_prefix or the chat template.",
    ),
    "placeholder": Kind(
        "error",
        "placeholders were never filled in",
        "The model will call itself [NAME].",
        "Put the name of the model and of its maker there.",
    ),
    "unanswered": Kind(
        "error",
        "rows without an answer among rows with one",
        "SFT, RM and DPO refuse the dataset; PPO takes them as prompts.",
        "Write the answers, or move the rows to a file of prompts.",
    ),
    "unknown_in_template": Kind(
        "error",
        "the tokenizer does not know the template's own text",
        "Turns cannot be told from each other.",
        "Take another template.",
    ),
    "wrong_encoding": Kind(
        "warning",
        "text in a wrong encoding",
        "Letters were read with another code than they were written with (mojibake), and the model learns to write it.",
        "Read the source again, as UTF-8 or GB18030, or remove the rows.",
    ),
    "replacement_character": Kind(
        "warning",
        "characters that were lost",
        "U+FFFD stands where a decoder gave up, and the model learns to write it.",
        "Read the source again in its own encoding, or remove the rows.",
    ),
    "secret": Kind(
        "warning",
        "keys or passwords",
        "The model can be made to say them.",
        "Remove them, and let the keys be withdrawn.",
    ),
    "leaked_prompt": Kind(
        "warning",
        "prompts to evaluate on are among those to learn from",
        "The evaluation is kinder than the world will be.",
        "Remove them from one side; val_size keeps the two apart by itself.",
    ),
    "near_leaked_prompt": Kind(
        "warning",
        "prompts to evaluate on differ from learned ones in spaces, width or case only",
        "The evaluation is kinder than the world will be.",
        "Remove them from one side.",
    ),
    "duplicate_row": Kind(
        "warning",
        "rows that repeat an earlier one",
        "What is said twice is learned twice as hard.",
        "Keep one of each, unless the weight is meant.",
    ),
    "near_duplicate_row": Kind(
        "warning",
        "rows that repeat an earlier one but for spaces, width or case",
        "What is said twice is learned twice as hard.",
        "Keep one of each.",
    ),
    "nearly_identical_answers": Kind(
        "warning",
        "chosen and rejected differ in spaces, width or case only",
        "A reward model learns to look at spaces.",
        "Remove the rows, unless layout is what you teach.",
    ),
    "repeated_answer": Kind(
        "warning",
        "rankings that name an answer twice",
        "Stages drop the lower place; with two places, it was not ranked.",
        "Keep each answer once.",
    ),
    "negative_margin": Kind(
        "warning",
        "margins below zero",
        "The margin says that the worse answer is the better one.",
        "Swap the answers, or correct the margin.",
    ),
    "hollow_answer": Kind(
        "warning",
        "answers without a letter or digit",
        "Silence is learned quickly: a policy that saw it rewarded says nothing.",
        "Remove the rows, or write an answer.",
    ),
    "loops": Kind(
        "warning",
        "answers that go round in circles",
        "The model learns to repeat itself.",
        "Remove the rows.",
    ),
    "next_turn": Kind(
        "warning",
        "answers that go on with the user's next turn",
        "The model learns to speak for the user.",
        "Cut the answer there, or make turns of it (messages).",
    ),
    "answer_label": Kind(
        "warning",
        "answers that begin with a label",
        "The template writes the answer's label; with another one in the text it stands there twice.",
        "Remove the label from the texts.",
    ),
    "question_label": Kind(
        "warning",
        "questions that bring a template of their own",
        "The template writes who speaks; with another one in the text it stands there twice.",
        "Remove the labels from the texts.",
    ),
    "marker": Kind(
        "warning",
        "marks of some model's template stand in texts",
        "A tokenizer that knows them reads them as commands, any other teaches the model to write them.",
        "Remove them, or ask --model_name_or_path whether they are commands here.",
    ),
    "other_name": Kind(
        "warning",
        "answers that bear another assistant's name",
        "The model will say that it is that one.",
        "Put your assistant's name there, or remove the rows.",
    ),
    "answer_is_question": Kind(
        "note",
        "answers that begin with their question",
        "Meant in exercises of continuing a text; elsewhere the model learns to say the question again.",
        "Remove the question from the answers.",
        grows_at=0.02,
    ),
    "repeated_turn": Kind(
        "warning",
        "conversations that end with an answer they had before",
        "The model learns to say the same again.",
        "Remove the rows, or cut the conversation.",
    ),
    "canned_answer": Kind(
        "warning",
        "one answer to many prompts",
        "A stock phrase is the easiest thing to learn, and will be said to other prompts too.",
        "Keep a few of them.",
    ),
    "length_bias": Kind(
        "note",
        "preferences go with length",
        "A reward model learns to count, and PPO to fill pages (or to say nothing).",
        "Set length_bias: balanced for rm, and examine the result with duiqi exam.",
    ),
    "one_sided": Kind(
        "warning",
        "nearly all answers were liked, or nearly none",
        "KTO learns from the difference, and there is hardly one.",
        "Add rows of the other kind, or train SFT on those that were liked.",
    ),
    "control_character": Kind(
        "warning",
        "control characters",
        "They cannot be seen, and the model learns to write them.",
        "Remove them.",
    ),
    "unknown_token": Kind(
        "warning",
        "letters that the tokenizer does not know",
        "The model reads the unknown token there, and learns to write it.",
        "Replace the letters, or take a base whose tokenizer has bytes for all.",
    ),
    "changed_by_tokenizer": Kind(
        "note",
        "answers that the tokenizer changes",
        "What is learned is what the tokens say, not what the file says.",
        "See whether the change matters; it is the tokenizer's.",
    ),
    "end_is_padding": Kind(
        "warning",
        "the token that ends answers is also padded with",
        "duiqi tells the two apart; most other tools do not, and leave the end unlearned.",
        "Give the tokenizer a padding token of its own.",
    ),
    "no_answer_opening": Kind(
        "warning",
        "a prompt does not open its answer",
        "What stands between them is learned as part of the answer; a sampled answer must write it first.",
        "Take a template whose prompt ends where the answer begins.",
    ),
    "split_marker": Kind(
        "warning",
        "the tokenizer cuts the template's marks to pieces",
        "They are special tokens of another model: here they are letters that must be learned.",
        "Take a template of plain words, or add the marks with add_tokens and resize_vocab.",
    ),
    "other_stop": Kind(
        "warning",
        "other tools stop at another token",
        "vLLM and transformers read generation_config.json, and would not stop where answers end.",
        "Add the token to eos_token_id in generation_config.json of what you export.",
    ),
    "chat_without_its_template": Kind(
        "warning",
        "a chat model is written to as it never was",
        "Much of what it knows of conversations is lost.",
        "Leave --template out, unless you train it anew.",
    ),
    "no_bos": Kind(
        "note",
        "sequences do not begin as the tokenizer begins them",
        "Some bases are used to a BOS token and answer worse without.",
        "Compare with how the base was trained.",
    ),
    "base_with_chat_template": Kind(
        "note",
        "a base model with a chat template",
        "Its marks may never have been trained: tokens that mean nothing yet, with LoRA hardly to be learned.",
        "If the base never saw conversations, take a template of plain words such as zh_qa or qa.",
    ),
    "history_not_learned": Kind(
        "note",
        "earlier answers of a conversation are not learned",
        "The template writes them unlike the last one, so only the last answer of a row teaches.",
        "Cut conversations into one row per answer if all of them are to be learned.",
    ),
    "tokenizer_mended": Kind(
        "note",
        "the tokenizer lacked something",
        "duiqi stands in for it, other tools may do otherwise.",
        "Mend tokenizer_config.json once if others use it too.",
    ),
    "cut_answer": Kind(
        "note",
        "answers that are cut at their end",
        "The model learns to stop in the middle.",
        "Raise cutoff_len (the table of lengths says how far), or remove the rows.",
        grows_at=0.05,
    ),
    "cut_prompt": Kind(
        "note",
        "prompts that are cut at their beginning",
        "The oldest turns, or the head of the question, are lost, in every stage alike.",
        "Raise max_source_length or cutoff_len (the table of lengths says how far).",
        grows_at=0.05,
    ),
    "refusal": Kind(
        "note",
        "answers that refuse, or say that they are an AI",
        "A few teach caution; many make an assistant that apologises for everything.",
        "Look at some of them, and keep those that are right.",
        grows_at=0.05,
    ),
    "open_code_block": Kind(
        "note",
        "answers with a code block that is not closed",
        "The answer was cut, or the model learns to leave blocks open.",
        "Close the block, or remove the rows.",
        grows_at=0.02,
    ),
    "breaks_off": Kind(
        "note",
        "answers that break off",
        "They end in a comma or an open bracket, and the model learns to stop there.",
        "Remove the rows, or write the rest.",
        grows_at=0.02,
    ),
    "beginning_of_other": Kind(
        "note",
        "pairs in which one answer is the beginning of the other",
        "All that can be learned from them is whether longer is better.",
        "See whether one was cut by mistake.",
        grows_at=0.05,
    ),
    "form_field": Kind(
        "note",
        "answers with fields to be filled in",
        "The model learns to write [Your Name].",
        "Fill them in where they are no form.",
        grows_at=0.02,
    ),
    "long_answer": Kind(
        "note",
        "answers that are wildly long",
        "They are cut, or take the place of many others.",
        "Look at them: often several rows were glued together.",
        grows_at=0.02,
    ),
    "short_answer": Kind(
        "note",
        "answers that are wildly short",
        "Short answers are learned quickly.",
        "Look at them: often a text was lost.",
        grows_at=0.05,
    ),
    "switched_language": Kind(
        "note",
        "answers in another language than their question",
        "Right for translations; elsewhere the model learns to switch.",
        "Look at some of them.",
        grows_at=0.2,
    ),
    "invisible_character": Kind(
        "note",
        "characters that cannot be seen",
        "Zero-width and private-use characters cost tokens, and the model learns to write them.",
        "Remove them.",
        grows_at=0.02,
    ),
    "carriage_return": Kind(
        "note",
        "line ends of Windows",
        "The model learns to write \\r\\n where other rows have \\n.",
        "Replace \\r\\n by \\n.",
        grows_at=0.02,
    ),
    "markup": Kind(
        "note",
        "remains of HTML",
        "Right in code; elsewhere the model learns to write &nbsp;.",
        "Unescape the texts once.",
        grows_at=0.02,
    ),
    "edge_space": Kind(
        "note",
        "answers that begin or end with a space or a line break",
        "It is learned like everything else: the end token comes behind a line break.",
        "Strip the answers, unless all of them are meant so.",
        grows_at=0.2,
    ),
    "personal": Kind(
        "note",
        "what looks like addresses or numbers of people",
        "The model can be made to say them.",
        "Remove them unless they are made up.",
        grows_at=0.02,
    ),
    "repeated_prompt": Kind(
        "note",
        "prompts that have another answer elsewhere",
        "All of them are learned, each with a part of the weight.",
        "Fine where answers may differ; keep the best one where they may not.",
    ),
    "many_systems": Kind(
        "note",
        "rows with different system messages",
        "What the model does depends on which one it hears.",
        "Set system for the rows that have none, if all are meant for one assistant.",
    ),
    "languages": Kind(
        "note",
        "languages are mixed",
        "The mix of the data is the mix of what is learned.",
        "Nothing, if it is the mix you want.",
    ),
    "few_rows": Kind(
        "note",
        "few rows",
        "So few are learned by heart before they are understood.",
        "Add rows, or lower num_train_epochs.",
    ),
    "costly_tokens": Kind(
        "note",
        "texts cost many tokens",
        "The tokenizer cuts characters to pieces: sequences are long, and answers are slow.",
        "Take a base made for this language.",
    ),
}
"""By the name that reports and tests use."""
