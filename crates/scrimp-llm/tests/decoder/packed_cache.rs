//! A cache whose old pages are packed is smaller, and its logits are close to those of a bf16 cache.

use crate::common::{Expected, load_in, read_json, testdata};
use scrimp_kv::KvFormat;

#[test]
fn packed_caches_are_smaller_and_close() {
    let folder = testdata("tiny").join("llama");
    let expected: Expected = read_json(&folder.join("expected.json"));
    // A page of 64 tokens is packed after the prompt, and the second after the last of the tokens that follow.
    let ids: Vec<u32> = expected.ids.iter().copied().cycle().take(128).collect();
    let run = |format: &str, level: Option<&str>| {
        let model = load_in(&folder, level, format);
        let mut session = model.session();
        session.forward(&ids[..100]).unwrap();
        let mut logits = Vec::new();
        for &id in &ids[100..] {
            logits.extend_from_slice(session.forward(&[id]).unwrap());
        }
        // Going back into a packed page, and on from there.
        session.truncate(40);
        logits.extend_from_slice(session.forward(&ids[40..80]).unwrap());
        session.truncate(0);
        session.forward(&ids[..128]).unwrap();
        (logits, session.kv_bytes())
    };
    for level in [Some("scalar"), None] {
        let (want, full) = run("bf16", level);
        for (format, bound, share) in [("int8", 0.05, 0.9), ("int4", 0.5, 0.5), ("sparse:0.3,0.3", 0.7, 1.0)]
        {
            let (logits, bytes) = run(format, level);
            assert!((bytes as f64) < full as f64 * share, "{format}: {bytes} of {full} bytes");
            let difference = logits.iter().zip(&want).map(|(a, b)| (a - b).abs()).sum::<f32>();
            let mean = difference / logits.len() as f32 / expected.logits_std;
            assert!(mean > 0.0, "{format}: nothing was packed");
            assert!(mean <= bound, "{format}: {mean}");
        }
    }
}

#[test]
fn unknown_formats_are_refused() {
    let error = "sparse:2,0".parse::<KvFormat>().unwrap_err().to_string();
    assert!(error.contains("KV sparsity"), "{error}");
}

#[test]
fn the_parts_of_a_prompt_do_not_decide_when_its_pages_are_packed() {
    for (name, format) in
        [("llama", "int8"), ("llama", "int4"), ("qwen3", "int8"), ("llama", "sparse:0.3,0.3")]
    {
        let model = load_in(&testdata("tiny").join(name), None, format);
        let ids: Vec<u32> = (0..128).map(|i| (i * i * 7 + i / 3) % model.vocab_size() as u32).collect();
        let logits = |parts: &[usize]| {
            let mut session = model.session();
            session.begin_prompt(128);
            let (mut rest, mut logits) = (&ids[..], Vec::new());
            for &n in parts {
                let (part, behind) = rest.split_at(n);
                (logits, rest) = (session.forward(part).unwrap().to_vec(), behind);
            }
            (logits, session.kv_bytes())
        };
        // A page is old enough for packing after 96 tokens.
        let whole = logits(&[128]);
        for parts in [&[64, 64][..], &[96, 32], &[64, 32, 32]] {
            assert!(logits(parts) == whole, "{name} {format} in parts of {parts:?}");
        }
    }
}
