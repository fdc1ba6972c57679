//! Every vector operation of each level against the scalar level, which is the specification.

use super::{Kernel, Level, Scalar, Simd, SimdLevel, attention::RowPair, testing::numbers};

/// Operations on one set of numbers.
struct Operations {
    floats: [[f32; 16]; 3],
    integers: [[i32; 16]; 2],
    bytes: [[u8; 64]; 4],
    /// Four signed bytes within ±127.
    quants: [i32; 4],
    mask: u64,
}

impl Operations {
    fn new(seed: u64) -> Self {
        let random = numbers(seed, 512);
        let float = |i: usize| random[i] * 10.0_f32.powi((i % 7) as i32 - 3);
        let byte = |i: usize| (random[i] * 128.0 + 128.0) as u8;
        let quant = |i: usize| (random[i] * 127.0) as i8;
        let mask = match seed {
            0 => 0,
            1 => u64::MAX,
            _ => (0..64).fold(0, |mask, i| mask | u64::from(random[i + 200] > 0.1) << i),
        };
        Self {
            floats: [0, 16, 32].map(|from| std::array::from_fn(|i| float(from + i))),
            integers: [48, 64].map(|from| std::array::from_fn(|i| (random[from + i] * 2e9) as i32)),
            bytes: [100, 164, 228, 292].map(|from| std::array::from_fn(|i| byte(from + i))),
            quants: [400, 410, 420, 430]
                .map(|from| i32::from_le_bytes([from, from + 1, from + 2, from + 3].map(|i| quant(i) as u8))),
            mask,
        }
    }
}

/// Results as bits, each with the name of its operation.
type Results = Vec<(&'static str, Vec<u32>)>;

struct Run<'a>(&'a Operations);

impl Kernel for Run<'_> {
    type Output = Results;

    #[inline(always)]
    fn run<S: Level>(self, s: S) -> Results {
        let mut results = Results::new();
        floats(s, self.0, &mut results);
        integers(s, self.0, &mut results);
        bytes(s, self.0, &mut results);
        expansions(s, self.0, &mut results);
        attention(s, self.0, &mut results);
        embedding(s, self.0, &mut results);
        results
    }
}

#[inline(always)]
fn f<S: Simd>(s: S, x: S::F) -> Vec<u32> {
    let mut lanes = [0.0; 16];
    s.store(x, &mut lanes);
    lanes.map(f32::to_bits).to_vec()
}

#[inline(always)]
fn i<S: Simd>(s: S, x: S::I) -> Vec<u32> {
    let mut lanes = [0; 16];
    s.store_i32(x, &mut lanes);
    lanes.map(|x| x as u32).to_vec()
}

#[inline(always)]
fn b<S: Simd>(s: S, x: S::B) -> Vec<u32> {
    let mut lanes = [0; 64];
    s.store_b(x, &mut lanes);
    lanes.map(u32::from).to_vec()
}

#[inline(always)]
fn floats<S: Level>(s: S, o: &Operations, results: &mut Results) {
    let [x, y, z] = [0, 1, 2].map(|i| s.load(&o.floats[i]));
    let mut nan = o.floats[0];
    (nan[3], nan[9]) = (f32::NAN, f32::INFINITY);
    let odd = s.load(&nan);
    let words: [u16; 16] = std::array::from_fn(|i| o.integers[0][i] as u16 & 0xbfff);
    let low: [u8; 16] = std::array::from_fn(|i| o.bytes[0][i]);
    results.extend([
        ("splat", f(s, s.splat(o.floats[0][0]))),
        ("load", f(s, x)),
        ("load_f16", f(s, s.load_f16(&words))),
        ("load_bf16", f(s, s.load_bf16(&words))),
        ("load_u8", f(s, s.load_u8(&low))),
        ("load_i8", f(s, s.load_i8(&low.map(|b| b as i8)))),
        ("add", f(s, s.add(x, y))),
        ("sub", f(s, s.sub(x, y))),
        ("mul", f(s, s.mul(x, y))),
        ("div", f(s, s.div(x, y))),
        ("fma", f(s, s.fma(x, y, z))),
        ("max", f(s, s.max(x, y))),
        ("min", f(s, s.min(x, y))),
        ("max of NaN", f(s, s.max(odd, y))),
        ("min of NaN", f(s, s.min(odd, y))),
        ("round_i32", i(s, s.round_i32(s.mul(x, s.splat(4.0))))),
        ("reduce_add", vec![s.reduce_add(x).to_bits()]),
        ("exp", f(s, s.exp(x))),
        ("silu", f(s, s.silu(x))),
        ("gelu_tanh", f(s, s.gelu_tanh(x))),
        ("bits", i(s, s.bits(x))),
        ("of_bits", f(s, s.of_bits(s.bits(x)))),
    ]);
}

