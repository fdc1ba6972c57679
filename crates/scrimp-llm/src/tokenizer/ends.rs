//! End tokens of generation, recognized by their names.
//!
//! Files name one `eos`, but chat models end a turn with another token, and code models end a file with a third. The
//! names are the ones that llama.cpp knows.

/// Ends of texts, turns and messages.
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<eos>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<turn|>",
    "<|tool_response>",
    "<end_of_utterance>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
];

/// Ends of a file for models that fill in code: padding, the next repository, the next file.
const CODE_ENDS: &[&str] = &[
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Marks for filling in code: before the text, before the text behind the gap, before the text of the gap. They do
/// not end an answer, but they are structure even if a file types them as text.
pub(super) const INFILL_MARKS: &[[&str; 3]] = &[
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    [
        "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
        "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
        "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
    ],
];

/// Llama 2's end of text. In other vocabularies it is HTML's end of struck-out text, so only a control token counts.
const STRIKE_OR_END: &str = "</s>";

/// The ids of the names above, looked up with `id`. `is_control` distinguishes structure from text.
pub(super) fn find(id: impl Fn(&str) -> Option<u32>, is_control: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut ends: Vec<u32> = ENDS.iter().chain(CODE_ENDS).filter_map(|name| id(name)).collect();
    // In the harmony format <|end|> separates messages of one answer.
    let harmony = id("<|return|>").is_some() && id("<|call|>").is_some();
    let solar = id("<|calls|>").is_some() && id("<|flush|>").is_some();
    if harmony || solar {
        ends.retain(|&end| Some(end) != id("<|end|>"));
    }
    ends.extend(id(STRIKE_OR_END).filter(|&id| is_control(id)));
    ends
}
