//! The machine: facts from /proc and /sys, and the measured memory bandwidth.

use scrimp_kernels::{SimdLevel, mem::Arena, mem::largest_word};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// CPU features that kernels use, by Linux' names.
const FEATURES: [&str; 17] = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_vbmi2",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
];

/// The CPU's name and its features among [`FEATURES`].
pub(crate) fn cpu() -> (String, Vec<&'static str>) {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        info.lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| names.contains(&k.trim()))
            .map(|(_, v)| v.trim())
    };
    let name = field(&["model name", "Processor"])
        .map_or_else(|| field(&["CPU part"]).map_or_else(|| "unknown".to_owned(), arm_core), str::to_owned);
    let flags: Vec<&str> = field(&["flags", "Features"]).unwrap_or_default().split_whitespace().collect();
    (name, FEATURES.into_iter().filter(|f| flags.contains(f)).collect())
}

/// The name of a core of ARM from its part number.
fn arm_core(part: &str) -> String {
    let name = match part {
        "0xd03" => "Cortex-A53",
        "0xd08" => "Cortex-A72",
        "0xd0b" => "Cortex-A76",
        "0xd0c" => "Neoverse N1",
        "0xd40" => "Neoverse V1",
        "0xd49" => "Neoverse N2",
        "0xd4f" => "Neoverse V2",
        _ => return format!("part {part}"),
    };
    format!("{name} ({part})")
}

/// Number of online CPUs, including those that this process may not use.
pub(crate) fn online_cpus() -> Option<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    list.trim().split(',').try_fold(0, |n, range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        Some(n + to.checked_sub(from)? + 1)
    })
}

/// CPU quota of the control group in CPUs; `None`: no limit.
pub(crate) fn cpu_quota() -> Option<f64> {
    let v2 = cgroup_files("cpu.max").filter_map(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok().filter(|&p| p > 0.0)?)
    });
    let period =
        || fs::read_to_string("/sys/fs/cgroup/cpu/cpu.cfs_period_us").ok()?.trim().parse::<f64>().ok();
    let v1 = cgroup_files("cpu/cpu.cfs_quota_us").filter_map(|text| {
        let quota = text.trim().parse::<f64>().ok().filter(|&q| q > 0.0)?;
        Some(quota / period().filter(|&p| p > 0.0)?)
    });
    v2.chain(v1).min_by(f64::total_cmp)
}

/// Bytes of memory: total, available, and the limit of the control group.
pub(crate) fn memory() -> (Option<u64>, Option<u64>, Option<u64>) {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find_map(|l| l.strip_prefix(name))?;
        Some(line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    let total = field("MemTotal");
    let limit = cgroup_files("memory.max")
        .chain(cgroup_files("memory/memory.limit_in_bytes"))
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .filter(|&l| total.is_none_or(|t| l < t))
        .min();
    (total, field("MemAvailable"), limit)
}

/// Contents of a control file in the process' control group and in all its ancestors.
fn cgroup_files(name: &str) -> impl Iterator<Item = String> {
    let root = Path::new("/sys/fs/cgroup");
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let (controller, file) = name.split_once('/').unwrap_or(("", name));
    let own = groups.lines().find_map(|l| {
        let mut parts = l.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        controllers.split(',').any(|c| c == controller).then(|| path.trim_start_matches('/').to_owned())
    });
    let base = root.join(controller);
    let mut dirs: Vec<PathBuf> = vec![base.clone()];
    if let Some(own) = own {
        let ancestors = Path::new(&own).ancestors().filter(|p| !p.as_os_str().is_empty());
        dirs.extend(ancestors.map(|p| base.join(p)));
    }
    let file = file.to_owned();
    dirs.into_iter().filter_map(move |d| fs::read_to_string(d.join(&file)).ok())
}

/// The kernel's mode of transparent huge pages: `always`, `madvise` or `never`.
pub(crate) fn huge_page_mode() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

/// Size in bytes of the largest cache of CPU 0.
pub(crate) fn last_level_cache() -> Option<u64> {
    let caches = (0..8).filter_map(|i| {
        let text = fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).ok()?;
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let factor = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => 1,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    });
    caches.max()
}

/// Measured read bandwidth, bytes per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bandwidth {
    /// Of memory with huge pages, which weights use.
    pub(crate) huge: Option<f64>,
    /// Of memory with ordinary pages.
    pub(crate) ordinary: Option<f64>,
}

impl Bandwidth {
    /// Reads memory with `threads` threads for about a second.
    pub(crate) fn measure(threads: usize) -> Self {
        // Larger than the CPU caches, and small enough for any machine.
        let size = last_level_cache().unwrap_or(0).saturating_mul(4).clamp(256 << 20, 1 << 30);
        let available = memory().1.unwrap_or(u64::MAX);
        let size = usize::try_from(size.min(available / 4)).unwrap_or(usize::MAX);
        let huge =
            Arena::new(Arena::size_of(size)).and_then(|mut arena| arena.alloc(size)).ok().map(|mut block| {
                block.fill(1);
                read_speed(&block, threads)
            });
        // The arena is freed, so there is room for a second buffer.
        let ordinary = huge.map(|_| read_speed(&vec![1; size], threads));
        Self { huge, ordinary }
    }

    /// The larger of both.
    pub(crate) fn best(self) -> Option<f64> {
        self.huge.into_iter().chain(self.ordinary).max_by(f64::total_cmp)
    }
}

/// Best read speed of several passes over `memory`, bytes per second.
fn read_speed(memory: &[u8], threads: usize) -> f64 {
    let level = SimdLevel::detect();
    let begin = Instant::now();
    let mut best = Duration::MAX;
    let mut passes = 0;
    while passes < 3 || begin.elapsed() < Duration::from_millis(400) {
        let pass = Instant::now();
        std::thread::scope(|scope| {
            for chunk in memory.chunks(memory.len().div_ceil(threads).max(1)) {
                scope.spawn(move || std::hint::black_box(largest_word(level, chunk)));
            }
        });
        best = best.min(pass.elapsed());
        passes += 1;
    }
    memory.len() as f64 / best.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_has_a_speed() {
        assert!(read_speed(&vec![1; 1 << 20], 2) > 1e6);
    }
}