#[inline(always)]
fn integers<S: Level>(s: S, o: &Operations, results: &mut Results) {
    // Through memory: there is no load of integers.
    let [x, y] =
        [0, 1].map(|i| s.bits(s.load(&o.integers[i].map(|x| f32::from_bits(x as u32 & 0x7f7f_ffff)))));
    let mut low = [0i8; 16];
    s.store_low_bytes(x, &mut low);
    results.extend([
        ("to_f32", f(s, s.to_f32(x))),
        ("splat_i32", i(s, s.splat_i32(o.quants[0]))),
        ("add_i32", i(s, s.add_i32(x, y))),
        ("and_i32", i(s, s.and_i32(x, y))),
        ("max_i32", i(s, s.max_i32(s.add_i32(x, x), y))),
        ("shl_i32", i(s, s.shl_i32::<5>(x))),
        ("shr_i32", i(s, s.shr_i32::<5>(s.add_i32(x, x)))),
        ("store_low_bytes", low.map(|b| b as u32).to_vec()),
        ("reduce_max_i32", vec![s.reduce_max_i32(s.add_i32(x, y)) as u32]),
    ]);
}

#[inline(always)]
fn bytes<S: Level>(s: S, o: &Operations, results: &mut Results) {
    let w = o.bytes.map(|bytes| s.load_b(&bytes));
    let narrow = o.bytes.map(|bytes| s.load_b(&bytes.map(|b| b & 15)));
    results.extend([
        ("wrapping_sub", b(s, s.wrapping_sub(w[0], 8))),
        ("low_nibbles", b(s, s.low_nibbles(w[0]))),
        ("high_nibbles", b(s, s.high_nibbles(w[0]))),
        ("low half", b(s, s.nibbles(w[0], 0))),
        ("high half", b(s, s.nibbles(w[0], 1))),
    ]);
    for shift in 0..7 {
        results.push((
            "with_high_bits",
            b(s, s.with_high_bits(narrow[0], w[1], shift, if shift < 7 { 3 } else { 1 })),
        ));
    }
    let activations: [i8; 16] = std::array::from_fn(|i| o.quants[i / 4].to_le_bytes()[i % 4] as i8);
    let (sum, negated) = s.sums(&activations);
    results.push(("sums", vec![sum as u32]));
    let (mut acc, mut wide) = (s.acc_init(8, [negated, 0]), s.acc_init_wide([negated, 0]));
    let mut signed = s.acc_init_s8(sum);
    let mut parts = s.splat_i32(0);
    for k in 0..4 {
        acc = s.dot(acc, narrow[k], o.quants[k]);
        signed = s.dot_s8(signed, w[k], o.quants[k]);
        // A narrow sum holds one wide step; only the first takes the zero point of all.
        wide = s.dot_wide(wide, w[k], o.quants[k]);
        parts = s.add_i32(parts, s.acc_finish(wide));
        wide = s.acc_init_wide([0; 2]);
    }
    let four = s.dot_four(s.acc_init(8, [negated, 0]), narrow, &o.quants);
    assert_eq!(i(s, s.acc_finish(four)), i(s, s.acc_finish(acc)), "four steps");
    let four = s.dot_four_s8(s.acc_init_s8(sum), w, &o.quants);
    assert_eq!(i(s, four), i(s, signed), "four steps of signed weights");
    results.extend([("dot", i(s, s.acc_finish(acc))), ("dot_wide", i(s, parts)), ("dot_s8", i(s, signed))]);
    if S::TWO_TOKENS {
        two_tokens(s, o, w);
    }
}

