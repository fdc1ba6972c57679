//! Pre-tokenizers: they cut a text into words, inside which a byte-pair tokenizer merges.
//!
//! GGUF files name the pre-tokenizer in `tokenizer.ggml.pre`. A pre-tokenizer is a sequence of cuts. The matches of a
//! cut and the text between them become pieces, and the next cut works inside the pieces. A new pre-tokenizer is a new
//! line in [`TABLE`].
//!
//! The original patterns end in `\s+(?!\S)|\s+`: white space, without its last character if a word follows. An
//! automaton cannot express this look-ahead, so it is not in the patterns here. Instead, [`Cut::space_rule`] adds a
//! second pattern `\s+`, and a match that is followed by other text leaves its last character to that text. The
//! patterns run on a lazily built DFA, which takes half a millisecond to build and processes more than 100 MB/s.

use std::sync::Mutex;

use regex_automata::{
    Anchored, Input, MatchKind,
    hybrid::dfa::{Cache, DFA},
};

use crate::error::{Error, Result};

/// One cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    pattern: &'static str,
    /// Runs of white space are pieces, too (see the module).
    space_rule: bool,
    /// Matches count only at the end of the text.
    at_end: bool,
}

const fn cut(pattern: &'static str) -> Cut {
    Cut { pattern, space_rule: false, at_end: false }
}

const fn spaced(pattern: &'static str) -> Cut {
    Cut { pattern, space_rule: true, at_end: false }
}

const TRAILING_SPACE: Cut = Cut { pattern: r"\s+", space_rule: false, at_end: true };

/// A sequence of cuts, with its options.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer {
    cuts: &'static [Cut],
    /// A word that is a token is not merged.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with BOS if the file has no such key.
    pub(super) add_bos: bool,
    /// Texts are normalized to Unicode's form NFC first.
    pub(super) nfc: bool,
}

const fn pre(cuts: &'static [Cut]) -> PreTokenizer {
    PreTokenizer { cuts, ignore_merges: false, add_bos: false, nfc: false }
}

const fn normalized(cuts: &'static [Cut]) -> PreTokenizer {
    PreTokenizer { nfc: true, ..pre(cuts) }
}

/// Tokenizers made from tiktoken files: whole words first, and BOS.
const fn whole_words(cuts: &'static [Cut]) -> PreTokenizer {
    PreTokenizer { ignore_merges: true, add_bos: true, ..pre(cuts) }
}

const DIGIT: Cut = cut(r"\p{N}");
const DIGITS_3: Cut = cut(r"\p{N}{1,3}");
const GPT2: Cut = spaced(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const QWEN2: Cut = spaced(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
/// [`QWEN2`] with combining marks in words.
const QWEN35: Cut = spaced(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
));
const LLAMA3: Cut = spaced(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const TEKKEN: Cut = spaced(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
));
const GPT4O: Cut = spaced(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
));
const CJK_TO_HANGUL: Cut = cut(r"[\u{800}-\u{9fa5}\u{ac00}-\u{d7ff}]+");
/// Cased letters of about Unicode 8, without Georgian, mathematical and some rarer letters.
const DEEPSEEK_CASED: Cut = cut(concat!(
    r"\s?[\p{Lu}\p{Ll}\p{Lt}--[\u{560}-\u{588}\u{10c7}\u{10cd}\u{10d0}-\u{10ff}\u{1c80}-\u{1c8a}\u{2d00}-\u{2d2d}",
    r"\u{a790}-\u{ab68}\u{10570}-\u{105bc}\u{10d50}-\u{10d85}\u{16e40}-\u{16ed3}\u{1d400}-\u{1df2a}]]+",
));
const DEEPSEEK_PUNCTUATION: Cut =
    cut(r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+");
const DEEPSEEK_V3: Cut = spaced(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+",
));
const PUNCTUATION: Cut = cut(r"[\p{P}$+<=>^~|]+");
const DIGIT_TRIPLES: Cut = cut(r"[0-9][0-9][0-9]");

