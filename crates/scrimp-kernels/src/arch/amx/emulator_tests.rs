//! The emulator against the manual.

use super::{
    Tile, asm,
    testing::{ONE, amx},
};
use bytemuck::Pod;
use std::sync::PoisonError;

/// Executes tile instructions, on the CPU or the emulator.
fn with_tiles(config: &[u8; 64], body: impl FnOnce(&mut asm::Amx)) {
    // SAFETY: callers have installed the emulator or found the instructions.
    let mut tile = unsafe { asm::Amx::assume() };
    // SAFETY: `amx()` has found AMX, or installed the emulator.
    unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) config.as_ptr()) };
    body(&mut tile);
    tile.release();
}

/// C and A tiles of `m` rows, inner dimension of `k` 4-byte columns, `n` results.
fn config(m: usize, k: usize, n: usize) -> [u8; 64] {
    let mut config = [0; 64];
    config[0] = 1;
    for (t, (rows, width)) in [(m, 4 * n), (m, 4 * k), (k, 4 * n)].into_iter().enumerate() {
        config[16 + 2 * t] = width as u8;
        config[48 + t] = rows as u8;
    }
    config
}

/// `c += a b` by the instruction `dot`, each matrix being 16 rows of 64 bytes.
fn add_product<C: Pod, A: Pod, B: Pod>(
    (m, k, n): (usize, usize, usize),
    c: &mut C,
    a: &A,
    b: &B,
    dot: fn(&mut asm::Amx),
) {
    let c: &mut [u8; 1024] = bytemuck::cast_mut(c);
    let (a, b): (&[u8; 1024], &[u8; 1024]) = (bytemuck::cast_ref(a), bytemuck::cast_ref(b));
    with_tiles(&config(m, k, n), |tile| {
        // SAFETY: 16 rows of 64 bytes each.
        unsafe {
            tile.load::<0>(c.as_ptr(), 64);
            tile.load::<1>(a.as_ptr(), 64);
            tile.load::<2>(b.as_ptr(), 64);
            dot(tile);
            tile.store::<0>(c.as_mut_ptr(), 64);
        }
    });
}

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

/// `TDPBF16PS` on one row of A and one column of B, spelled out.
fn manual_bf16(c: f32, a: &[[f32; 2]], b: &[[f32; 2]]) -> f32 {
    let daz = |x: f32| if x != 0.0 && x.abs() < f32::MIN_POSITIVE { 0.0 * x.signum() } else { x };
    let (mut even, mut odd) = (0f32, 0f32);
    for (a, b) in a.iter().zip(b) {
        even = daz(daz(a[0]).mul_add(daz(b[0]), even));
        odd = daz(daz(a[1]).mul_add(daz(b[1]), odd));
    }
    daz(daz(c) + daz(even + odd))
}

#[test]
fn emulated_bf16_products_follow_the_manual() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if amx().is_none() {
        return;
    }
    let denormal = f32::from_bits(0x0040_0000);
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        3.0e38,
        -3.0e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        denormal,
        -denormal,
        1.0e-38,
        1.0e-20,
    ];
    let mut state = 12345u64;
    let mut pick = |all: bool| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = (state >> 33) as usize;
        if all && x.is_multiple_of(3) {
            special[x / 3 % special.len()]
        } else {
            (x % 512) as f32 / 64.0 - 4.0
        }
    };
    for (m, k, n) in [(16, 16, 16), (1, 1, 1), (3, 7, 5), (16, 2, 9), (5, 16, 16)] {
        for all in [false, true] {
            let mut a = [[0u16; 32]; 16];
            let mut b = [[0u16; 32]; 16];
            let mut c = [[0f32; 16]; 16];
            a.iter_mut().flatten().for_each(|x| *x = bf16(pick(all)));
            b.iter_mut().flatten().for_each(|x| *x = bf16(pick(all)));
            c.iter_mut().flatten().for_each(|x| *x = pick(all));
            let before = c;
            add_product((m, k, n), &mut c, &a, &b, asm::Amx::dot_bf16::<0, 1, 2>);
            let f = |x: u16| f32::from_bits(u32::from(x) << 16);
            for i in 0..16 {
                for j in 0..16 {
                    let got = c[i][j];
                    // Rows and columns beyond the configured ones are not stored.
                    let want = if i < m && j < n {
                        let a: Vec<_> = (0..k).map(|p| [f(a[i][2 * p]), f(a[i][2 * p + 1])]).collect();
                        let b: Vec<_> = (0..k).map(|p| [f(b[p][2 * j]), f(b[p][2 * j + 1])]).collect();
                        manual_bf16(before[i][j], &a, &b)
                    } else {
                        before[i][j]
                    };
                    let equal = got == want || got.is_nan() && want.is_nan();
                    assert!(equal, "{m} {k} {n}, row {i} column {j}: {got} instead of {want}");
                }
            }
        }
    }
}

#[test]
fn emulated_integer_products_wrap_and_do_not_saturate() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if amx().is_none() {
        return;
    }
    for ((m, k, n), signed) in
        [(16, 16, 16), (2, 3, 4), (1, 16, 1)].into_iter().flat_map(|shape| [(shape, false), (shape, true)])
    {
        let a: [[i8; 64]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| [127, -128, -1, 5][(i + j) % 4]));
        let b: [[u8; 64]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| [255, 0, 128, 7][(3 * i + j / 4) % 4]));
        let mut c: [[i32; 16]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| [i32::MAX, i32::MIN, 0][(i + j) % 3]));
        let before = c;
        let dot: fn(&mut asm::Amx) =
            if signed { asm::Amx::dot_i8::<0, 1, 2> } else { asm::Amx::dot_i8u8::<0, 1, 2> };
        add_product((m, k, n), &mut c, &a, &b, dot);
        for i in 0..16 {
            for j in 0..16 {
                let mut want = i64::from(before[i][j]);
                if i < m && j < n {
                    for p in 0..4 * k {
                        let b = b[p / 4][4 * j + p % 4];
                        want += i64::from(a[i][p]) * if signed { i64::from(b as i8) } else { i64::from(b) };
                    }
                }
                assert_eq!(c[i][j], want as i32, "{m} {k} {n}, row {i} column {j}");
            }
        }
    }
}

#[test]
fn tile_rows_are_read_and_written_with_their_stride() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if amx().is_none() {
        return;
    }
    let from: Vec<u8> = (0..16 * 80).map(|i| (i % 251) as u8).collect();
    let mut to = vec![0xee; 16 * 96];
    with_tiles(&config(3, 2, 5), |tile| {
        // SAFETY: 3 rows of 20 bytes, at distances of 80 and 96.
        unsafe {
            tile.load::<0>(from.as_ptr(), 80);
            tile.store::<0>(to.as_mut_ptr(), 96);
            // A tile that is zeroed again.
            tile.zero::<0>();
            tile.store::<0>(to.as_mut_ptr().add(96 * 8), 96);
        }
    });
    for (i, &got) in to.iter().enumerate() {
        let (row, col) = (i / 96, i % 96);
        let want = match row {
            0..3 if col < 20 => from[80 * row + col],
            8..11 if col < 20 => 0,
            _ => 0xee,
        };
        assert_eq!(got, want, "row {row}, byte {col}");
    }
}