/// Products of two tokens at once against those of each.
#[inline(always)]
fn two_tokens<S: Level>(s: S, o: &Operations, w: [S::B; 4]) {
    let [a, c, d, e] = o.quants;
    let start = [s.splat_i32(3), s.splat_i32(-5)];
    let split = s.split(s.join(start));
    assert_eq!((i(s, split[0]), i(s, split[1])), (i(s, start[0]), i(s, start[1])));
    let pair = s.paired([w[0], w[1]]);
    let [x, others] = s.two_tokens(&[a, c, d, e], &[d, e, a, c]);
    let [of_four, _] = s.four_tokens(&[a, d, c, e], &[c, e, d, a]);
    for x in [x, of_four, s.two_steps(&[a, d], &[c, e])] {
        let sums = s.split(s.dot_two(s.join(start), pair, x));
        let one = |start, first, second| s.dot_s8(s.dot_s8(start, w[0], first), w[1], second);
        assert_eq!(i(s, sums[0]), i(s, one(start[0], a, c)), "first token");
        assert_eq!(i(s, sums[1]), i(s, one(start[1], d, e)), "second token");
    }
    let sums = s.split(s.dot_two(s.join(start), pair, others));
    assert_eq!(i(s, sums[1]), i(s, s.dot_s8(s.dot_s8(start[1], w[0], a), w[1], c)), "next steps");
    assert_eq!(s.unpaired(pair).map(|w| b(s, w)), [b(s, w[0]), b(s, w[1])], "unpaired");
    let stored = pair.map(|w| b(s, w));
    for row in 0..16 {
        for (k, (vector, byte)) in s.places_of_row(row).into_iter().enumerate() {
            let bytes = |c: usize| u32::from(o.bytes[k][4 * row + c]);
            assert!((0..4).all(|c| stored[vector][byte + c] == bytes(c)), "row {row} of step {k}");
        }
    }
    let pair = |i: usize| {
        let [low, high] = [0, 1].map(|k| i32::from(super::round_to_bf16(o.floats[0][2 * i + k])));
        low | high << 16
    };
    let floats = o.bytes.map(|bytes| {
        // No exponents beyond the range of products.
        let mut bytes = bytes;
        bytes.iter_mut().skip(1).step_by(2).for_each(|b| *b = *b & 0x83 | 0x3c);
        s.load_b(&bytes)
    });
    let x = s.two_steps(&[pair(0), pair(2)], &[pair(1), pair(3)]);
    let zero = [s.splat(0.5), s.splat(0.25)];
    let joined = s.join(zero.map(|x| s.bits(x))).map(|x| s.of_bits(x));
    let sums = s.dot_two_bf16(joined, s.paired([floats[0], floats[1]]), x);
    let sums = s.split(sums.map(|x| s.bits(x)));
    let one = |start, first: i32, second: i32| {
        s.dot_bf16(s.dot_bf16(start, floats[0], first as u32), floats[1], second as u32)
    };
    assert_eq!(i(s, sums[0]), f(s, one(zero[0], pair(0), pair(1))), "first token in bf16");
    assert_eq!(i(s, sums[1]), f(s, one(zero[1], pair(2), pair(3))), "second token in bf16");
}

#[inline(always)]
fn expansions<S: Level>(s: S, o: &Operations, results: &mut Results) {
    let (mask, from) = (o.mask, &o.bytes[2]);
    results.extend([
        ("expand_bytes", b(s, s.expand_bytes(mask, from, 128))),
        ("expand_words", b(s, s.expand_words(mask as u32, from))),
        ("expand low nibbles", b(s, s.expand_nibbles::<false>(mask, from))),
        ("expand high nibbles", b(s, s.expand_nibbles::<true>(mask, from))),
        ("expand low halves", b(s, s.expand_halves::<false>(mask, from))),
        ("expand high halves", b(s, s.expand_halves::<true>(mask, from))),
        ("count_ones", vec![s.count_ones(mask as u32) as u32]),
    ]);
}

