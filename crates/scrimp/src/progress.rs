//! Progress bars on stderr.

use indicatif::{ProgressBar, ProgressStyle};
use scrimp_hub::Progress;

/// One bar at a time, on stderr if that is a terminal.
pub(crate) struct Bars {
    bar: ProgressBar,
}

impl Bars {
    /// Without a bar.
    pub(crate) fn new() -> Self {
        Self { bar: ProgressBar::hidden() }
    }
}

impl Progress for Bars {
    fn begin(&mut self, what: &str, total: Option<u64>, done: u64) {
        self.end();
        let (bar, template) = match total {
            Some(n) => {
                (ProgressBar::new(n), "{msg}  {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
            }
            None => (ProgressBar::new_spinner(), "{msg}  {spinner} {bytes}  {bytes_per_sec}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = bar.with_style(style).with_message(what.to_owned()).with_position(done);
        self.bar.reset_eta();
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }

    fn note(&mut self, message: &str) {
        self.bar.suspend(|| eprintln!("{message}"));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.end();
    }
}

/// A bar that counts things, on stderr if that is a terminal. Dropping it removes the bar.
pub(crate) struct CountBar(ProgressBar);

impl CountBar {
    /// Counts `things`.
    pub(crate) fn new(things: &str) -> Self {
        let template = format!("{{wide_bar}} {{pos}}/{{len}} {things}  {{msg}}  {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style))
    }

    /// Shows `done` of `total` and a message.
    pub(crate) fn show(&self, done: usize, total: usize, message: &str) {
        self.0.set_length(total as u64);
        self.0.set_message(message.to_owned());
        self.0.set_position(done as u64);
    }
}

impl Drop for CountBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
