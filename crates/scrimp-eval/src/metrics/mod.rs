//! The metrics of LongBench and RULER. They return the numbers of the original Python code; the tests compare them with
//! the pairs that `testdata/longbench/make.py` writes.

#[cfg(feature = "chinese")]
mod chinese;
mod choice;
mod edit;
mod f1;
mod python;
mod rouge;

/// A metric of an answer and the right answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// F1 over words, without articles and punctuation.
    F1,
    /// F1 over Chinese words.
    F1Zh,
    /// ROUGE-L, F measure, as the Python package `rouge` defines it.
    RougeL,
    /// ROUGE-L over Chinese words.
    RougeLZh,
    /// 1 if the answer names the right class, otherwise 0; divided by the number of named classes.
    Accuracy,
    /// Share of the answer's numbers that equal the number of the right paragraph.
    Retrieval,
    /// The same for Chinese paragraphs.
    RetrievalZh,
    /// Share of the answer's numbers that equal the right number.
    Count,
    /// Similarity of the answer's first line of code.
    EditSimilarity,
    /// Share of the right strings that occur in the answer, in any letter case (RULER).
    StringMatchAll,
    /// Whether any of the right strings occurs in the answer (RULER).
    StringMatchAny,
}

impl Metric {
    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::F1 => "f1",
            Self::F1Zh => "f1_zh",
            Self::RougeL => "rouge_l",
            Self::RougeLZh => "rouge_l_zh",
            Self::Accuracy => "accuracy",
            Self::Retrieval => "retrieval",
            Self::RetrievalZh => "retrieval_zh",
            Self::Count => "count",
            Self::EditSimilarity => "edit_similarity",
            Self::StringMatchAll => "string_match_all",
            Self::StringMatchAny => "string_match_any",
        }
    }

    /// The score of `answer`, 0 to 1. LongBench's metrics take the best score over the right answers, RULER's compare
    /// with all of them. `classes` are the possible classes ([`Metric::Accuracy`] only).
    pub fn score(self, answer: &str, truths: &[String], classes: &[String]) -> f64 {
        match self {
            Self::StringMatchAll | Self::StringMatchAny => self.string_match(answer, truths),
            _ => truths.iter().map(|truth| self.pair(answer, truth, classes)).fold(0.0, f64::max),
        }
    }

    /// Whether this build can compute the metric: [`Metric::F1Zh`] and [`Metric::RougeLZh`] need the feature `chinese`,
    /// and are NaN without it.
    pub fn is_available(self) -> bool {
        cfg!(feature = "chinese") || !matches!(self, Self::F1Zh | Self::RougeLZh)
    }

    fn pair(self, answer: &str, truth: &str, classes: &[String]) -> f64 {
        match self {
            Self::F1 => f1::words(answer, truth),
            #[cfg(feature = "chinese")]
            Self::F1Zh => chinese::f1(answer, truth),
            #[cfg(feature = "chinese")]
            Self::RougeLZh => rouge::rouge_l(&chinese::spaced(answer), &chinese::spaced(truth)),
            #[cfg(not(feature = "chinese"))]
            Self::F1Zh | Self::RougeLZh => f64::NAN,
            Self::RougeL => rouge::rouge_l(answer, truth),
            Self::Accuracy => choice::accuracy(answer, truth, classes),
            Self::Retrieval => choice::retrieval(answer, truth, "Paragraph "),
            Self::RetrievalZh => choice::retrieval(answer, truth, "段落"),
            Self::Count => choice::count(answer, truth),
            Self::EditSimilarity => edit::code_similarity(answer, truth),
            Self::StringMatchAll | Self::StringMatchAny => unreachable!("taken together in `score`"),
        }
    }

    /// RULER: control characters become line breaks, the ends are trimmed, letter case is ignored.
    fn string_match(self, answer: &str, truths: &[String]) -> f64 {
        let plain: String = answer.trim().chars().map(|c| if c < ' ' { '\n' } else { c }).collect();
        let plain = plain.trim().to_lowercase();
        let found = truths.iter().filter(|truth| plain.contains(&truth.to_lowercase())).count();
        match self {
            Self::StringMatchAny => f64::from(u8::from(found > 0)),
            _ => found as f64 / truths.len().max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, answer: &str, truths: &[&str]) -> f64 {
        let truths: Vec<String> = truths.iter().map(|t| (*t).to_owned()).collect();
        metric.score(answer, &truths, &[])
    }

    #[test]
    fn the_best_of_several_truths_counts() {
        assert_eq!(score(Metric::F1, "The green house", &["a red house", "green house"]), 1.0);
        assert_eq!(score(Metric::F1, "anything", &[]), 0.0);
    }

    #[test]
    fn ruler_counts_strings_in_any_case() {
        assert_eq!(
            score(Metric::StringMatchAll, "It is 12AB and\u{1}34cd.", &["12ab", "34CD", "56"]),
            2.0 / 3.0
        );
        assert_eq!(score(Metric::StringMatchAny, "It is 12AB.", &["x", "12ab"]), 1.0);
        assert_eq!(score(Metric::StringMatchAny, "", &["x"]), 0.0);
        assert_eq!(score(Metric::StringMatchAll, "x", &[]), 0.0);
    }
}
