//! Converts panics of third-party decoders on damaged files to errors, without messages on stderr.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
};

thread_local! {
    /// Whether this thread runs a guarded decoder.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`; `None` if it panicked.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    result.ok()
}

/// Installs a panic hook without messages for guarded decoders. Other panics reach the previous hook. Programs call this;
/// libraries do not change the hook.
pub fn hide_guarded_panics() {
    let other = take_hook();
    set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            other(info);
        }
    }));
}
