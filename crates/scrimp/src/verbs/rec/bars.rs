//! Progress of work on rows, on stderr if that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar in parts per million.
pub(super) struct RowBar {
    bar: ProgressBar,
    what: String,
}

impl RowBar {
    /// A bar with the label `what`.
    pub(super) fn new(what: &str) -> Self {
        let template = "{prefix}  {wide_bar} {percent}%  {msg}  {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(1_000_000).with_style(style).with_prefix(what.to_owned());
        Self { bar, what: what.to_owned() }
    }

    /// Changes the label and restarts the bar.
    pub(super) fn switch(&mut self, what: &str) {
        if self.what != what {
            self.what = what.to_owned();
            self.bar.reset();
            self.bar.set_prefix(self.what.clone());
        }
    }

    /// Shows the finished fraction (0 to 1; `None`: unknown) and a message.
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
