//! Panics of decoders that others wrote: damaged files must not end the process, nor fill its log.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
};

thread_local! {
    /// Whether a panic on this thread is expected.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`; `None` if it panicked.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    result.ok()
}

/// Installs a panic hook that is silent about panics of decoders, which become errors, and passes others on. For programs;
/// libraries leave the hook alone.
pub fn hide_guarded_panics() {
    let other = take_hook();
    set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            other(info);
        }
    }));
}
