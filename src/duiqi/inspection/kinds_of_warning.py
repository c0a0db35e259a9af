"""Faults that spoil what is learned; what spoils most comes first."""

from __future__ import annotations

from duiqi.inspection.kind import Kind

WARNINGS: dict[str, Kind] = {
    "changed_file": Kind(
        "warning",
        "a file is not the one that dataset_info.json means",
        "It was changed, cut or exchanged, and what is trained on it cannot be compared with what was.",
        "Fetch the file again, or correct file_sha1.",
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
}