#[inline(always)]
fn attention<S: Level>(s: S, o: &Operations, results: &mut Results) {
    let codes: [u8; 32] = std::array::from_fn(|i| o.bytes[0][i]);
    let element = o.integers[0][0];
    let start = s.splat_i32(7);
    let [low, high] = s.load_half_codes(&codes);
    let mut stored = [0; 8];
    s.store_i16(s.mul(s.load(&o.floats[0]), s.splat(3.0)), &mut stored);
    let mut rounded = [0.0; 16];
    let kept = s.store_rounded(s.load(&o.floats[0]), &mut rounded);
    let loaded = s.load_rounded(&rounded);
    results.extend([
        ("mac_codes", i(s, s.mac_codes(start, s.load_codes(&codes), element))),
        ("mac_codes of low halves", i(s, s.mac_codes(start, low, element))),
        ("mac_codes of high halves", i(s, s.mac_codes(start, high, element))),
        ("store_i16", stored.map(|x| x as u32).to_vec()),
        ("store_rounded", f(s, kept)),
        ("load_rounded", f(s, loaded)),
    ]);
    // These round in other places than the scalar level.
    let near = |x: f32| (x * 1024.0).round() as i32 as u32;
    let mut lanes = [0.0; 16];
    s.store(s.exp2(s.load(&o.floats[1].map(|x| x.clamp(-20.0, 2.0)))), &mut lanes);
    results.push(("exp2", lanes.map(near).to_vec()));
    let words: [u8; 64] = std::array::from_fn(|i| if i % 2 == 0 { 0 } else { o.bytes[3][i] & 0x83 | 0x3c });
    let mut slots = [0.0; 4];
    S::pair_element(0x3f80, 0x4000, &mut slots);
    // SAFETY: `slots` has 4 elements, and `words` 64 bytes.
    let sum = unsafe {
        let pairs = s.expand_pairs(o.mask as u32, words.as_ptr());
        s.mac_pairs(s.splat(0.0), pairs, slots.as_ptr())
    };
    s.store(sum, &mut lanes);
    results.push(("mac_pairs", lanes.map(near).to_vec()));
    let weights = s.weights(&RowPair::new([(0, 1.0), (1, 2.0)], 0.5));
    let mut other = [0.0; 16];
    s.store_rounded(s.load(&o.floats[2].map(|x| x.clamp(-8.0, 8.0))), &mut other);
    s.store_rounded(s.load(&o.floats[0].map(|x| x.clamp(-8.0, 8.0))), &mut rounded);
    s.store(s.add_rounded(s.splat(1.0), &rounded, &other, weights), &mut lanes);
    results.push(("add_rounded", lanes.map(near).to_vec()));
}

#[inline(always)]
fn embedding<S: Level>(s: S, o: &Operations, results: &mut Results) {
    let codes: [i8; 32] = std::array::from_fn(|i| o.bytes[1][i] as i8);
    let [low, high] = s.floats(s.add_i8(s.add_i8(s.splat_i16(-9), &codes), &codes));
    let mut streamed = [0.0; 16];
    s.stream(low, &mut streamed);
    s.fence();
    results.extend([
        ("add_i8", f(s, low)),
        ("add_i8 of the upper half", f(s, high)),
        ("negate", f(s, s.negate(low, o.mask as u16))),
        ("stream", streamed.map(f32::to_bits).to_vec()),
    ]);
}

#[test]
fn every_operation_gives_the_results_of_the_scalar_level() {
    for seed in 0..40 {
        let operations = Operations::new(seed);
        let want = SimdLevel::SCALAR.run(Run(&operations));
        assert_eq!(want[0].1.len(), f(Scalar, Scalar.splat(0.0)).len());
        for level in SimdLevel::supported() {
            for ((name, got), (_, want)) in level.run(Run(&operations)).into_iter().zip(&want) {
                assert_eq!(&got, want, "{name}, {level}, seed {seed}");
            }
        }
    }
}
