//! Tokenizers from GGUF metadata made up here: no model is needed.

use std::path::Path;

use proptest::prelude::*;
use scrimp_llm::{
    load::{GgufFile, Source},
    tokenizer::Tokenizer,
};
use unicode_normalization::UnicodeNormalization as _;

/// A GGUF file without tensors.
#[derive(Default)]
struct Gguf {
    count: u64,
    pairs: Vec<u8>,
}

impl Gguf {
    fn put(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.count += 1;
        self.pairs.extend(string(key));
        self.pairs.extend(kind.to_le_bytes());
        self.pairs.extend(value);
        self
    }
    fn str(self, key: &str, value: &str) -> Self {
        self.put(key, 8, &string(value))
    }
    fn u32(self, key: &str, value: u32) -> Self {
        self.put(key, 4, &value.to_le_bytes())
    }
    fn bool(self, key: &str, value: bool) -> Self {
        self.put(key, 7, &[u8::from(value)])
    }
    fn array(self, key: &str, kind: u32, items: impl ExactSizeIterator<Item = Vec<u8>>) -> Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((items.len() as u64).to_le_bytes());
        value.extend(items.flatten());
        self.put(key, 9, &value)
    }
    fn strs(self, key: &str, items: &[String]) -> Self {
        self.array(key, 8, items.iter().map(|s| string(s)))
    }
    fn i32s(self, key: &str, items: &[i32]) -> Self {
        self.array(key, 5, items.iter().map(|i| i.to_le_bytes().to_vec()))
    }
    fn f32s(self, key: &str, items: &[f32]) -> Self {
        self.array(key, 6, items.iter().map(|f| f.to_le_bytes().to_vec()))
    }
    fn tokenizer(self) -> Result<Tokenizer, scrimp_llm::Error> {
        let mut file = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend(self.count.to_le_bytes());
        file.extend(self.pairs);
        let file = GgufFile::from_source(Source::from_bytes(Path::new("made-up.gguf"), file))?;
        Tokenizer::from_gguf(file.metadata())
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// GPT-2's character for a byte.
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return byte.into();
    }
    let shifted = (0..byte).filter(|&b| !plain(b)).count() as u32;
    char::from_u32(0x100 + shifted).unwrap()
}

