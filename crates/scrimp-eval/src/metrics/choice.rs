//! Answers that name a class or a number.

use super::python;

/// 1 / (number of classes that the answer names), if the right class is among them. Classes whose name is a part of the
/// right class's name are removed first. As in the original, the list is changed during the iteration, so the class
/// after a removed one is skipped.
pub(super) fn accuracy(answer: &str, truth: &str, classes: &[String]) -> f64 {
    let mut named: Vec<&str> =
        classes.iter().map(String::as_str).filter(|class| answer.contains(class)).collect();
    let mut i = 0;
    while i < named.len() {
        let class = named[i];
        if truth.contains(class) && truth != class {
            let first = named.iter().position(|c| *c == class).unwrap_or(i);
            named.remove(first);
        }
        i += 1;
    }
    if named.contains(&truth) { 1.0 / named.len() as f64 } else { 0.0 }
}

/// Share of the answer's numbers that equal the number after `label` in `truth`.
pub(super) fn retrieval(answer: &str, truth: &str, label: &str) -> f64 {
    let number = truth.match_indices(label).find_map(|(at, _)| {
        let after = &truth[at + label.len()..];
        python::digits(after).into_iter().next().filter(|number| after.starts_with(number))
    });
    number.map_or(0.0, |number| count(answer, number))
}

/// Share of the answer's numbers that are `truth`.
pub(super) fn count(answer: &str, truth: &str) -> f64 {
    let numbers = python::digits(answer);
    let right = numbers.iter().filter(|n| **n == truth).count();
    right as f64 / numbers.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_right_class_do_not_count_against_it() {
        let classes: Vec<String> = ["Date", "Other location", "location", "Other"].map(String::from).to_vec();
        assert_eq!(accuracy("Date", "Date", &classes), 1.0);
        assert_eq!(accuracy("Date or location", "Date", &classes), 0.5);
        // "location" is removed, and so "Other" is skipped.
        assert_eq!(accuracy("Other location", "Other location", &classes), 0.5);
        assert_eq!(accuracy("none", "Date", &classes), 0.0);
    }

    #[test]
    fn numbers() {
        assert_eq!(retrieval("Paragraph 3, not 4", "Paragraph 3", "Paragraph "), 0.5);
        assert_eq!(retrieval("3", "no number", "Paragraph "), 0.0);
        assert_eq!(retrieval("段落12", "段落12", "段落"), 1.0);
        assert_eq!(count("there are 5", "5"), 1.0);
        assert_eq!(count("none", "5"), 0.0);
    }
}