/// The values of `tokenizer.ggml.pre`.
#[rustfmt::skip]
const TABLE: &[(&[&str], PreTokenizer)] = &[
    (&["default", ""], pre(&[PUNCTUATION, GPT2, cut(r"\p{N}+"), DIGIT_TRIPLES])),
    (&["mpt", "olmo"], normalized(&[GPT2])),
    (&["gpt-2", "phi-2", "jais", "trillion", "exaone4", "granite-docling", "gigachat", "mellum"], pre(&[GPT2])),
    (&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], pre(&[DIGIT, GPT2])),
    (&["qwen2", "qwen3", "stablelm2"], normalized(&[QWEN2])),
    (&["qwen35"], normalized(&[QWEN35])),
    (&["deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "kormo"], pre(&[QWEN2])),
    (&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0"], whole_words(&[LLAMA3])),
    (&["dbrx", "phi-4", "smaug-bpe", "glm4", "chatglm-bpe"], pre(&[LLAMA3])),
    (&["tekken"], whole_words(&[TEKKEN])),
    (&["gpt-4o", "llama4", "kanana2", "minimax-m2"], pre(&[GPT4O])),
    (&["deepseek-llm"], pre(&[cut(r"[\r\n]"), DEEPSEEK_CASED, DEEPSEEK_PUNCTUATION, TRAILING_SPACE, CJK_TO_HANGUL, cut(r"\p{N}+")])),
    (&["deepseek-coder"], pre(&[cut(r"[\r\n]"), cut(r"\s?\p{L}+"), cut(r"\s?\p{P}+"), CJK_TO_HANGUL, DIGIT])),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm"], pre(&[DIGITS_3, cut(r"[\u{4e00}-\u{9fa5}\u{3040}-\u{30ff}]+"), DEEPSEEK_V3])),
    (&["falcon"], pre(&[cut(r"[\p{P}$+<=>^~|`]+"), GPT2, DIGIT_TRIPLES])),
];

impl PreTokenizer {
    /// The pre-tokenizer called `name`.
    pub(super) fn find(name: &str) -> Option<Self> {
        TABLE.iter().find(|(names, _)| names.contains(&name)).map(|(_, pre)| *pre)
    }

    /// All names, for messages.
    pub(super) fn names() -> String {
        let names: Vec<&str> =
            TABLE.iter().flat_map(|(names, _)| *names).copied().filter(|n| !n.is_empty()).collect();
        names.join(", ")
    }

    /// Builds the automata.
    pub(super) fn build(&self) -> Result<Splitter> {
        let stages = self.cuts.iter().map(|&cut| Stage::new(cut)).collect::<Result<_>>()?;
        Ok(Splitter { stages })
    }
}

/// A pre-tokenizer ready to run. It may be shared by threads.
pub(super) struct Splitter {
    stages: Vec<Stage>,
}

struct Stage {
    dfa: DFA,
    /// The states so far. A thread takes the cache and returns it after use.
    cache: Mutex<Option<Cache>>,
    cut: Cut,
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::bad_input(format!("the pre-tokenizer's automaton failed: {e}"))
}

impl Stage {
    fn new(cut: Cut) -> Result<Self> {
        // The default capacity of 2 MB may be less than the minimum that very large character classes need.
        let config = DFA::config().match_kind(MatchKind::LeftmostFirst).skip_cache_capacity_check(true);
        let mut builder = DFA::builder();
        builder.configure(config);
        let dfa = if cut.space_rule {
            builder.build_many(&[cut.pattern, r"\s+"])
        } else {
            builder.build(cut.pattern)
        };
        Ok(Self { dfa: dfa.map_err(failed)?, cache: Mutex::new(None), cut })
    }

    /// Calls `piece` for each piece of `text`, in order. No piece is empty.
    fn split<'t>(&self, text: &'t str, mut piece: impl FnMut(&'t str)) -> Result<()> {
        let taken = self.cache.lock().ok().and_then(|mut cache| cache.take());
        let mut cache = taken.unwrap_or_else(|| self.dfa.create_cache());
        let mut start = 0; // of the text that is not yet part of a piece
        let mut at = 0;
        while at < text.len() {
            let input = Input::new(text).range(at..).anchored(Anchored::Yes);
            let found = self.dfa.try_search_fwd(&mut cache, &input).map_err(failed)?;
            match found {
                Some(end) if self.cut.at_end && end.offset() < text.len() => at = end.offset(),
                Some(end) if end.offset() > at => {
                    let mut stop = end.offset();
                    if self.cut.space_rule && end.pattern().as_usize() == 1 && stop < text.len() {
                        let last = text[at..stop].char_indices().next_back().map_or(0, |(i, _)| i);
                        stop = if last > 0 { at + last } else { stop };
                    }
                    if start < at {
                        piece(&text[start..at]);
                    }
                    piece(&text[at..stop]);
                    (start, at) = (stop, stop);
                }
                _ => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        if start < text.len() {
            piece(&text[start..]);
        }
        if let Ok(mut place) = self.cache.lock() {
            *place = Some(cache);
        }
        Ok(())
    }
}

impl Splitter {
    /// Cuts `text` into words. Their concatenation is `text`.
    pub(super) fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) -> Result<()> {
        let Some((last, first)) = self.stages.split_last() else {
            if !text.is_empty() {
                word(text);
            }
            return Ok(());
        };
        if first.is_empty() {
            return last.split(text, word);
        }
        let mut pieces = vec![text];
        for stage in first {
            let mut next = Vec::with_capacity(pieces.len());
            for piece in pieces {
                stage.split(piece, |p| next.push(p))?;
            }
            pieces = next;
        }
        pieces.into_iter().try_for_each(|piece| last.split(piece, &mut word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let splitter = PreTokenizer::find(pre).unwrap().build().unwrap();
        let mut words = Vec::new();
        splitter.split(text, |w| words.push(w.to_owned())).unwrap();
        assert_eq!(words.concat(), text);
        assert!(words.iter().all(|w| !w.is_empty()));
        words
    }

    #[test]
    fn every_line_of_the_table_builds_and_names_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for (names, pre) in TABLE {
            pre.build().unwrap();
            for name in *names {
                assert!(seen.insert(name), "{name} twice");
            }
        }
        assert!(PreTokenizer::find("no-such").is_none());
        assert!(PreTokenizer::names().contains("smollm"));
    }

    #[test]
    fn gpt2_leaves_the_last_space_to_the_word() {
        assert_eq!(words("gpt-2", "I'll  go\n\n now  "), ["I", "'ll", " ", " go", "\n\n", " now", "  "]);
        assert_eq!(words("gpt-2", "x1234 +-"), ["x", "1234", " +-"]);
        assert_eq!(words("smollm", "x1234 5"), ["x", "1", "2", "3", "4", " ", "5"]);
        assert_eq!(words("gpt-2", "a\u{a0}\u{2003}b"), ["a", "\u{a0}", "\u{2003}", "b"]);
    }

    #[test]
    fn llama3_and_qwen2_differ_in_digits_only() {
        let text = "HE'LL say: \"12345\"\r\n\r\n\tx  \n  y";
        assert_eq!(
            words("llama-bpe", text),
            ["HE", "'LL", " say", ":", " \"", "123", "45", "\"\r\n\r\n", "\tx", "  \n", " ", " y"]
        );
        assert_eq!(
            words("qwen2", text),
            [
                "HE",
                "'LL",
                " say",
                ":",
                " \"",
                "1",
                "2",
                "3",
                "4",
                "5",
                "\"\r\n\r\n",
                "\tx",
                "  \n",
                " ",
                " y"
            ]
        );
    }

    #[test]
    fn case_aware_ones() {
        assert_eq!(
            words("gpt-4o", "HelloWorld's ÉTÉété 1234"),
            ["Hello", "World's", " ÉTÉété", " ", "123", "4"]
        );
        assert_eq!(words("tekken", "fooBar/\n12"), ["foo", "Bar", "/\n", "1", "2"]);
    }

    #[test]
    fn staged_ones() {
        assert_eq!(words("default", "a+b 12345"), ["a", "+", "b", " ", "123", "45"]);
        assert_eq!(words("deepseek-v3", "你好abc 1234.x"), ["你好", "abc", " ", "123", "4", ".x"]);
        assert_eq!(words("deepseek-coder", "f(x) 12\n"), ["f", "(", "x", ")", " ", "1", "2", "\n"]);
        assert_eq!(words("deepseek-llm", "né 12 "), ["n", "é", " ", "12", " "]);
        assert_eq!(words("falcon", "a$12345"), ["a", "$", "123", "45"]);
    }
}
