"""Faults with which training goes wrong or is refused; what ruins most comes first."""

from __future__ import annotations

from duiqi.inspection.kind import Kind

ERRORS: dict[str, Kind] = {
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
}
