//! ROUGE-L as in the Python package `rouge` (1.0.1): over sentences, and over *sets* of words.
//!
//! Sentences end at full stops. Each pair of a sentence of the truth and a sentence of the answer has one longest
//! common subsequence of words. The set of the words of all these subsequences is the overlap. Recall and precision
//! divide its size by the numbers of different words in truth and answer.
//!
//! One difference: Python exceeds its recursion depth at sentences of some 500 words, which LongBench counts as 0. This
//! implementation computes them.

use super::python;
use std::collections::{HashMap, HashSet};

/// F measure; 0 if one of the two has no sentence.
pub(super) fn rouge_l(answer: &str, truth: &str) -> f64 {
    let mut ids = HashMap::new();
    let answer = sentences(answer, &mut ids);
    let truth = sentences(truth, &mut ids);
    if answer.is_empty() || truth.is_empty() {
        return 0.0;
    }
    let mut union = HashSet::new();
    for reference in &truth {
        for sentence in &answer {
            common_words(reference, sentence, &mut union);
        }
    }
    let different = |sentences: &[Vec<u32>]| sentences.iter().flatten().collect::<HashSet<_>>().len() as f64;
    let recall = union.len() as f64 / different(&truth);
    let precision = union.len() as f64 / different(&answer);
    2.0 * (precision * recall / (precision + recall + 1e-8))
}

/// Words as numbers. A sentence that has only spaces has one word, the empty one.
fn sentences(text: &str, ids: &mut HashMap<String, u32>) -> Vec<Vec<u32>> {
    let mut id = |word: &str| {
        let next = ids.len() as u32;
        *ids.entry(word.to_owned()).or_insert(next)
    };
    let raw = text.split('.').filter(|sentence| !sentence.is_empty());
    raw.map(|sentence| {
        let words: Vec<u32> = python::split(sentence).map(&mut id).collect();
        if words.is_empty() { vec![id("")] } else { words }
    })
    .collect()
}

/// Adds the words of one longest common subsequence of `x` and `y`. Where two paths have the same length, it is the one
/// that goes back in `y`. Memory: a bit per pair of words.
fn common_words(x: &[u32], y: &[u32], union: &mut HashSet<u32>) {
    let width = y.len();
    let mut back_in_x = vec![0u64; (x.len() * width).div_ceil(64)];
    let (mut above, mut row) = (vec![0u32; width + 1], vec![0u32; width + 1]);
    for (i, word) in x.iter().enumerate() {
        for (j, other) in y.iter().enumerate() {
            row[j + 1] = if word == other { above[j] + 1 } else { above[j + 1].max(row[j]) };
            if above[j + 1] > row[j] {
                let bit = i * width + j;
                back_in_x[bit / 64] |= 1 << (bit % 64);
            }
        }
        std::mem::swap(&mut above, &mut row);
    }
    let (mut i, mut j) = (x.len(), width);
    while i > 0 && j > 0 {
        let bit = (i - 1) * width + j - 1;
        if x[i - 1] == y[j - 1] {
            union.insert(x[i - 1]);
            (i, j) = (i - 1, j - 1);
        } else if back_in_x[bit / 64] >> (bit % 64) & 1 == 1 {
            i -= 1;
        } else {
            j -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_texts_and_empty_ones() {
        assert!((rouge_l("a b c. d", "a b c. d") - 1.0).abs() < 1e-7);
        assert_eq!(rouge_l("", "a"), 0.0);
        assert_eq!(rouge_l("...", "a"), 0.0);
        assert_eq!(rouge_l("x y", "a b"), 0.0);
    }

    #[test]
    fn the_union_over_sentences() {
        // Of w1 to w5: "w1 w2" with the first, "w1 w3 w5" with the second sentence; 4 of 5 and 4 of 9 words.
        let got = rouge_l("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5");
        let (r, p) = (4.0 / 5.0, 4.0 / 8.0);
        assert!((got - 2.0 * p * r / (p + r)).abs() < 1e-7, "{got}");
    }
}