/// 256 bytes, the tokens of `merges` in order, then some special ones.
fn byte_level(pre: &str, merges: &[&str]) -> (Gguf, Vec<String>) {
    let mut tokens: Vec<String> = (0..=255).map(|b| byte_char(b).to_string()).collect();
    for merge in merges {
        let token = merge.replacen(' ', "", 1);
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    let mut kinds = vec![1; tokens.len()];
    for (special, kind) in
        [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool>", 4), ("[gap]", 5)]
    {
        tokens.push(special.to_owned());
        kinds.push(kind);
    }
    let merges: Vec<String> = merges.iter().map(|m| (*m).to_owned()).collect();
    let gguf = Gguf::default()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strs("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strs("tokenizer.ggml.merges", &merges);
    (gguf, tokens)
}

const MERGES: &[&str] =
    &["h e", "l l", "Ġ w", "he ll", "hell o", "o r", "Ġw or", "l d", "Ġwor ld", "Ã ©", "Ġ Ġ", "ĠĠ ĠĠ", "e l"];

fn names(tokens: &[String], ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokens[id as usize].clone()).collect()
}

#[test]
fn merges_in_the_order_of_their_ranks() {
    let (gguf, tokens) = byte_level("gpt-2", MERGES);
    let tokenizer = gguf.u32("tokenizer.ggml.eos_token_id", 271).tokenizer().unwrap();
    let encode = |text: &str| names(&tokens, &tokenizer.encode(text, true, true).unwrap());
    assert_eq!(encode("hello world"), ["hello", "Ġworld"]);
    assert_eq!(encode("hellhell hel"), ["hell", "hell", "Ġ", "he", "l"]);
    assert_eq!(encode("elé"), ["el", "Ã©"]);
    assert_eq!(encode("       x"), ["ĠĠĠĠ", "ĠĠ", "Ġ", "x"]);
    assert_eq!(encode(""), [""; 0]);
    assert_eq!(encode("a<|im_end|>b<tool>"), ["a", "<|im_end|>", "b", "<tool>"]);
    let plain = names(&tokens, &tokenizer.encode("<|im_end|><tool>", true, false).unwrap());
    assert_eq!((plain.len(), plain.last().map(String::as_str)), (11, Some("<tool>")));
}

#[test]
fn texts_are_normalized_if_the_original_tokenizer_does() {
    for (pre, normalizes) in [
        ("qwen2", true),
        ("qwen3", true),
        ("stablelm2", true),
        ("olmo", true),
        ("gpt-2", false),
        ("llama3", false),
        ("deepseek-r1-qwen", false),
        ("default", false),
    ] {
        let (gguf, _) = byte_level(pre, MERGES);
        let tokenizer = gguf.bool("tokenizer.ggml.add_bos_token", false).tokenizer().unwrap();
        let encode = |text: &str| tokenizer.encode(text, true, true).unwrap();
        // Composition, Hangul, singletons, and the order of marks.
        for (text, nfc) in [
            ("cafe\u{301}", "café"),
            ("\u{1112}\u{1161}\u{11ab}", "한"),
            ("\u{212b} \u{2126}", "Å Ω"),
            ("a\u{301}\u{323}", "ạ\u{301}"),
        ] {
            assert_eq!(encode(text) == encode(nfc), normalizes, "{pre}: {text}");
        }
        assert_eq!(
            encode("é<|im_end|>x"),
            encode("é").into_iter().chain(encode("<|im_end|>x")).collect::<Vec<_>>()
        );
    }
}

#[test]
fn files_without_a_pre_tokenizer_give_a_warning() {
    let (gguf, tokens) = byte_level("qwen2", MERGES);
    assert!(gguf.tokenizer().unwrap().warning().is_none());
    let gguf = Gguf::default()
        .str("tokenizer.ggml.model", "gpt2")
        .strs("tokenizer.ggml.tokens", &tokens)
        .strs("tokenizer.ggml.merges", &["h e".to_owned()]);
    assert!(gguf.tokenizer().unwrap().warning().unwrap().contains("tokenizer.ggml.pre"));
    // SentencePiece has none.
    assert!(sentence_piece(PIECES).0.tokenizer().unwrap().warning().is_none());
}

#[test]
fn one_token_from_several_merges() {
    // "abc" comes from "ab c" at once, from "a bc" only at rank 4: as vocabularies made from tiktoken have it.
    let (gguf, tokens) = byte_level("gpt-2", &["a b", "b c", "x y", "ab c", "a bc", "abc d", "ab cd"]);
    let tokenizer = gguf.tokenizer().unwrap();
    let encode = |text: &str| names(&tokens, &tokenizer.encode(text, true, true).unwrap());
    assert_eq!(encode("abc"), ["abc"]);
    assert_eq!(encode("xbc"), ["x", "bc"]);
    assert_eq!(encode("abcd"), ["abcd"]);
    // A pair that makes a token's text, but by no merge, stays apart.
    let (gguf, tokens) = byte_level("gpt-2", &["b c", "a b", "ab c"]);
    let tokenizer = gguf.tokenizer().unwrap();
    assert_eq!(names(&tokens, &tokenizer.encode("abc", true, true).unwrap()), ["a", "bc"]);
    // Unless whole words go first.
    let (gguf, tokens) = byte_level("llama-bpe", &["b c", "a b", "ab c"]);
    let tokenizer = gguf.bool("tokenizer.ggml.add_bos_token", false).tokenizer().unwrap();
    assert_eq!(names(&tokens, &tokenizer.encode("abc", true, true).unwrap()), ["abc"]);
}

#[test]
fn begin_and_end_tokens() {
    let (gguf, tokens) = byte_level("llama-bpe", MERGES);
    let id = |name: &str| tokens.iter().position(|t| t == name).unwrap() as u32;
    let tokenizer = gguf
        .u32("tokenizer.ggml.bos_token_id", id("<|im_start|>"))
        .u32("tokenizer.ggml.eos_token_id", id("he"))
        .u32("tokenizer.ggml.padding_token_id", u32::MAX)
        .tokenizer()
        .unwrap();
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.bos(), Some(id("<|im_start|>")));
    assert_eq!(tokenizer.eos(), Some(id("he")));
    assert_eq!(tokenizer.encode("h", true, true).unwrap(), [id("<|im_start|>"), id("h")]);
    assert_eq!(tokenizer.encode("h", false, true).unwrap(), [id("h")]);
    let mut ends = vec![id("he"), id("<|endoftext|>"), id("<|im_end|>")];
    ends.sort_unstable();
    assert_eq!(tokenizer.ends(), ends);
    assert!(tokenizer.is_end(id("<|im_end|>")) && !tokenizer.is_end(id("h")));
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(id("<|im_end|>")));
    assert_eq!(tokenizer.token_bytes(id("Ã©")), Some("é".into()));
    assert_eq!(tokenizer.token_bytes(id("<|im_end|>")), Some("<|im_end|>".into()));
    assert_eq!(tokenizer.token_bytes(id("[gap]")), Some(Vec::new()));
    assert_eq!(tokenizer.token_bytes(1_000_000), None);
    assert_eq!(tokenizer.decode(&[id("he"), id("<|im_end|>"), 1_000_000, id("l")]), "hel");
    assert_eq!(tokenizer.decode_with(&[id("he"), id("<|im_end|>")], false), "he<|im_end|>");
}

