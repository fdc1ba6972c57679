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
