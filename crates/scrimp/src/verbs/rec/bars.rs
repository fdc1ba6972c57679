//! Progress of work on rows, on stderr where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of parts per million.
pub(super) struct RowBar {
    bar: ProgressBar,
    what: String,
}

impl RowBar {
    /// A bar of what is being done.
    pub(super) fn new(what: &str) -> Self {
        let template = "{prefix}  {wide_bar} {percent}%  {msg}  {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(1_000_000).with_style(style).with_prefix(what.to_owned());
        Self { bar, what: what.to_owned() }
    }

    /// Shows other work from now on.
    pub(super) fn switch(&mut self, what: &str) {
        if self.what != what {
            self.what = what.to_owned();
            self.bar.reset();
            self.bar.set_prefix(self.what.clone());
        }
    }

    /// The part that is done, 0 to 1, where it is known, and a few words.
    pub(super) fn show(&self, part: Option<f64>, words: impl FnOnce() -> String) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_message(words());
        match part {
            Some(part) => self.bar.set_position((part.clamp(0.0, 1.0) * 1e6) as u64),
            None => self.bar.tick(),
        }
    }

    /// Prints a line above the bar.
    pub(super) fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for RowBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
