//! Similarity of lines of code: `fuzz.ratio` of the Python package fuzzywuzzy over `difflib.SequenceMatcher`.

use std::collections::HashMap;

/// Similarity of the answer's first line of code (without comments and fences), from 0 to 1.
pub(super) fn code_similarity(answer: &str, truth: &str) -> f64 {
    let code = |line: &&str| !line.contains('`') && !line.contains('#') && !line.contains("//");
    let line = answer.trim_start_matches('\n').split('\n').find(code).unwrap_or("");
    ratio(line, truth) / 100.0
}

/// Similarity from 0 to 100, rounded half to even.
fn ratio(a: &str, b: &str) -> f64 {
    if a == b {
        return 100.0;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let matched = Matcher::new(&a, &b).matched();
    (100.0 * (2.0 * matched as f64 / (a.len() + b.len()) as f64)).round_ties_even()
}

/// `SequenceMatcher`: the longest common run, then recursively the longest runs to its left and right.
struct Matcher<'a> {
    a: &'a [char],
    b: &'a [char],
    /// The positions of each character in `b`. In texts of 200 characters and more, characters with a share above 1%
    /// are left out.
    places: HashMap<char, Vec<usize>>,
}

impl<'a> Matcher<'a> {
    fn new(a: &'a [char], b: &'a [char]) -> Self {
        let mut places: HashMap<char, Vec<usize>> = HashMap::new();
        b.iter().enumerate().for_each(|(j, &c)| places.entry(c).or_default().push(j));
        if b.len() >= 200 {
            places.retain(|_, at| at.len() <= b.len() / 100 + 1);
        }
        Self { a, b, places }
    }

    /// Characters in common runs.
    fn matched(&self) -> usize {
        let mut todo = vec![(0..self.a.len(), 0..self.b.len())];
        let mut matched = 0;
        while let Some((a, b)) = todo.pop() {
            let (i, j, n) = self.longest(a.clone(), b.clone());
            if n == 0 {
                continue;
            }
            matched += n;
            todo.push((a.start..i, b.start..j));
            todo.push((i + n..a.end, j + n..b.end));
        }
        matched
    }

    /// The longest run: first the earliest in `a`, then the earliest in `b`.
    fn longest(&self, a: std::ops::Range<usize>, b: std::ops::Range<usize>) -> (usize, usize, usize) {
        let (mut best_i, mut best_j, mut best) = (a.start, b.start, 0);
        // Lengths of the runs that end at the previous character of `a`, by their end in `b`.
        let mut ends: HashMap<usize, usize> = HashMap::new();
        for i in a.clone() {
            let mut next = HashMap::new();
            for &j in self.places.get(&self.a[i]).into_iter().flatten() {
                if !b.contains(&j) {
                    continue;
                }
                let n = 1 + j.checked_sub(1).and_then(|j| ends.get(&j)).copied().unwrap_or(0);
                next.insert(j, n);
                if n > best {
                    (best_i, best_j, best) = (i + 1 - n, j + 1 - n, n);
                }
            }
            ends = next;
        }
        // Frequent characters do not begin a run, but they extend one.
        while best_i > a.start && best_j > b.start && self.a[best_i - 1] == self.b[best_j - 1] {
            (best_i, best_j, best) = (best_i - 1, best_j - 1, best + 1);
        }
        while best_i + best < a.end && best_j + best < b.end && self.a[best_i + best] == self.b[best_j + best]
        {
            best += 1;
        }
        (best_i, best_j, best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ratios() {
        assert_eq!(ratio("", ""), 100.0);
        assert_eq!(ratio("", "a"), 0.0);
        assert_eq!(ratio("abcd", "bcde"), 75.0);
        assert_eq!(code_similarity("\n# comment\n```\nx = 1\ny", "x = 1"), 1.0);
        assert_eq!(code_similarity("# only comments", "x = 1"), 0.0);
    }
}
