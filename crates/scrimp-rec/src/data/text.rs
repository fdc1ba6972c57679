//! Text files with a row per line. Blocks end at line ends; threads parse them, and rows keep the order of the file.

use super::{
    Batch, Block, BlockSource, OpenOptions, RowSource,
    input::Input,
    ordered::{Ordered, Work},
};
use crate::{Error, Result, schema::Schema};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes of a block, and the longest line.
pub(super) const BLOCK: usize = 1 << 20;

/// The largest number of messages that a block stores; further invalid rows are counted.
const KEPT: usize = 64;

/// A format with a row per line.
pub(crate) trait Parse: Send + Sync + 'static {
    /// Whether each file begins with a header line.
    const HEADER: bool;

    /// Checks the header line.
    fn header(&self, line: &[u8]) -> Result<(), String>;

    /// Appends the row in `line`, which is not empty and has no line end. After an error the caller removes a partial row.
    fn line(&self, line: &[u8], out: &mut Batch, scratch: &mut Scratch) -> Result<(), String>;
}

/// Buffers of a parser.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) bytes: Vec<u8>,
}

/// Lines of one block.
pub(super) struct RawBlock {
    pub(super) text: Vec<u8>,
    /// The index of the file.
    pub(super) file: usize,
    /// The number of the first line, from 1.
    pub(super) line: u64,
}

/// Reads files in blocks.
pub(super) struct Files {
    paths: Arc<[PathBuf]>,
    read: Arc<AtomicU64>,
    block: usize,
    file: usize,
    input: Option<Input>,
    /// The beginning of the line that the last block cut off.
    carry: Vec<u8>,
    line: u64,
    failed: bool,
}

impl Files {
    pub(super) fn new(paths: Arc<[PathBuf]>, read: Arc<AtomicU64>, block: usize) -> Self {
        Self { paths, read, block, file: 0, input: None, carry: Vec::new(), line: 1, failed: false }
    }

    /// The next block; `None` after the last one or after an error.
    pub(super) fn next(&mut self) -> Option<Result<RawBlock>> {
        if self.failed {
            return None;
        }
        let block = self.read_block().transpose();
        self.failed = matches!(block, Some(Err(_)));
        block
    }

    fn read_block(&mut self) -> Result<Option<RawBlock>> {
        loop {
            let Some(path) = self.paths.get(self.file) else { return Ok(None) };
            let input = match &mut self.input {
                Some(input) => input,
                none => none.insert(Input::open(path, &self.read)?),
            };
            let mut text = std::mem::take(&mut self.carry);
            let start = text.len();
            text.resize(self.block, 0);
            let n = input.fill(&mut text[start..])?;
            text.truncate(start + n);
            let (file, line) = (self.file, self.line);
            if text.len() < self.block {
                // The end of the file: the rest is its last line.
                (self.file, self.line, self.input) = (self.file + 1, 1, None);
                if text.is_empty() {
                    if line == 1 {
                        return Err(Error::bad_file(path, "the file is empty"));
                    }
                    continue;
                }
                return Ok(Some(RawBlock { text, file, line }));
            }
            let Some(end) = memchr::memrchr(b'\n', &text) else {
                return Err(Error::bad_file(
                    path,
                    format!("line {line} is longer than {} bytes: is this a text file?", self.block),
                ));
            };
            self.carry = text[end + 1..].to_vec();
            text.truncate(end + 1);
            self.line += memchr::memchr_iter(b'\n', &text).count() as u64;
            return Ok(Some(RawBlock { text, file, line }));
        }
    }
}

/// The lines of `text` without their ends (LF or CRLF), numbered from `first`.
pub(super) fn lines(text: &[u8], first: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = text;
    let mut number = first;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = match memchr::memchr(b'\n', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &[][..]),
        };
        rest = after;
        number += 1;
        Some((number - 1, line.strip_suffix(b"\r").unwrap_or(line)))
    })
}

/// Text without a byte order mark.
pub(super) fn without_bom(line: &[u8]) -> &[u8] {
    line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line)
}

struct Parsing<P> {
    parser: P,
    numeric: usize,
    categorical: usize,
}

#[derive(Default)]
struct Parsed {
    rows: Batch,
    file: usize,
    bad: Vec<(u64, String)>,
    bad_rows: u64,
    error: Option<Failure>,
    scratch: Scratch,
}

/// Errors that end the reading.
enum Failure {
    Reading(Error),
    Header(u64, String),
}

impl<P: Parse> Work for Parsing<P> {
    type Source = Files;
    type Job = Result<RawBlock>;
    type Out = Parsed;

    fn take(&self, source: &mut Files) -> Option<Self::Job> {
        source.next()
    }

