//! Ctrl-C: ends the process with status 130, or, while a verb is generating, only asks it to stop.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static GRACEFUL: AtomicBool = AtomicBool::new(false);

/// Installs the handler. Called once, at the start.
pub(crate) fn install() {
    let handler = || {
        // A second Ctrl-C ends the process even while a verb winds down.
        let again = REQUESTED.swap(true, Ordering::SeqCst);
        if again || !GRACEFUL.load(Ordering::SeqCst) {
            eprintln!();
            std::process::exit(130);
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        eprintln!("warning: no handler for Ctrl-C: {e}");
    }
}

/// True once Ctrl-C was pressed (or SIGTERM arrived).
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The flag behind [`requested`], for work that looks at it by itself.
pub(crate) fn flag() -> &'static AtomicBool {
    &REQUESTED
}

/// Forgets an interrupt that was dealt with: in a chat it ends one answer, not the chat.
pub(crate) fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// While it lives, Ctrl-C sets the flag behind [`requested`] instead of ending the process.
pub(crate) struct Graceful(());

impl Graceful {
    /// Takes over Ctrl-C until dropped.
    pub(crate) fn begin() -> Self {
        GRACEFUL.store(true, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        GRACEFUL.store(false, Ordering::SeqCst);
    }
}
