//! File formats: bytes on disk to names, numbers and byte ranges, without knowledge of models.
//!
//! Every parser reads a memory map and keeps ranges into it, so its allocations are bounded by a small multiple of
//! the header's own size: counts are compared with the bytes that are left before anything is reserved.

pub mod compressed;
pub mod gguf;
pub mod hf_dir;
pub mod safetensors;
pub mod side_files;
pub mod source;

pub use compressed::{CompressedFile, Encoding};
pub use gguf::{GgufFile, GgufMetadata};
pub use hf_dir::HfDir;
pub use safetensors::SafetensorsFile;
pub use side_files::SideFiles;
pub use source::Source;