    fn run(&self, job: Self::Job, out: &mut Parsed) {
        out.rows.clear();
        out.bad.clear();
        (out.bad_rows, out.error) = (0, None);
        let block = match job {
            Ok(block) => block,
            Err(e) => {
                out.error = Some(Failure::Reading(e));
                return;
            }
        };
        out.file = block.file;
        let rows = &mut out.rows;
        for (number, line) in lines(&block.text, block.line) {
            if number == 1 {
                let first = without_bom(line);
                if P::HEADER {
                    if let Err(what) = self.parser.header(first) {
                        out.error = Some(Failure::Header(number, what));
                        return;
                    }
                    continue;
                }
            }
            let line = if number == 1 { without_bom(line) } else { line };
            if line.is_empty() {
                continue;
            }
            let before = (rows.labels.len(), rows.numeric.len(), rows.ids.len());
            if let Err(what) = self.parser.line(line, rows, &mut out.scratch) {
                rows.labels.truncate(before.0);
                rows.numeric.truncate(before.1);
                rows.ids.truncate(before.2);
                out.bad_rows += 1;
                if out.bad.len() < KEPT {
                    out.bad.push((number, what));
                }
            }
        }
        debug_assert_eq!(rows.numeric.len(), rows.rows() * self.numeric);
        debug_assert_eq!(rows.ids.len(), rows.rows() * self.categorical);
    }
}

/// Rows of text files.
pub(crate) struct TextSource<P: Parse> {
    schema: Schema,
    paths: Arc<[PathBuf]>,
    bytes: u64,
    read: Arc<AtomicU64>,
    options: OpenOptions,
    make: Box<dyn Fn() -> P + Send>,
    blocks: Ordered<Parsing<P>>,
    block: Block,
    bad_rows: u64,
    good_rows: u64,
    over: bool,
}

impl<P: Parse> TextSource<P> {
    /// Reads `paths` in sequence. `make` makes the parser.
    pub(crate) fn new(
        schema: Schema,
        paths: &[PathBuf],
        options: OpenOptions,
        make: impl Fn() -> P + Send + 'static,
    ) -> Self {
        let paths: Arc<[PathBuf]> = paths.into();
        let bytes = paths.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum();
        let read = Arc::new(AtomicU64::new(0));
        let make: Box<dyn Fn() -> P + Send> = Box::new(make);
        let blocks = start(&schema, make(), &paths, &read, &options);
        Self {
            schema,
            paths,
            bytes,
            read,
            options,
            make,
            blocks,
            block: Block::default(),
            bad_rows: 0,
            good_rows: 0,
            over: false,
        }
    }
}

impl<P: Parse> BlockSource for TextSource<P> {
    fn block(&mut self) -> &mut Block {
        &mut self.block
    }

    fn read_block(&mut self) -> Result<bool> {
        if self.over {
            return Ok(false);
        }
        let Self { blocks, block, paths, options, bad_rows, .. } = self;
        let block = block.refill();
        block.clear();
        while block.is_empty() {
            let took = blocks.next(|parsed| {
                std::mem::swap(&mut parsed.rows, block);
                check(parsed, paths, options, bad_rows)
            });
            match took {
                Some(result) => result?,
                None => {
                    self.over = true;
                    if self.good_rows == 0 {
                        let path = paths.first().map_or(Path::new(""), PathBuf::as_path);
                        return Err(Error::bad_file(path, "there is not one row that can be used"));
                    }
                    return Ok(false);
                }
            }
        }
        self.good_rows += block.rows() as u64;
        Ok(true)
    }
}

/// Counts the invalid rows of a block. Too many are an error.
fn check(parsed: &mut Parsed, paths: &[PathBuf], options: &OpenOptions, bad_rows: &mut u64) -> Result<()> {
    let allowed = options.skip_bad_rows;
    let path = paths.get(parsed.file).map_or(Path::new(""), PathBuf::as_path);
    let before = *bad_rows;
    *bad_rows += parsed.bad_rows;
    if *bad_rows > allowed {
        let at = usize::try_from(allowed - before).unwrap_or(usize::MAX).min(parsed.bad.len() - 1);
        let (line, what) = parsed.bad.swap_remove(at);
        let what = match allowed {
            0 => what,
            n => format!("{what} (the bad row number {}, {n} may be skipped)", n + 1),
        };
        return Err(super::bad_row(path, line, what, options));
    }
    match parsed.error.take() {
        None => Ok(()),
        Some(Failure::Reading(e)) => Err(e),
        Some(Failure::Header(line, what)) => Err(Error::bad_file(path, format!("line {line}: {what}"))
            .with_hint("all files must have the same columns")),
    }
}

fn start<P: Parse>(
    schema: &Schema,
    parser: P,
    paths: &Arc<[PathBuf]>,
    read: &Arc<AtomicU64>,
    options: &OpenOptions,
) -> Ordered<Parsing<P>> {
    let work = Parsing { parser, numeric: schema.n_numeric(), categorical: schema.n_categorical() };
    read.store(0, Ordering::Relaxed);
    Ordered::new(work, Files::new(paths.clone(), read.clone(), options.block), options.threads)
}

impl<P: Parse> RowSource for TextSource<P> {
    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        self.batch_from_blocks(rows, batch)
    }

    fn rewind(&mut self, _epoch: u64) -> Result<()> {
        self.blocks = start(&self.schema, (self.make)(), &self.paths, &self.read, &self.options);
        self.block.clear();
        (self.bad_rows, self.good_rows, self.over) = (0, 0, false);
        Ok(())
    }

    fn progress(&self) -> Option<f64> {
        let read = self.read.load(Ordering::Relaxed) as f64;
        (self.bytes > 0).then(|| (read / self.bytes as f64).min(1.0))
    }

    fn bad_rows(&self) -> u64 {
        self.bad_rows
    }
}
