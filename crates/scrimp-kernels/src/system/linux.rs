//! Facts from `/proc` and `/sys`, and advice on memory, on Linux.

use super::Memory;
use std::{
    fs,
    path::{Path, PathBuf},
    ptr::NonNull,
};

/// Memory of the machine, and the limit of the control group.
pub(super) fn memory() -> Memory {
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
    Memory { total, available: field("MemAvailable"), limit }
}

/// The CPU's name; on ARM the name of the core, from its part number.
pub(super) fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| {
        info.lines().filter_map(|l| l.split_once(':')).find(|(k, _)| k.trim() == name).map(|(_, v)| v.trim())
    };
    let name = field("model name").or_else(|| field("Processor")).map(str::to_owned);
    name.or_else(|| field("CPU part").map(arm_core))
}

/// The name of a core of ARM from its part number.
fn arm_core(part: &str) -> String {
    let name = match part {
        "0xd03" => "Cortex-A53",
        "0xd05" => "Cortex-A55",
        "0xd08" => "Cortex-A72",
        "0xd0b" => "Cortex-A76",
        "0xd0c" => "Neoverse N1",
        "0xd40" => "Neoverse V1",
        "0xd49" => "Neoverse N2",
        "0xd4f" => "Neoverse V2",
        "0xd84" => "Neoverse V3",
        "0xd8e" => "Neoverse N3",
        _ => return format!("part {part}"),
    };
    format!("{name} ({part})")
}

/// Number of online CPUs.
pub(super) fn online_cpus() -> Option<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    list.trim().split(',').try_fold(0, |n, range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        Some(n + to.checked_sub(from)? + 1)
    })
}

/// CPU quota of the control group in CPUs.
pub(super) fn cpu_quota() -> Option<f64> {
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

/// The mode of transparent huge pages.
pub(super) fn huge_page_mode() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

/// Size in bytes of the largest cache of CPU 0.
pub(super) fn last_level_cache() -> Option<u64> {
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

/// The largest resident memory so far. `getrusage` includes the memory of the program that this process ran before, so
/// it is the second choice.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return super::process::peak_rss(1024) };
    status_bytes(&status, "VmHWM:")
}

/// The resident memory.
pub(super) fn rss_bytes() -> Option<u64> {
    status_bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// A size of `/proc/self/status`.
fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Requests permission to use tile registers: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(target_arch = "x86_64")]
pub(super) fn permits_tile_registers() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call only changes the set of registers that this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Requests huge pages for a mapping. The system may refuse.
///
/// # Safety
/// The range is whole pages of a mapping.
pub(super) unsafe fn request_huge_pages(base: NonNull<u8>, len: usize) {
    // SAFETY: the caller guarantees the range; the advice changes no contents.
    unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
}

/// Drops the whole pages `range` of a file's read-only map from resident memory.
pub(super) fn release(range: &[u8]) {
    // SAFETY: `super::release` passes whole pages of a read-only map of a file. DONTNEED drops clean pages, which the
    // next access reads from the file again.
    unsafe { libc::madvise(range.as_ptr().cast_mut().cast(), range.len(), libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_names() {
        assert_eq!(arm_core("0xd0c"), "Neoverse N1 (0xd0c)");
        assert_eq!(arm_core("0xfff"), "part 0xfff");
    }
}
