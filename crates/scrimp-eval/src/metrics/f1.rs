//! F1 over words (SQuAD's definition).

use super::python;
use std::{borrow::Cow, collections::HashMap};

/// F1 over normalized words: lower case, without ASCII punctuation and the articles `a`, `an`, `the`.
pub(super) fn words(answer: &str, truth: &str) -> f64 {
    let (answer, truth) = (normalized(answer), normalized(truth));
    tokens(&python::split(&answer).collect::<Vec<_>>(), &python::split(&truth).collect::<Vec<_>>())
}

/// F1 over multisets of tokens.
pub(super) fn tokens<T: AsRef<str>>(answer: &[T], truth: &[T]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    truth.iter().for_each(|t| *left.entry(t.as_ref()).or_default() += 1);
    let mut same = 0;
    for token in answer {
        if let Some(n) = left.get_mut(token.as_ref()).filter(|n| **n > 0) {
            *n -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let precision = f64::from(same) / answer.len() as f64;
    let recall = f64::from(same) / truth.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// Lower case without punctuation and articles. Punctuation is removed first, so "the-" counts as an article.
fn normalized(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|&c| !python::is_punctuation(c)).collect();
    let mut out = String::with_capacity(plain.len());
    let mut rest = plain.as_str();
    while let Some(c) = rest.chars().next() {
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len()).max(c.len_utf8());
        let (word, after) = rest.split_at(end);
        let word = if matches!(word, "a" | "an" | "the") { Cow::Borrowed(" ") } else { word.into() };
        out.push_str(&word);
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalization() {
        assert_eq!(normalized("The U.S. a-b an  apple's THE"), "  us ab    apples  ");
        assert_eq!(normalized("a，a"), " ， ");
    }

    #[test]
    fn repeated_words_count_as_often_as_both_have_them() {
        assert_eq!(words("no no no yes", "no no"), 2.0 / 3.0);
        assert_eq!(words("x", "y"), 0.0);
        assert_eq!(words("", ""), 0.0);
    }
}
