//! Compressed files: written, read, run, interrupted, damaged.

use scrimp_base::SplitMix64;
use scrimp_compress::{
    Budget, Calibration, Format, MatrixConfig, MatrixConfigs, Options, Output, Report, compress, pruner,
};
use scrimp_kernels::{DType, Exec, Pool, SimdLevel, quant::packed::WeightFormat};
use scrimp_llm::{
    checkpoint::Checkpoint,
    load::{Encoding, SafetensorsFile, Source},
    model::{Model, RunOptions, projections::Projection},
};
use scrimp_testkit::{copy_tiny_model, testdata};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Text for a model of `vocab` tokens: two windows of 32.
fn text(checkpoint: &Checkpoint) -> Calibration {
    let vocab = checkpoint.config().vocab_size as u32;
    Calibration { tokens: (0..64).map(|i| (i * i * 7 + i * 3 + 1) % vocab).collect(), window: 32 }
}

fn run_compress(
    model: &Path,
    out: &Path,
    choices: MatrixConfigs,
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> scrimp_llm::Result<Report> {
    run_budget(model, out, Budget::Fixed(choices), output, progress)
}

fn run_budget(
    model: &Path,
    out: &Path,
    budget: Budget,
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> scrimp_llm::Result<Report> {
    let checkpoint = Checkpoint::open(model)?;
    let calibration = text(&checkpoint);
    let options = Options { method: pruner("sparsegpt").unwrap(), budget, output, calibration: &calibration };
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::from_env().unwrap() };
    compress(exec, &checkpoint, out, &options, &mut |p| progress(p.done))
}

/// Compresses all matrices of the layers alike; the output matrix stays.
fn compress_all(
    model: &Path,
    out: &Path,
    format: impl Into<Format>,
    sparsity: f64,
) -> scrimp_llm::Result<Report> {
    run_compress(model, out, MatrixConfigs::uniform(format, sparsity), Output::Keep, &mut |_| ())
}

/// Changes the numbers of a safetensors file.
fn edit_weights(path: &Path, edit: impl FnOnce(&SafetensorsFile, &mut [u8])) {
    let mut bytes = std::fs::read(path).unwrap();
    let file = SafetensorsFile::from_source(Source::from_bytes(path, bytes.clone())).unwrap();
    edit(&file, &mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn load(path: &Path) -> scrimp_llm::Result<Model> {
    let options = RunOptions { threads: Some(2), kv_format: "f32".parse().unwrap(), ..RunOptions::default() };
    Model::load(Checkpoint::open(path)?, &options)
}

fn logits(path: &Path) -> Vec<f32> {
    let model = load(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tokens = text(model.checkpoint().unwrap()).tokens;
    let mut all = Vec::new();
    model.session().forward_each(&tokens[..40], &mut |_, row| all.extend_from_slice(row)).unwrap();
    all
}

/// Root mean square difference, as a share of the reference's spread.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let n = b.len() as f64;
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let spread = b.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
    (a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / spread).sqrt()
}

#[test]
fn every_family_survives_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    for name in [&scrimp_testkit::TINY_MODELS[..], &["phi3-longrope"]].concat() {
        let (model, out) = (testdata("tiny").join(name), dir.path().join(format!("{name}.safetensors")));
        let report = compress_all(&model, &out, WeightFormat::Bf16, 0.0).unwrap();
        assert_eq!(report.bytes_after, std::fs::metadata(&out).unwrap().len(), "{name}");
        let difference = difference(&logits(&out), &logits(&model));
        assert!(difference < 0.03, "{name}: {difference}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{name}: nothing is left beside it");
        let checkpoint = Checkpoint::open(&out).unwrap();
        assert!(checkpoint.side_files().unwrap().has("config.json") && checkpoint.hf_dir().is_none());
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn formats_and_sparsities() {
    let dir = tempfile::tempdir().unwrap();
    for (model, gguf) in [("tiny-gguf/llama-mixed.gguf", true), ("tiny/gemma3", false)] {
        let model = testdata(model);
        let want = logits(&model);
        let mut last = 0.0;
        for (format, sparsity, allowed) in [
            (WeightFormat::Int8, 0.0, 0.12),
            (WeightFormat::Int4, 0.0, 0.5),
            (WeightFormat::Int8, 0.5, 1.1),
            (WeightFormat::Int4, 0.7, 1.4),
        ] {
            let out = dir.path().join("out.safetensors");
            let choices = MatrixConfigs::uniform(format, sparsity);
            let output = Output::As(Format::INT8);
            let report = run_compress(&model, &out, choices, output, &mut |_| ()).unwrap();
            assert!(report.sparsity >= sparsity - 0.01, "{format} {sparsity}: {}", report.sparsity);
            let checkpoint = Checkpoint::open(&out).unwrap();
            let q = checkpoint.tensor("blk.0.attn_q.weight").unwrap();
            let stored = if sparsity > 0.0 { format.sparse() } else { format };
            assert_eq!(q.encoding, Encoding::Packed(stored), "{format} {sparsity}");
            let output = checkpoint
                .tensor("output.weight")
                .or_else(|_| checkpoint.tensor("token_embd.weight"))
                .unwrap();
            assert_eq!(output.encoding, Encoding::Packed(WeightFormat::Int8));
            assert_eq!(checkpoint.gguf_metadata().is_some(), gguf);
            let difference = difference(&logits(&out), &want);
            assert!(difference < allowed, "{}: {format} {sparsity}: {difference}", model.display());
            assert!(difference > last / 2.0, "{format} {sparsity}: {difference} is too good to be true");
            last = difference;
        }
    }
}

#[test]
fn layers_may_differ() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("mixed.safetensors");
    let mut choices = MatrixConfigs::uniform(WeightFormat::Int4, 0.6);
    for projection in Projection::ALL {
        choices.matrices.insert((1, projection), MatrixConfig { format: Format::INT8, sparsity: 0.0 });
    }
    run_compress(&testdata("tiny/llama"), &out, choices, Output::Keep, &mut |_| ()).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    let encoding = |name: &str| checkpoint.tensor(name).unwrap().encoding.name();
    assert_eq!(encoding("blk.0.ffn_down.weight"), "sparse-int4");
    assert_eq!(encoding("blk.1.ffn_down.weight"), "int8");
    assert!(checkpoint.history().unwrap().contains("int8"));
}

#[test]
fn budgets_are_met() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    for model in [testdata("tiny/llama"), testdata("tiny-gguf/llama-mixed.gguf")] {
        let run = |budget| run_budget(&model, &out, budget, Output::Keep, &mut |_| ());
        let uniform =
            |format, sparsity| run(Budget::Fixed(MatrixConfigs::uniform(format, sparsity))).unwrap();
        let (large, small) = (uniform(WeightFormat::Int8, 0.0), uniform(WeightFormat::Int4, 0.7));
        let bits = (large.bits_per_weight + small.bits_per_weight) / 2.0;
        let report = run(Budget::Bits(bits)).unwrap();
        // Two layers of different sizes leave few steps to choose from.
        let got = report.bits_per_weight;
        assert!(got <= 1.002 * bits && got > small.bits_per_weight, "{bits} asked for, got {got}");

        let size = (large.bytes_after + small.bytes_after) / 2;
        let report = run(Budget::Size(size)).unwrap();
        assert!(report.bytes_after <= size, "{size} asked for, got {}", report.bytes_after);
        let error = run(Budget::Size(1000)).unwrap_err();
        assert!(error.to_string().contains("at least") && error.hint().is_some(), "{error}");

        let choice = MatrixConfig { format: Format::INT8, sparsity: 0.5 };
        let report = run(Budget::BySensitivity(choice)).unwrap();
        assert!((report.sparsity - 0.5).abs() < 0.08, "{}", report.sparsity);
        let history = Checkpoint::open(&out).unwrap().history().unwrap().to_owned();
        assert!(history.contains(r#""matrices":[[0,"attn_q","int8","#), "{history}");
    }
}

#[test]
fn an_interrupted_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let model = testdata("tiny/mistral");
    let (whole, out) = (dir.path().join("whole.safetensors"), dir.path().join("out.safetensors"));
    let choices = || MatrixConfigs::uniform(WeightFormat::Int8, 0.5);
    run_compress(&model, &whole, choices(), Output::Measured, &mut |_| ()).unwrap();
    let interrupted = catch_unwind(AssertUnwindSafe(|| {
        run_compress(&model, &out, choices(), Output::Measured, &mut |done| assert!(done < 9, "interrupted"))
    }));
    assert!(interrupted.is_err() && !out.exists());
    assert!(dir.path().join("out.safetensors.work/layer-0000.safetensors").is_file());
    let mut first = None;
    run_compress(&model, &out, choices(), Output::Measured, &mut |done| {
        first.get_or_insert(done);
    })
    .unwrap();
    assert_eq!(first, Some(7), "the first layer is not done again");
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "as if nothing had happened");
    assert!(!dir.path().join("out.safetensors.work").exists());
}

#[test]
fn a_pruned_checkpoint_is_packed_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_tiny_model("mistral", &model, |_| ());
    edit_weights(&model.join("model.safetensors"), |file, bytes| {
        for tensor in file.tensors().iter().filter(|t| t.name.contains("proj")) {
            let width = tensor.dtype.bytes();
            for (i, w) in bytes[tensor.range.clone()].chunks_exact_mut(width).enumerate() {
                if i * 7 % 10 < 6 {
                    w.fill(0);
                }
            }
        }
    });
    let out = dir.path().join("packed.safetensors");
    let report = compress_all(&model, &out, WeightFormat::Bf16, 0.0).unwrap();
    assert!((report.sparsity - 0.6).abs() < 0.01, "{}", report.sparsity);
    let tensor = Checkpoint::open(&out).unwrap();
    let tensor = tensor.tensor("blk.0.ffn_up.weight").unwrap();
    assert_eq!(tensor.encoding, Encoding::Packed(WeightFormat::SparseBf16));
    let difference = difference(&logits(&out), &logits(&model));
    assert!(difference < 0.02, "{difference}");
    // Rounding leaves them zero, too.
    let report = compress_all(&model, &out, WeightFormat::Int8, 0.0).unwrap();
    assert!(report.sparsity > 0.59 && report.sparsity < 0.63, "{}", report.sparsity);
}

#[test]
fn unusable_requests() {
    let dir = tempfile::tempdir().unwrap();
    let model = testdata("tiny/mistral");
    let error = |out: &str, sparsity| {
        let out = dir.path().join(out);
        let choices = MatrixConfigs::uniform(WeightFormat::Int8, sparsity);
        run_compress(&model, &out, choices, Output::Keep, &mut |_| ()).unwrap_err().to_string()
    };
    for sparsity in [1.0, -0.1, f64::NAN] {
        assert!(error("a.safetensors", sparsity).contains("sparsity"), "{sparsity}");
    }
    assert!(error("a.gguf", 0.5).contains("safetensors"));
    assert!(error("none/a.safetensors", 0.5).contains("none"));
    let out = dir.path().join("b.safetensors");
    compress_all(&model, &out, WeightFormat::Int8, 0.0).unwrap();
    let again = dir.path().join("c.safetensors");
    let error = compress_all(&out, &again, WeightFormat::Int8, 0.5).unwrap_err();
    assert!(error.to_string().contains("compressed already"), "{error}");
}

/// A small compressed file.
fn sample() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("s.safetensors");
    let choices = MatrixConfigs::uniform(WeightFormat::Int8, 0.5);
    run_compress(&testdata("tiny-gguf/llama3.gguf"), &out, choices, Output::Keep, &mut |_| ()).unwrap();
    std::fs::read(&out).unwrap()
}