/// A SentencePiece vocabulary; scores as trainers give them, the earlier the higher.
fn sentence_piece(pieces: &[&str]) -> (Gguf, Vec<String>) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut kinds = vec![2, 3, 3];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    kinds.resize(tokens.len(), 6);
    tokens.extend(pieces.iter().map(|p| (*p).to_owned()));
    kinds.resize(tokens.len(), 1);
    tokens.push("<tag>".to_owned());
    kinds.push(4);
    let scores: Vec<f32> = (0..tokens.len()).map(|i| if i < 259 { 0.0 } else { 258.0 - i as f32 }).collect();
    let gguf = Gguf::default()
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &kinds);
    (gguf, tokens)
}

const PIECES: &[&str] = &["▁t", "he", "▁the", "in", "▁▁", "er", "▁", "t", "h", "e", "i", "n", "r", "é", "a"];

#[test]
fn pieces_in_the_order_of_their_scores() {
    let (gguf, tokens) = sentence_piece(PIECES);
    let tokenizer = gguf.tokenizer().unwrap();
    let encode = |text: &str| names(&tokens, &tokenizer.encode(text, true, true).unwrap());
    assert_eq!(encode("the"), ["<s>", "▁the"]);
    assert_eq!(encode("then  in"), ["<s>", "▁the", "n", "▁▁", "in"]);
    assert_eq!(encode("é日"), ["<s>", "▁", "é", "<0xE6>", "<0x97>", "<0xA5>"]);
    assert_eq!(encode(""), ["<s>"]);
    // Each text after a special token gets a space of its own, and decoding takes it away.
    assert_eq!(encode("the</s>the<tag>in"), ["<s>", "▁the", "</s>", "▁the", "<tag>", "▁", "in"]);
    let ids = tokenizer.encode("the</s>the<tag>in", true, true).unwrap();
    assert_eq!(tokenizer.decode_with(&ids, false), "<s>the</s>the<tag>in");
    assert_eq!(tokenizer.decode(&ids), "thethe<tag>in");
    assert!(tokenizer.is_end(2));
    let mut goes_on = tokenizer.stream_after(&ids);
    assert_eq!(goes_on.push(ids[1]), " the");
}

