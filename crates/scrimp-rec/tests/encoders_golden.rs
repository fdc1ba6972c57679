//! Forward passes against NumPy (`testdata/encoders/make.py`): they are part of the model format and never change.

use scrimp_kernels::{Pool, SimdLevel};
use scrimp_rec::encoders::{EncoderConfig, Exec, build};

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
        for level in SimdLevel::supported() {
            let mut out = vec![f32::NAN; case.out.len()];
            encoder.forward(Exec { pool: &pool, level }, &case.ids.concat(), &mut out);
            for (a, b) in out.iter().zip(&case.out) {
                assert!((a - b).abs() < 1e-5, "{:?}: {a} {b}", case.config);
            }
        }
    }
}