/// What opening and loading `bytes` says.
fn verdict(dir: &Path, bytes: &[u8]) -> Result<(), String> {
    let path = dir.join("attack.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let result = load(&path).and_then(|model| model.checkpoint().unwrap().tokenizer().map(drop));
    result.map_err(|e| e.to_string())
}

/// The header with `from` replaced by `to`.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + len]).unwrap();
    assert!(header.contains(from), "{from} in {header}");
    let header = header.replacen(from, to, 1);
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + len..]].concat()
}

#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = sample();
    assert_eq!(verdict(dir.path(), &bytes), Ok(()));
    for (from, to, says) in [
        (r#""scrimp.version":"1""#, r#""scrimp.version":"2""#, "version"),
        (r#""scrimp.version":"1""#, r#""scrimp.other":"1""#, "version"),
        (r#""format":"scrimp""#, r#""format":"pt""#, "configuration"),
        ("sparse-int8", "sparse-int7", "unknown type"),
        ("sparse-int8", "int8", "bytes"),
        (r#"\"n_layers\":"#, r#"\"n_layers\":9"#, "scrimp.config"),
        (r#"\"hidden_size\":"#, r#"\"hidden_size\":1"#, "shape"),
        (r#"\"head_dim\":"#, r#"\"head_dim\":0.1"#, "scrimp.config"),
        (r#"\"family\":\"llama\""#, r#"\"family\":\"lama\""#, "scrimp.config"),
        (r#"\"blk.0.attn_q.weight\":"#, r#"\"blk.7.attn_q.weight\":"#, "attn_q"),
        ("file:tokenizer.gguf", "file:tokenizer.guff", "tokenizer"),
    ] {
        let error = verdict(dir.path(), &replaced(&bytes, from, to)).unwrap_err();
        assert!(error.contains("attack.safetensors") && error.contains(says), "{from} -> {to}: {error}");
    }
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        let error = verdict(dir.path(), &bytes[..len]).unwrap_err();
        assert!(error.contains("attack.safetensors"), "{len}: {error}");
    }
    // A start, a bitmap, a scale: the content of a packed matrix is checked before use.
    let path = dir.path().join("a.safetensors");
    let file = SafetensorsFile::from_source(Source::from_bytes(&path, bytes.clone())).unwrap();
    let place = file.tensors().iter().find(|t| t.name == "blk.0.ffn_down.weight").unwrap().range.clone();
    for (at, value) in [(0, 1), (8, 0xff), (15, 0x80)] {
        let mut bytes = bytes.clone();
        bytes[place.start + at] = value;
        let error = verdict(dir.path(), &bytes).unwrap_err();
        assert!(error.contains("blk.0.ffn_down.weight"), "{at}: {error}");
    }
    let mut flipped = bytes.clone();
    flipped[place.end - 1] ^= 1;
    assert!(verdict(dir.path(), &flipped).unwrap_err().contains("padding"));
}

#[test]
fn no_change_of_a_byte_brings_the_loader_down() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = sample();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut rng = SplitMix64::new(11);
    let mut refused = 0;
    for round in 0..300 {
        let mut bytes = bytes.clone();
        let within = if round % 3 == 0 { bytes.len() } else { header + 8 };
        for _ in 0..=rng.below(3) {
            let at = rng.below(within as u64) as usize;
            bytes[at] = rng.next_u64() as u8;
        }
        refused += usize::from(verdict(dir.path(), &bytes).is_err());
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn codebooks_lose_more_with_fewer_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (testdata("tiny-gguf/llama-mixed.gguf"), dir.path().join("out.safetensors"));
    let want = logits(&model);
    let mut last = (0.0, u64::MAX);
    for (dtype, allowed) in DType::CODEBOOKS.into_iter().zip([0.35, 0.6, 1.1]) {
        let format = Format::Codebook(dtype);
        let configs = MatrixConfigs::uniform(format, 0.0);
        let report = run_compress(&model, &out, configs, Output::As(format), &mut |_| ()).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        for name in ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"] {
            assert_eq!(checkpoint.tensor(name).unwrap().encoding, Encoding::Rows(dtype), "{name}");
        }
        let difference = difference(&logits(&out), &want);
        assert!(difference < allowed && difference > last.0, "{format}: {difference} after {}", last.0);
        assert!(report.bytes_after < last.1, "{format}: {}", report.bytes_after);
        last = (difference, report.bytes_after);
    }
    // Its feed-forward blocks have 136 columns.
    let configs = MatrixConfigs::uniform(Format::Codebook(DType::CB4), 0.0);
    let error = run_compress(&testdata("tiny/llama"), &out, configs, Output::Keep, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("ffn_down") && error.to_string().contains("136"), "{error}");
}

#[test]
fn a_budget_of_the_original_keeps_every_matrix() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (testdata("tiny-gguf/llama-mixed.gguf"), dir.path().join("out.safetensors"));
    let budget = Budget::Size(2 * std::fs::metadata(&model).unwrap().len());
    run_budget(&model, &out, budget, Output::Measured, &mut |_| ()).unwrap();
    assert_eq!(logits(&out), logits(&model));
}

#[test]
fn large_weights_have_no_codebook() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out.safetensors"));
    copy_tiny_model("llama", &model, |_| ());
    let mut size = 0;
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        edit_weights(&model.join(shard), |file, bytes| {
            size += bytes.len() as u64 / 2;
            for q in file.tensors().iter().filter(|t| t.name == "model.layers.0.self_attn.q_proj.weight") {
                bytes[q.range.clone()][..4].copy_from_slice(&20.0_f32.to_le_bytes());
            }
        });
    }
    let configs = MatrixConfigs::uniform(Format::Codebook(DType::CB4), 0.0);
    let error = run_compress(&model, &out, configs, Output::Keep, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_q") && error.contains("larger"), "{error}");
    // A size is reached with other formats.
    run_budget(&model, &out, Budget::Size(size), Output::Measured, &mut |_| ()).unwrap();
    assert!(std::fs::metadata(&out).unwrap().len() <= size);
}

/// Makes the output matrix of a tiny Mistral the embedding, times `1 + noise` for every second weight.
fn with_twin(model: &Path, noise: f32) {
    copy_tiny_model("mistral", model, |_| ());
    edit_weights(&model.join("model.safetensors"), |file, bytes| {
        let range = |name: &str| file.tensors().iter().find(|t| t.name == name).unwrap().range.clone();
        let (from, to) = (range("model.embed_tokens.weight"), range("lm_head.weight"));
        let twin: Vec<u8> = bytes[from]
            .as_chunks::<4>()
            .0
            .iter()
            .enumerate()
            .flat_map(|(i, w)| (f32::from_le_bytes(*w) * (1.0 + noise * (i % 2) as f32)).to_le_bytes())
            .collect();
        bytes[to].copy_from_slice(&twin);
    });
}

#[test]
fn a_matrix_that_is_stored_twice_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    for (noise, once) in [(0.05, true), (0.3, false)] {
        let model = dir.path().join(format!("model-{once}"));
        with_twin(&model, noise);
        let configs = || MatrixConfigs::uniform(WeightFormat::Bf16, 0.0);
        run_compress(&model, &out, configs(), Output::As(Format::INT8), &mut |_| ()).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        assert_eq!(checkpoint.try_tensor("output.weight").is_none(), once, "{noise}");
        let name = if once { "token_embd.weight" } else { "output.weight" };
        assert_eq!(checkpoint.tensor(name).unwrap().encoding, Encoding::Packed(WeightFormat::Int8));
        assert!(difference(&logits(&out), &logits(&model)) < 0.15);
        // Without a change, both stay.
        run_compress(&model, &out, configs(), Output::Keep, &mut |_| ()).unwrap();
        assert!(Checkpoint::open(&out).unwrap().try_tensor("output.weight").is_some());
        // A small size takes the shared form.
        let size = std::fs::metadata(&out).unwrap().len() * 6 / 10;
        let report = run_budget(&model, &out, Budget::Size(size), Output::Measured, &mut |_| ()).unwrap();
        assert!(report.bytes_after <= size);
        logits(&out);
    }
}
