//! Forward passes against NumPy (`tests/golden/encoders.py`): they are part of the model format and never change.

use scrimp_kernels::{Tier, threads::Pool};
use scrimp_rec::encoders::{EncoderConfig, Run, build};

#[derive(serde::Deserialize)]
struct Case {
    config: EncoderConfig,
    ids: Vec<Vec<u64>>,
    out: Vec<f32>,
}

#[test]
fn encoders_give_what_numpy_gives() {
    let text = include_str!("../../../testdata/encoders/golden.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    let pool = Pool::new(2).unwrap();
    for case in cases {
        let encoder = build(&case.config, &[]).unwrap();
        for tier in Tier::supported() {
            let mut out = vec![f32::NAN; case.out.len()];
            encoder.forward(Run { pool: &pool, tier }, &case.ids.concat(), &mut out);
            for (a, b) in out.iter().zip(&case.out) {
                assert!((a - b).abs() < 1e-5, "{:?}: {a} {b}", case.config);
            }
        }
    }
}
