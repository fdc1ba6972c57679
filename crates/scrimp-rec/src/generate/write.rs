//! Writes generated rows to a file.

use super::{GeneratorOptions, World, next_block};
use crate::{
    Error, Result,
    data::{
        Batch,
        ordered::{Ordered, Work},
    },
    schema::MISSING,
};
use scrimp_base::AtomicFile;
use std::{io::Write as _, ops::Range, path::Path, sync::Arc};

/// The size of a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// The format of a file, by its name.
#[derive(Debug, Clone, Copy)]
struct Look {
    separator: u8,
    header: bool,
    gz: bool,
}

/// Text of blocks of rows.
struct Lines {
    world: Arc<World>,
    look: Look,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    batch: Batch,
    rows: u64,
}

impl Work for Lines {
    type Source = Range<u64>;
    type Job = Range<u64>;
    type Out = Text;

    fn take(&self, source: &mut Range<u64>) -> Option<Range<u64>> {
        next_block(source)
    }

    fn run(&self, job: Range<u64>, out: &mut Text) {
        out.rows = job.end - job.start;
        out.batch.clear();
        for row in job {
            self.world.row(row, &mut out.batch);
        }
        out.bytes.clear();
        lines(&out.batch, &self.world, self.look.separator, &mut out.bytes);
        if self.look.gz {
            out.bytes = gz(&out.bytes);
        }
    }
}

/// A gzip member; concatenated members are a gzip file.
fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

fn lines(batch: &Batch, world: &World, separator: u8, out: &mut Vec<u8>) {
    let (n, c) = (world.numbers.len(), world.features.len());
    for row in 0..batch.rows() {
        out.push(if batch.labels[row] > 0.5 { b'1' } else { b'0' });
        for &x in &batch.numeric[row * n..][..n] {
            out.push(separator);
            if !x.is_nan() {
                decimal(x as u64, out);
            }
        }
        for &id in &batch.ids[row * c..][..c] {
            out.push(separator);
            if id != MISSING {
                hex(id, out);
            }
        }
        out.push(b'\n');
    }
}

/// At least 8 lower-case digits, as in Criteo's files.
fn hex(id: u64, out: &mut Vec<u8>) {
    let digits = if id >> 32 == 0 { 8 } else { 16 };
    for i in (0..digits).rev() {
        out.push(b"0123456789abcdef"[((id >> (4 * i)) & 15) as usize]);
    }
}

fn decimal(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes the rows to `path` with `threads` threads. `progress` gets the number of rows after each block and stops the work by
/// returning false. `.tsv` and `.txt` files with 13 numeric and 26 categorical features have Criteo's format; other shapes and
/// `.csv` files have a header. A further `.gz` compresses.
///
/// # Errors
/// Invalid options, a file that cannot be written, a name with an unknown ending, or `progress` returned false.
pub fn write_file(
    options: GeneratorOptions,
    path: &Path,
    threads: usize,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Written> {
    options.check()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (name, gz_file) = name.strip_suffix(".gz").map_or((name.as_str(), false), |n| (n, true));
    let separator = match name.rsplit_once('.').map(|(_, e)| e) {
        Some("csv") => b',',
        Some("tsv" | "txt") => b'\t',
        _ => {
            return Err(Error::bad_input(format!("{}: the name does not tell the format", path.display()))
                .with_hint("name it .tsv (Criteo's format), .csv, .tsv.gz or .csv.gz"));
        }
    };
    let criteo = separator == b'\t' && options.numeric == 13 && options.cardinalities.len() == 26;
    let look = Look { separator, header: !criteo, gz: gz_file };
    let rows = options.first_row..options.first_row.saturating_add(options.rows);
    let world = Arc::new(World::new(options));
    let mut output = AtomicFile::create(path)?;
    if look.header {
        let schema = &world.schema;
        let mut names = vec![schema.label.clone()];
        names.extend(schema.numeric.iter().map(|c| c.name.clone()));
        names.extend(schema.categorical.iter().map(|c| c.name.clone()));
        let line = names.join(if separator == b',' { "," } else { "\t" }) + "\n";
        output.append(&if gz_file { gz(line.as_bytes()) } else { line.into_bytes() })?;
    }
    let mut blocks = Ordered::new(Lines { world, look }, rows, threads);
    let mut written = 0;
    while let Some(block) = blocks.next(|text| output.append(&text.bytes).map(|()| text.rows)) {
        written += block?;
        if !progress(written) {
            return Err(Error::bad_input("stopped"));
        }
    }
    Ok(Written { rows: written, bytes: output.commit()? })
}
