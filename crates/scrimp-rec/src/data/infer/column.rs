//! The statistics of a column in the sample, and the decision on its kind.

use super::names::{is_id, is_row_number, is_unnamed};
use crate::{
    data::values::{number, shown},
    schema::{Kind, Transform, id_of},
};
use std::collections::HashSet;

/// Statistics of a column in the sample.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    present: usize,
    numbers: usize,
    integers: usize,
    /// Texts of missing and infinite numbers, and the first one.
    absent: usize,
    marker: Option<String>,
    /// Lists and objects of JSON.
    nested: usize,
    negative: bool,
    distinct: HashSet<u64>,
    sum: f64,
    max: f64,
    /// The first value that is not a number.
    other: Option<String>,
    /// Whether each value is the one before plus 1, and the last value.
    counting: bool,
    last: Option<u64>,
}

/// The use of a column.
pub(super) enum Guess {
    Numeric,
    Categorical,
    Left(&'static str),
}

/// Whether `name` is Criteo's: a letter and a number.
fn named(name: &str, letter: char) -> bool {
    name.strip_prefix(letter).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

impl Column {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            present: 0,
            numbers: 0,
            integers: 0,
            absent: 0,
            marker: None,
            nested: 0,
            negative: false,
            distinct: HashSet::new(),
            sum: 0.0,
            max: 0.0,
            other: None,
            counting: true,
            last: None,
        }
    }

    /// Adds a value; the empty text is a missing one.
    pub(super) fn see(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        match number(text) {
            Ok(None) => {
                self.absent += 1;
                self.marker.get_or_insert_with(|| shown(text));
                // A text of a missing number is a category.
                self.distinct.insert(id_of(text));
                return;
            }
            Ok(Some(x)) => {
                self.numbers += 1;
                // Tables with missing values write integers as `260.0`.
                self.integers += usize::from(x.fract() == 0.0);
                self.negative |= x < 0.0;
                self.sum += f64::from(x);
                self.max = self.max.max(f64::from(x));
            }
            Err(_) => {
                self.other.get_or_insert_with(|| shown(text));
            }
        }
        self.present += 1;
        let id = id_of(text);
        self.distinct.insert(id);
        self.counting &= self.last.replace(id).is_none_or(|last| last.wrapping_add(1) == id);
    }

    /// Adds a list or an object.
    pub(super) fn see_nested(&mut self) {
        self.nested += 1;
    }

    /// Whether the sample has a value.
    pub(super) fn has_values(&self) -> bool {
        !self.distinct.is_empty() || self.nested > 0
    }

    /// The kind of values that cannot be read.
    pub(super) fn unreadable(&self) -> Option<&'static str> {
        (self.nested > 0).then_some("lists or objects")
    }

    /// Whether the values are numbers. One in 100 may be damaged: reading names it.
    fn is_number(&self) -> bool {
        self.numbers > 0 && self.numbers * 100 >= self.present * 99
    }

    fn is_integer(&self) -> bool {
        self.is_number() && self.integers == self.numbers
    }

    /// Whether almost every row has a distinct value.
    fn is_unique(&self) -> bool {
        self.present >= 100 && self.distinct.len() * 100 >= self.present * 98
    }

    /// `complete`: the sample has all rows.
    pub(super) fn guess(&self, complete: bool) -> Guess {
        const EVERY_ROW: Guess = Guess::Left("different in every row");
        if let Some(why) = self.unreadable() {
            return Guess::Left(why);
        }
        if named(&self.name, 'I') && self.is_number() {
            return Guess::Numeric;
        }
        if named(&self.name, 'C') {
            return Guess::Categorical;
        }
        if self.present == 0 || self.distinct.len() < 2 {
            return Guess::Left("always the same");
        }
        if is_unnamed(&self.name) {
            return Guess::Left("a column without a name");
        }
        if !self.is_number() {
            return if self.is_unique() { EVERY_ROW } else { Guess::Categorical };
        }
        let id = is_id(&self.name) && self.is_integer();
        // In a part of the rows, all ids of many users may differ.
        let rows = is_row_number(&self.name) || id && (complete || self.counting);
        if rows && self.is_integer() && self.is_unique() {
            return EVERY_ROW;
        }
        if !id && (!self.is_integer() || self.distinct.len() > 256) {
            return Guess::Numeric;
        }
        Guess::Categorical
    }

    /// A remark on values that do not fit the guess.
    pub(super) fn remark(&self, guess: &Guess) -> Option<String> {
        let Self { name, present, numbers, absent, .. } = self;
        let others = present - numbers;
        match (guess, &self.other, &self.marker) {
            (Guess::Numeric, Some(other), _) => Some(format!(
                "{name}: {others} of {present} values are not numbers, such as '{other}': their rows cannot be used"
            )),
            (Guess::Numeric, None, Some(marker)) => {
                let all = present + absent;
                Some(format!("{name}: {absent} of {all} values count as missing, such as '{marker}'"))
            }
            (Guess::Categorical | Guess::Left(_), Some(other), _) if *numbers > others => Some(format!(
                "{name}: not numeric, because {others} of {present} values are not numbers, such as '{other}'"
            )),
            _ => None,
        }
    }

    /// `log1p` for values over several orders of magnitude.
    pub(super) fn transform(&self) -> Transform {
        let spread = self.max > 20.0 * self.sum / self.numbers.max(1) as f64;
        if spread && !self.negative || named(&self.name, 'I') {
            Transform::Log1p
        } else {
            Transform::Identity
        }
    }

    pub(super) fn kind(&self) -> Kind {
        if self.is_integer() && !self.negative { Kind::Id } else { Kind::Text }
    }
}
