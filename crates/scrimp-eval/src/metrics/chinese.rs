//! Chinese words: the crate `jieba-rs` with the dictionary of the Python package.

use super::{f1, python};
use jieba_rs::Jieba;
use std::{
    io::{BufReader, Cursor},
    sync::OnceLock,
};

/// `dict.txt`: a word and its frequency per line (`make_jieba_dict.py` beside it).
static DICTIONARY: &[u8] = include_bytes!("../../assets/jieba_dict.zip");

const PUNCTUATION: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";

/// The text with a space between words.
pub(super) fn spaced(text: &str) -> String {
    cut(text).join(" ")
}

/// F1 over words, in lower case, without punctuation and white space.
pub(super) fn f1(answer: &str, truth: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        cut(text).into_iter().map(normalized).filter(|word| !word.is_empty()).collect()
    };
    f1::tokens(&words(answer), &words(truth))
}

fn cut(text: &str) -> Vec<&str> {
    static JIEBA: OnceLock<Option<Jieba>> = OnceLock::new();
    match JIEBA.get_or_init(load) {
        Some(jieba) => {
            let words = jieba.cut(text, true).into_iter().map(|token| token.word);
            words.flat_map(|word| if jieba.has_word(word) { vec![word] } else { parts(word) }).collect()
        }
        None => text.split("").filter(|c| !c.is_empty()).collect(),
    }
}

/// Splits letters and digits that `.`, `_` or `-` join: the crate returns them as one word, the Python package cuts at
/// `([a-zA-Z0-9]+(?:\.\d+)?%?)`.
fn parts(word: &str) -> Vec<&str> {
    if !word.is_ascii() || !word.contains(['.', '_', '-']) {
        return vec![word];
    }
    let bytes = word.as_bytes();
    let run = |from: usize, of: fn(&u8) -> bool| bytes[from..].iter().take_while(|&b| of(b)).count();
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let mut end = at + run(at, u8::is_ascii_alphanumeric);
        if end == at {
            end += run(at, |b| !b.is_ascii_alphanumeric());
        } else {
            let decimals = if bytes.get(end) == Some(&b'.') { run(end + 1, u8::is_ascii_digit) } else { 0 };
            end += if decimals > 0 { 1 + decimals } else { 0 };
            end += usize::from(bytes.get(end) == Some(&b'%'));
        }
        parts.push(&word[at..end]);
        at = end;
    }
    parts
}

/// `None` if the file in the binary is damaged. A test checks that it is not.
fn load() -> Option<Jieba> {
    let mut archive = zip::ZipArchive::new(Cursor::new(DICTIONARY)).ok()?;
    let file = archive.by_index(0).ok()?;
    Jieba::with_dict(&mut BufReader::new(file)).ok()
}

fn normalized(word: &str) -> String {
    let kept = |&c: &char| !python::is_punctuation(c) && !PUNCTUATION.contains(c) && !python::is_space(c);
    word.to_lowercase().chars().filter(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_from_the_dictionary() {
        assert_eq!(cut("我来到北京清华大学"), ["我", "来到", "北京", "清华大学"]);
        // 杭研 is in no dictionary: the hidden Markov model finds it.
        assert_eq!(cut("他来到了网易杭研大厦"), ["他", "来到", "了", "网易", "杭研", "大厦"]);
        assert_eq!(spaced("AI模型。"), "AI 模型 。");
    }

    #[test]
    fn joined_letters_and_digits_are_cut_as_in_python() {
        assert_eq!(
            cut("AI芯片3.5%，a_b--c x.y 1.2.3"),
            ["AI", "芯片", "3.5%", "，", "a", "_", "b", "--", "c", " ", "x", ".", "y", " ", "1.2", ".", "3"]
        );
    }

    #[test]
    fn punctuation_does_not_count() {
        assert_eq!(f1("厦门大学。", "厦门大学"), 1.0);
        assert!(f1("在厦门大学举办", "厦门大学") < 1.0);
        assert_eq!(f1("。", "，"), 0.0);
    }
}
