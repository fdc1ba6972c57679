//! The tokenizer in a GGUF file: the keys under `tokenizer.ggml`.

use super::{
    Engine, SpacePrefix, Tokenizer, Words,
    alphabet::Alphabet,
    bpe::{self, Bpe, Ranks},
    ends,
    piece::Spelling,
    pretokenize::PreTokenizer,
    spm::{Order, Spm},
    vocab::{Kind, MAX_TOKENS, Specials, Vocab},
};
use crate::{error::Result, load::gguf::GgufMetadata};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";

impl Tokenizer {
    /// The tokenizer in a GGUF file.
    ///
    /// # Errors
    /// The tokenizer is missing, of an unknown kind (the message lists the known ones), or damaged: arrays of different
    /// lengths, or no begin-of-text token although it is required.
    pub fn from_gguf(meta: &GgufMetadata) -> Result<Self> {
        let key = "tokenizer.ggml.model";
        match meta.str(key)?.ok_or_else(|| meta.missing(key))? {
            "gpt2" => byte_pairs(meta),
            "llama" => sentence_piece(meta),
            "gemma4" => marked_byte_pairs(meta),
            other => Err(meta.source().unsupported(
                format!("tokenizer model '{other}' is not supported"),
                "models with the tokenizers 'gpt2', 'llama' and 'gemma4' work",
            )),
        }
    }
}

fn byte_pairs(meta: &GgufMetadata) -> Result<Tokenizer> {
    let name = meta.str("tokenizer.ggml.pre")?;
    let warning = name.is_none().then(|| {
        "the file does not name its pre-tokenizer (tokenizer.ggml.pre): the tokens of numbers and punctuation may be \
         wrong; convert the model again"
            .to_owned()
    });
    let name = name.unwrap_or("default");
    let pre = PreTokenizer::find(name).ok_or_else(|| {
        let hint = format!("known pre-tokenizers: {}", PreTokenizer::names());
        meta.source().unsupported(format!("pre-tokenizer '{name}' is not known"), hint)
    })?;
    let mut vocab = vocabulary(meta)?;
    let merges = meta.bytes_array(MERGES)?.ok_or_else(|| meta.missing(MERGES))?;
    let ranks = Ranks::new(&vocab, merges);
    let ids = Ids::read(meta, &mut vocab, pre.add_bos, None, None)?;
    let words = Words::Bpe(Bpe {
        splitter: pre.build()?,
        ranks,
        ignore_merges: pre.ignore_merges,
        nfc: pre.nfc,
        alphabet: Alphabet::new(),
        unknown: bpe::unknown(&vocab, ids.unknown),
    });
    Ok(Tokenizer { warning, ..ids.tokenizer(meta, vocab, words, Spelling::ByteLevel, SpacePrefix::Never) })
}

fn sentence_piece(meta: &GgufMetadata) -> Result<Tokenizer> {
    let mut vocab = vocabulary(meta)?;
    let scores = meta.f32_array("tokenizer.ggml.scores")?.unwrap_or_default();
    if !scores.is_empty() && scores.len() < vocab.len() {
        let what = format!("tokenizer.ggml.scores has {} numbers for {} tokens", scores.len(), vocab.len());
        return Err(meta.source().bad(what));
    }
    // The default is Llama's.
    let ids = Ids::read(meta, &mut vocab, true, Some(1), Some(2))?;
    let add_space_prefix = meta.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let order = Order::of_scores(&vocab, &scores);
    let words = Words::Spm(Spm::new(&vocab, order, ids.unknown, add_space_prefix));
    let prefix = if add_space_prefix { SpacePrefix::AfterSpecial } else { SpacePrefix::Never };
    Ok(ids.tokenizer(meta, vocab, words, Spelling::SentencePiece, prefix))
}

/// Gemma 4: byte-pair encoding of the whole text, with SentencePiece's marks for spaces and bytes.
fn marked_byte_pairs(meta: &GgufMetadata) -> Result<Tokenizer> {
    let mut vocab = vocabulary(meta)?;
    let merges = meta.bytes_array(MERGES)?.ok_or_else(|| meta.missing(MERGES))?;
    let order = Order::Merges(Ranks::new(&vocab, merges));
    let ids = Ids::read(meta, &mut vocab, true, None, None)?;
    let words = Words::Spm(Spm::new(&vocab, order, ids.unknown, false));
    Ok(ids.tokenizer(meta, vocab, words, Spelling::SentencePiece, SpacePrefix::Never))
}

