//! Synthetic click logs.