/// Gemma 4 has a list of merges, and its pieces spell spaces and bytes as SentencePiece does.
#[test]
fn pieces_in_the_order_of_merges() {
    let tokens: Vec<String> = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<0xE6>", "<0x97>", "<0xA5>"]
        .map(str::to_owned)
        .to_vec();
    let pieces = ["▁", "a", "b", "c", "\n", "ab", "bc", "▁a", "\n\n", "abc"].map(str::to_owned);
    let kinds: Vec<i32> = [vec![3; 5], vec![6; 3], vec![1; pieces.len()]].concat();
    let tokens = [tokens, pieces.to_vec()].concat();
    let merges = ["b c", "a b", "▁ a", "\n \n", "a bc"].map(str::to_owned);
    let tokenizer = Gguf::default()
        .str("tokenizer.ggml.model", "gemma4")
        .strs("tokenizer.ggml.tokens", &tokens)
        .strs("tokenizer.ggml.merges", &merges)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.bos_token_id", 2)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .tokenizer()
        .unwrap();
    let encode = |text: &str| names(&tokens, &tokenizer.encode(text, true, true).unwrap());
    // The merges of b and c, and of the mark and a, come before the others.
    assert_eq!(encode("ab abc"), ["<bos>", "ab", "▁a", "bc"]);
    assert_eq!(encode("a\n\nb 日"), ["<bos>", "a", "\n\n", "b", "▁", "<0xE6>", "<0x97>", "<0xA5>"]);
    assert_eq!(encode("<|turn>ab<turn|>"), ["<bos>", "<|turn>", "ab", "<turn|>"]);
    let ids = tokenizer.encode("ab abc\n\n日", true, true).unwrap();
    assert_eq!(tokenizer.decode(&ids), "ab abc\n\n日");
    assert!([1, 4].iter().all(|&end| tokenizer.is_end(end)));
}

#[test]
fn without_a_space_in_front() {
    let (gguf, tokens) = sentence_piece(PIECES);
    let tokenizer = gguf
        .bool("tokenizer.ggml.add_space_prefix", false)
        .bool("tokenizer.ggml.add_bos_token", false)
        .tokenizer()
        .unwrap();
    assert_eq!(names(&tokens, &tokenizer.encode("the the", true, true).unwrap()), ["t", "he", "▁the"]);
    let ids = tokenizer.encode(" the", true, true).unwrap();
    assert_eq!(tokenizer.decode(&ids), " the");
}

#[test]
fn streams_hold_back_unfinished_characters() {
    let (gguf, _) = sentence_piece(PIECES);
    let tokenizer = gguf.tokenizer().unwrap();
    let ids = tokenizer.encode("日a", false, true).unwrap();
    let mut stream = tokenizer.stream();
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(parts, ["", "", "", "日", "a"]);
    assert_eq!(stream.finish(), "");
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[1]) + &stream.push(ids[2]), "");
    assert_eq!(stream.push(*ids.last().unwrap()), "\u{fffd}a");
    assert_eq!(stream.push(ids[1]), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn damaged_files_are_refused() {
    let message = |gguf: Gguf| {
        let e = gguf.tokenizer().unwrap_err();
        format!("{e} / {}", e.hint().map_or("", |hint| hint.as_str()))
    };
    assert!(message(Gguf::default()).contains("made-up.gguf: metadata tokenizer.ggml.model is missing"));
    let other = message(Gguf::default().str("tokenizer.ggml.model", "bert"));
    assert!(other.contains("'bert' is not supported"), "{other}");
    let (gguf, _) = byte_level("martian", MERGES);
    let unknown = message(gguf);
    assert!(unknown.contains("'martian' is not known") && unknown.contains("smollm"), "{unknown}");
    let model = || Gguf::default().str("tokenizer.ggml.model", "gpt2");
    assert!(message(model()).contains("tokens is missing"));
    assert!(message(model().strs("tokenizer.ggml.tokens", &[])).contains("is empty"));
    let one = || model().strs("tokenizer.ggml.tokens", &["a".to_owned(), "b".to_owned()]);
    assert!(message(one()).contains("merges is missing"));
    assert!(message(one().i32s("tokenizer.ggml.token_type", &[1])).contains("1 numbers for 2 tokens"));
    assert!(message(one().str("tokenizer.ggml.merges", "a b")).contains("array of strings"));
    let no_bos = one().strs("tokenizer.ggml.merges", &[]).bool("tokenizer.ggml.add_bos_token", true);
    assert!(message(no_bos.u32("tokenizer.ggml.bos_token_id", 2)).contains("bos_token_id names no token"));
    let spm = Gguf::default()
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &["a".to_owned(), "b".to_owned()]);
    assert!(message(spm.f32s("tokenizer.ggml.scores", &[0.0])).contains("1 numbers for 2 tokens"));
}

