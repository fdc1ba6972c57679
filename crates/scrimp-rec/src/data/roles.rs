//! Maps the columns of a file, by name, to the columns of a schema.

use super::{
    Batch, Crosses,
    values::{applied, id, label, number, shown},
};
use crate::schema::Schema;

/// The column of the schema that a column of a file fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Ignored,
    Label,
    Number(usize),
    Category(usize),
}

/// Fills the fields of rows.
pub(super) struct Filler {
    pub(super) schema: Schema,
    crosses: Crosses,
    missing: f32,
    labels: bool,
}

/// The offsets of a row in a batch.
#[derive(Clone, Copy)]
pub(super) struct Row {
    numeric: usize,
    ids: usize,
}

impl Row {
    /// The index of number `i` in the batch.
    pub(super) fn number(self, i: usize) -> usize {
        self.numeric + i
    }

    /// The index of category `i` in the batch.
    pub(super) fn category(self, i: usize) -> usize {
        self.ids + i
    }
}

impl Filler {
    /// With `labels`, every row must have a label. Otherwise labels are ignored.
    pub(super) fn new(schema: Schema, missing: f32, labels: bool) -> Self {
        Self { crosses: Crosses::new(&schema), schema, missing, labels }
    }

    /// Whether every row must have a label.
    pub(super) fn labels(&self) -> bool {
        self.labels
    }

    /// The role of column `name`.
    pub(super) fn role(&self, name: &str) -> Role {
        if name == self.schema.label {
            return if self.labels { Role::Label } else { Role::Ignored };
        }
        if let Some(i) = self.schema.numeric.iter().position(|c| c.name == name) {
            return Role::Number(i);
        }
        self.schema.categorical.iter().position(|c| c.name == name).map_or(Role::Ignored, Role::Category)
    }

    /// The columns of the schema that `names` lacks.
    pub(super) fn absent<'a>(&'a self, names: &[String]) -> Vec<&'a str> {
        let label = self.labels.then_some(self.schema.label.as_str());
        let columns = label.into_iter().chain(self.schema.numeric.iter().map(|c| c.name.as_str()));
        let columns = columns.chain(self.schema.categorical.iter().map(|c| c.name.as_str()));
        columns.filter(|c| !names.iter().any(|n| n == c)).collect()
    }

    /// A column of the schema that `names` has twice.
    pub(super) fn twice<'a>(&self, names: &'a [String]) -> Option<&'a str> {
        let mut used: Vec<&String> = names.iter().filter(|name| self.role(name) != Role::Ignored).collect();
        used.sort_unstable();
        used.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].as_str())
    }

    /// Appends a row of missing values.
    #[inline]
    pub(super) fn begin(&self, out: &mut Batch) -> Row {
        let row = self.start(out);
        out.labels.push(f32::NAN);
        out.numeric.resize(row.numeric + self.schema.numeric.len(), self.missing);
        out.ids.resize(row.ids + self.schema.categorical.len(), crate::schema::MISSING);
        row
    }

    /// The offsets of the next row.
    pub(super) fn start(&self, out: &Batch) -> Row {
        Row { numeric: out.numeric.len(), ids: out.ids.len() }
    }

    /// Sets a field.
    #[inline]
    pub(super) fn set(&self, row: Row, role: Role, text: &[u8], out: &mut Batch) -> Result<(), String> {
        match role {
            Role::Ignored => {}
            Role::Label => {
                let value = label(text).map_err(|e| format!("column {}: {e}", self.schema.label))?;
                if let Some(last) = out.labels.last_mut() {
                    *last = value;
                }
            }
            Role::Number(i) => {
                let column = &self.schema.numeric[i];
                let x = number(text).map_err(|e| format!("column {}: {e}", column.name))?;
                out.numeric[row.numeric + i] = applied(column, x, self.missing);
            }
            Role::Category(i) => {
                let column = &self.schema.categorical[i];
                out.ids[row.ids + i] =
                    id(column, text).map_err(|e| format!("column {}: {e}", column.name))?;
            }
        }
        Ok(())
    }

    /// Appends the crosses.
    #[inline]
    pub(super) fn end(&self, row: Row, out: &mut Batch) {
        self.crosses.append(row.ids, &mut out.ids);
    }
}

/// A list of names for an error message, shortened.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| shown(n.as_bytes())).collect();
    match names.len() {
        0..=12 => names.join(", "),
        n => format!("{}, ... ({n} in all)", names[..12].join(", ")),
    }
}
