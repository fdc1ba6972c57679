//! The decoder against transformers: tiny random models of every family, and real ones where they can be had.

mod batch;
mod common;
mod compression;
mod experts;
mod fp8;
mod gathered_attention;
mod packed_cache;
mod real_models;
mod recurrent;
mod speculation;
mod tiny_models;
mod verification;
