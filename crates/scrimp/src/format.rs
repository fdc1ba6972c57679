//! Formatting of numbers and tables.

/// `1.3 GB`, `258 MB`, `12.5 kB`: powers of ten, three significant digits at least.
pub(crate) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        // 999.5 would be printed as 1000.
        if value < 999.5 {
            return if value < 10.0 && unit != "B" {
                format!("{value:.2} {unit}")
            } else {
                scaled(value, unit)
            };
        }
        value /= 1000.0;
    }
    scaled(value, "TB")
}

fn scaled(value: f64, unit: &str) -> String {
    if value < 99.95 && unit != "B" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A table with aligned columns: numbers to the right, the first column and text in the last one to the left.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count());
        cells.chain([head[c].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let text_last = rows.iter().filter_map(|r| r.last()).any(|s| s.contains(' '));
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (c, (cell, w)) in cells.zip(&widths).enumerate() {
            if c == 0 {
                out.push_str(&format!("{cell:<w$}"));
            } else if c + 1 == head.len() && text_last {
                out.push_str("  ");
                out.push_str(cell);
            } else {
                out.push_str(&format!("  {cell:>w$}"));
            }
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (98_100_000, "98.1 MB"),
            (999_600, "1.00 MB"),
            (258_000_000, "258 MB"),
            (1_117_000_000, "1.12 GB"),
            (u64::MAX, "18446744 TB"),
        ];
        for (n, want) in cases {
            assert_eq!(bytes(n), want);
        }
    }

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".into(), "10".into()], vec!["long".into(), "2".into()]];
        assert_eq!(table(&["name", "n"], &rows), "name   n\na     10\nlong   2\n");
    }
}
