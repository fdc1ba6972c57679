//! The Rust half of the Python package `scrimp`: Python types and functions over the library crates.
//!
//! A tensor arrives as a Python object, whose reference keeps it alive. Calls read and write its memory in place
//! ([`tensor`]). Long calls release the GIL. The Python half is `python/scrimp`.

#[cfg(feature = "command")]
mod command;
mod embedding;
mod linear;
mod llm;
mod openmp;
mod prune;
mod rec;
mod runtime;
mod tensor;

use pyo3::prelude::*;

/// Registers the types and functions.
#[pymodule]
fn _scrimp(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<embedding::MemRec>()?;
    m.add_class::<linear::PackedMatrix>()?;
    m.add_class::<llm::Cancel>()?;
    m.add_class::<llm::LanguageModel>()?;
    m.add_class::<prune::InputStatistics>()?;
    m.add_class::<rec::RecModel>()?;
    #[cfg(feature = "command")]
    m.add_function(wrap_pyfunction!(command::command, m)?)?;
    m.add_function(wrap_pyfunction!(prune::compress_matrix, m)?)?;
    m.add_function(wrap_pyfunction!(runtime::set_num_threads, m)?)?;
    m.add_function(wrap_pyfunction!(runtime::get_num_threads, m)?)?;
    m.add_function(wrap_pyfunction!(runtime::use_threads_of, m)?)?;
    m.add_function(wrap_pyfunction!(runtime::borrows_threads, m)?)?;
    m.add_function(wrap_pyfunction!(runtime::after_fork, m)?)?;
    m.add_function(wrap_pyfunction!(runtime::simd_level, m)?)?;
    Ok(())
}
