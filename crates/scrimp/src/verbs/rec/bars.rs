//! Progress of work on rows, on stderr if that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use scrimp_rec::recipe::Event;

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

/// A progress bar of a training.
pub(super) struct TrainingBar {
    bar: RowBar,
    epochs: u64,
}

impl TrainingBar {
    /// A bar of a training of `epochs` epochs.
    pub(super) fn new(epochs: u64) -> Self {
        Self { bar: RowBar::new("counting ids"), epochs }
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: &Event<'_>) {
        let bar = &mut self.bar;
        match event {
            Event::Counting(rows, part) => bar.show(*part, || format!("{rows} rows")),
            Event::Planned(ids, config) => bar.note(&format!(
                "{} ids of {} features; {} with {} dimensions",
                ids.total(),
                ids.distinct.len(),
                config.encoder,
                config.dim
            )),
            Event::Fitting(rows, part, error) => {
                bar.switch("fitting");
                bar.show(*part, || format!("{rows} rows  error {error:.3}"));
            }
            Event::Training(p) => {
                bar.switch("training");
                let part = p.epoch_progress.map(|part| (p.epoch as f64 + part) / self.epochs.max(1) as f64);
                bar.show(part, || {
                    let (epoch, rows_per_second) = (p.epoch + 1, p.rows_per_second);
                    format!(
                        "pass {epoch} of {}  log loss {:.4}  {rows_per_second:.0} rows/s",
                        self.epochs, p.logloss
                    )
                });
            }
        }
    }
}

impl Drop for RowBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
