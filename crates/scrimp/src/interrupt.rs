//! Ctrl-C: ends the process with status 130, or sets a flag while a verb handles interrupts itself.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static GRACEFUL: AtomicBool = AtomicBool::new(false);

/// Installs the handler. Called once, at the start.
pub(crate) fn install() {
    let handler = || {
        // A second Ctrl-C ends the process in any case.
        let again = REQUESTED.swap(true, Ordering::SeqCst);
        if again || !GRACEFUL.load(Ordering::SeqCst) {
            eprintln!();
            std::process::exit(130);
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        eprintln!("warning: cannot handle Ctrl-C: {e}");
    }
}

/// True after Ctrl-C or SIGTERM.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The flag behind [`requested`], for libraries that poll it.
pub(crate) fn flag() -> &'static AtomicBool {
    &REQUESTED
}

/// Clears a handled interrupt: in a chat it ends one answer and not the chat.
pub(crate) fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// While a value exists, Ctrl-C sets the flag behind [`requested`] and does not end the process.
pub(crate) struct Graceful(());

impl Graceful {
    /// Starts to handle Ctrl-C.
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
