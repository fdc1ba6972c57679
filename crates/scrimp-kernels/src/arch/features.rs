//! The CPU's name and features, for reports. Kernels use [`SimdLevel`](super::SimdLevel).

/// Names of Linux for the features that kernels use, among those of this CPU.
pub fn cpu_features() -> Vec<&'static str> {
    all().into_iter().filter_map(|(name, found)| found.then_some(name)).collect()
}

/// The CPU's name, from the CPU or from the system.
pub fn cpu_name() -> Option<String> {
    brand().or_else(crate::system::cpu_name)
}

#[cfg(target_arch = "x86_64")]
fn all() -> Vec<(&'static str, bool)> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::is_x86_feature_detected as has;
    // The standard library does not name these bits of leaf 7 yet.
    let [edx, eax_1] =
        if __cpuid(0).eax < 7 { [0; 2] } else { [__cpuid_count(7, 0).edx, __cpuid_count(7, 1).eax] };
    let bit = |register: u32, bit: u32| register & 1 << bit != 0;
    vec![
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx_vnni", has!("avx2") && bit(eax_1, 4)),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512_vnni", has!("avx512vnni")),
        ("avx512_bf16", has!("avx512bf16")),
        ("avx512_vbmi2", has!("avx512vbmi2")),
        ("amx_tile", bit(edx, 24)),
        ("amx_int8", bit(edx, 25)),
        ("amx_bf16", bit(edx, 22)),
    ]
}

#[cfg(target_arch = "aarch64")]
fn all() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected as has;
    vec![
        ("asimd", has!("neon")),
        ("asimddp", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("bf16", has!("bf16")),
        ("sve", has!("sve")),
        ("sve2", has!("sve2")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn all() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// The name that the CPU has of itself: leaves 0x8000_0002 to 0x8000_0004 of `cpuid`.
#[cfg(target_arch = "x86_64")]
fn brand() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    const FIRST: u32 = 0x8000_0002;
    const LAST: u32 = 0x8000_0004;
    if __cpuid(0x8000_0000).eax < LAST {
        return None;
    }
    let leaves = (FIRST..=LAST).map(__cpuid).flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    let bytes: Vec<u8> = leaves.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
    let name = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!name.is_empty()).then_some(name)
}

#[cfg(not(target_arch = "x86_64"))]
fn brand() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimdLevel;

    #[test]
    fn levels_have_their_features() {
        let features = cpu_features();
        for (level, feature) in [
            (SimdLevel::avx2(), "avx2"),
            (SimdLevel::avx512(), "avx512_bf16"),
            (SimdLevel::amx(), "amx_int8"),
        ]
        .into_iter()
        .chain([
            (SimdLevel::neon(), "asimd"),
            (SimdLevel::dotprod(), "asimddp"),
            (SimdLevel::i8mm(), "i8mm"),
        ]) {
            assert!(level.is_none() || features.contains(&feature), "{level:?} {features:?}");
        }
    }
}