fn vocabulary(meta: &GgufMetadata) -> Result<Vocab> {
    let texts = meta.bytes_array(TOKENS)?.ok_or_else(|| meta.missing(TOKENS))?;
    let count = texts.len();
    if count == 0 {
        return Err(meta.source().bad(format!("{TOKENS} is empty")));
    }
    let mut vocab = Vocab::new(texts, count * 8).ok_or_else(|| {
        meta.source()
            .bad(format!("{TOKENS} has {count} tokens; at most {MAX_TOKENS} and 4 GiB of text can be used"))
    })?;
    if let Some(kinds) = meta.i32_array("tokenizer.ggml.token_type")? {
        if kinds.len() < count {
            let what = format!("tokenizer.ggml.token_type has {} numbers for {count} tokens", kinds.len());
            return Err(meta.source().bad(what));
        }
        for (id, kind) in (0..).zip(kinds.into_iter().take(count)) {
            vocab.set_kind(id, Kind::from_gguf(kind));
        }
    }
    Ok(vocab)
}

/// Ids of the tokens with a special meaning.
struct Ids {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    adds_bos: bool,
    ends: Vec<u32>,
}

impl Ids {
    /// Reads the ids. Tokens whose names are known as structure become `Kind::Control`.
    fn read(
        meta: &GgufMetadata,
        vocab: &mut Vocab,
        add_bos: bool,
        bos: Option<u32>,
        eos: Option<u32>,
    ) -> Result<Self> {
        let id = |name: &str, default: Option<u32>| -> Result<Option<u32>> {
            let id = meta.u64(&format!("tokenizer.ggml.{name}_token_id"))?;
            // Converters write ids such as 2^32 - 1 to mean "none".
            let id = id.map_or(default, |id| u32::try_from(id).ok());
            Ok(id.filter(|&id| (id as usize) < vocab.len()))
        };
        let (bos, eos) = (id("bos", bos)?, id("eos", eos)?);
        let unknown = id("unknown", None)?;
        let named = [eos, id("eot", None)?, id("eom", None)?];
        let adds_bos = meta.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        if adds_bos && bos.is_none() {
            return Err(meta.source().bad(
                "texts are to begin with a begin-of-text token, but tokenizer.ggml.bos_token_id names no token",
            ));
        }

        let find = |name: &str| vocab.id(name.as_bytes());
        let mut ends = ends::find(find, |id| vocab.kind(id) == Some(Kind::Control));
        let marks = ends::INFILL_MARKS.iter().flatten().filter_map(|name| find(name));
        let structure: Vec<u32> = ends.iter().copied().chain(marks).collect();
        for id in structure {
            vocab.set_kind(id, Kind::Control);
        }
        ends.extend(named.into_iter().flatten());
        ends.sort_unstable();
        ends.dedup();
        Ok(Self { bos, eos, unknown, adds_bos, ends })
    }

    fn tokenizer(
        self,
        meta: &GgufMetadata,
        vocab: Vocab,
        words: Words,
        spelling: Spelling,
        prefix: SpacePrefix,
    ) -> Tokenizer {
        let specials = specials(meta, &vocab);
        let Self { bos, eos, adds_bos, ends, .. } = self;
        Tokenizer {
            engine: Engine::Native { vocab, specials, words },
            spelling,
            prefix,
            bos,
            eos,
            adds_bos,
            ends,
            warning: None,
        }
    }
}

/// Special tokens, which are cut out of the text first.
fn specials(meta: &GgufMetadata, vocab: &Vocab) -> Specials {
    // Phi-3's special tokens, except for three, include the white space after them. GGUF cannot express this.
    let name = meta.str("general.name").ok().flatten().unwrap_or("").to_lowercase();
    let phi3 = name.contains("phi-3") || name.contains("phi3");
    let tokens = (0..vocab.len() as u32).filter_map(|id| {
        let text = vocab.text(id);
        match vocab.kind(id)? {
            Kind::Control | Kind::UserDefined | Kind::Unknown => {}
            Kind::Normal | Kind::Unused | Kind::Byte => return None,
        }
        let strips = phi3 && !matches!(text, b"<unk>" | b"<s>" | b"<|endoftext|>");
        // Matches must begin and end between characters.
        std::str::from_utf8(text).ok().map(|_| (text.into(), id, strips))
    });
    Specials::new(tokens)
}