#[test]
fn odd_vocabularies_do_no_harm() {
    // No byte is in the vocabulary, merges are nonsense, texts are empty, equal, or no special token's UTF-8.
    let tokens = ["", "", "a", "a", "aa", " "].map(str::to_owned);
    let merges = ["", " ", "a", "a a", "aa aa", "a  a", "aaaa"].map(str::to_owned);
    let tokenizer = Gguf::default()
        .str("tokenizer.ggml.model", "gpt2")
        .strs("tokenizer.ggml.tokens", &tokens)
        .strs("tokenizer.ggml.merges", &merges)
        .tokenizer()
        .unwrap();
    assert_eq!(tokenizer.encode("aaa b", true, true).unwrap(), [4, 2]);
    let spm = Gguf::default()
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &[f32::NAN; 6])
        .i32s("tokenizer.ggml.token_type", &[6, 6, 6, 1, 3, 99]);
    let tokenizer = spm.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("aab", false, false).unwrap(), [4]);
    assert_eq!(tokenizer.decode(&[0, 2, 3, 5, 4]), "aa ");
}

#[test]
fn long_words_take_linear_time() {
    let (gguf, _) = byte_level("gpt-2", MERGES);
    let tokenizer = gguf.tokenizer().unwrap();
    let start = std::time::Instant::now();
    for text in
        ["l".repeat(1 << 20), " ".repeat(1 << 20) + "x", "\u{300}".repeat(1 << 19), "<".repeat(1 << 20)]
    {
        let ids = tokenizer.encode(&text, true, true).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
    }
    // In quadratic time they would take hours; a loaded machine or an emulator may need seconds.
    assert!(start.elapsed().as_secs() < 600, "{:?}", start.elapsed());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[helowrd ]{0,40}",
        "[a-e<|>\\[\\] \n\r\t'0-9é日\u{300}😀\u{a0}▁]{0,30}",
        prop::collection::vec(
            prop_oneof![
                Just("<|im_end|>"),
                Just("<tool>"),
                Just("hello"),
                Just(" "),
                Just("<|im"),
                Just("日"),
                Just("the"),
                Just("▁"),
            ],
            0..12
        )
        .prop_map(|parts| parts.concat()),
    ]
}

/// Streaming in any grouping equals decoding.
fn streams_as_it_decodes(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for &id in ids {
        text.push_str(&stream.push(id));
    }
    text.push_str(&stream.finish());
    assert_eq!(text, tokenizer.decode(ids));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(400)))]

    #[test]
    fn byte_level_round_trip(text in text(), parse in any::<bool>(), which in 0..6_usize) {
        let pre = ["gpt-2", "qwen2", "llama3", "default", "deepseek-v3", "gpt-4o"][which];
        let (gguf, _) = byte_level(pre, MERGES);
        let tokenizer = gguf.bool("tokenizer.ggml.add_bos_token", false).tokenizer().unwrap();
        let ids = tokenizer.encode(&text, true, parse).unwrap();
        let normalized = if pre == "qwen2" { text.nfc().collect() } else { text };
        prop_assert_eq!(tokenizer.decode_with(&ids, false), normalized);
        streams_as_it_decodes(&tokenizer, &ids);
    }

    #[test]
    fn sentence_piece_round_trip(text in text(), parse in any::<bool>(), space in any::<bool>()) {
        let (gguf, _) = sentence_piece(PIECES);
        let tokenizer = gguf
            .bool("tokenizer.ggml.add_space_prefix", space)
            .bool("tokenizer.ggml.add_bos_token", false)
            .tokenizer()
            .unwrap();
        let ids = tokenizer.encode(&text, true, parse).unwrap();
        prop_assert_eq!(tokenizer.decode_with(&ids, false), text.replace('▁', " "));
        streams_as_it_decodes(&tokenizer, &ids);
    }

    #[test]
    fn any_ids_stream_as_they_decode(ids in prop::collection::vec(0..300_u32, 0..40), spm in any::<bool>()) {
        let (gguf, _) = if spm { sentence_piece(PIECES) } else { byte_level("gpt-2", MERGES) };
        streams_as_it_decodes(&gguf.tokenizer().unwrap(), &ids);
    }
}
