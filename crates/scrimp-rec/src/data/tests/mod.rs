//! Data files: accepted and refused rows, inferred schemas, damaged files.

mod damage;
mod infer;
#[cfg(feature = "parquet")]
mod parquet;
mod sources;
mod text;
#[cfg(feature = "parquet")]
mod types;

use super::*;
use crate::{
    generate::{Generator, GeneratorOptions, write_file},
    schema::{Kind, MISSING, Numeric, Transform, id_of},
};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn read(path: &Path, schema: &Schema, options: &OpenOptions) -> crate::Result<Batch> {
    let mut source = DataSet::find(path)?.open(schema, options)?;
    Ok(Memory::read(&mut *source)?.data().clone())
}

/// The error of reading with a schema that the file itself suggests.
fn complaint(path: &Path) -> String {
    let all = || -> crate::Result<Batch> {
        let (schema, _) = DataSet::find(path)?.infer(&Hints::default())?;
        read(path, &schema, &OpenOptions::default())
    };
    all().expect_err("this should be refused").to_string()
}

fn criteo_line(label: &str, number: &str, id: &str) -> String {
    let mut fields = vec![label.to_owned()];
    fields.extend((0..13).map(|i| if i == 4 { String::new() } else { number.to_owned() }));
    fields.extend((0..26).map(|i| if i == 7 { String::new() } else { id.to_owned() }));
    fields.join("\t") + "\n"
}

fn csv_schema() -> Schema {
    Schema {
        label: "y".into(),
        numeric: vec![Numeric::new("x", Transform::Identity), Numeric::new("n", Transform::Log1p)],
        categorical: ["c", "d"]
            .map(|name| crate::schema::Categorical { name: name.into(), kind: Kind::Text })
            .into(),
        crosses: vec![vec!["c".into(), "d".into()]],
    }
}
