//! File formats: from bytes on disk to names, numbers and byte ranges. This code knows no models.
//!
//! A parser reads a memory map and stores ranges into it. Before it allocates, it compares counts with the remaining
//! bytes. Its allocations are therefore at most a small multiple of the header's size.

pub mod compressed;
pub mod gguf;
pub mod hf_dir;
pub(crate) mod hf_quantization;
pub mod safetensors;
pub mod side_files;
pub mod source;

pub use compressed::{CompressedFile, Encoding};
pub use gguf::{GgufFile, GgufMetadata, GgufTensor};
pub use hf_dir::HfDir;
pub use safetensors::SafetensorsFile;
pub use side_files::SideFiles;
pub use source::Source;
