//! A needle in a haystack: one sentence in a long text, and a question about it (Kamradt 2023). The sentences have the
//! form of RULER's (arXiv 2404.06654), which small models can answer.

use super::{
    metrics::Metric,
    tasks::{
        prompt::{Builder, Text},
        suite::{Sample, Suite},
    },
};
use scrimp_base::random::mix;
use scrimp_llm::{Error, Result};

/// Maximum length of an answer, tokens.
pub const ANSWER_TOKENS: usize = 24;

const INTRODUCTION: &str =
    "A special magic number is hidden in the following text. Memorize it: I will ask for it afterwards.\n\n";
const CITIES: [&str; 16] = [
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Toronto", "Lima", "Vienna", "Cairo", "Riga", "Hanoi", "Bergen",
    "Quito", "Dublin", "Tunis", "Seville", "Perth",
];

/// A hidden sentence, its depth, and the length of the text around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Tokens of the prompt.
    pub length: usize,
    /// Relative position of the needle in the text, from 0 (beginning) to 1 (end).
    pub depth: f64,
}

/// One sample per length and depth, with lengths in the outer loop. The haystack is `text` from its start, repeated if
/// it is too short. A second needle is half the text away; its question is the other question of `Question::Second`.
///
/// # Errors
/// When the text is empty, a length is too small for needles and question or more than `builder` allows, or a depth is
/// not from 0 to 1.
pub fn suite(
    builder: &Builder<'_>,
    text: &str,
    lengths: &[usize],
    depths: &[f64],
    seed: u64,
) -> Result<(Suite, Vec<Cell>)> {
    let ids = builder.tokenizer.encode(text, false, false)?;
    if ids.is_empty() {
        return Err(
            Error::bad_input("the haystack is empty").with_hint("give it a text file with some pages")
        );
    }
    if let Some(depth) = depths.iter().find(|d| !(0.0..=1.0).contains(*d)) {
        return Err(Error::bad_input(format!("a depth of {depth} is not inside the text")));
    }
    if let Some(length) = lengths.iter().find(|&&n| n > builder.max_tokens) {
        return Err(Error::bad_input(format!(
            "a length of {length} tokens is more than the {} that fit the model",
            builder.max_tokens
        ))
        .with_hint("use smaller `lengths`, or a model with a longer context"));
    }
    let mut cells = Vec::new();
    let mut samples = Vec::new();
    for &length in lengths {
        for &depth in depths {
            let id = samples.len();
            let needle = Needle::new(seed, 2 * id as u64);
            let other = Needle::new(seed, 2 * id as u64 + 1);
            let haystack = Haystack { ids: &ids, length, depth };
            let text = haystack.hide(builder, &needle, &other)?;
            samples.push(Sample { id, text, truths: vec![needle.number], classes: Vec::new() });
            cells.push(Cell { length, depth });
        }
    }
    let suite = Suite {
        task: "needle".to_owned(),
        metric: Metric::StringMatchAll,
        answer_tokens: ANSWER_TOKENS,
        first_line: false,
        line_ends: false,
        chat: true,
        samples,
    };
    Ok((suite, cells))
}

struct Needle {
    city: &'static str,
    number: String,
}

impl Needle {
    /// The `n`th needle: neighboring ones have different cities.
    fn new(seed: u64, n: u64) -> Self {
        let random = mix(seed.wrapping_sub(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n));
        let city = CITIES[(seed.wrapping_add(n) % CITIES.len() as u64) as usize];
        Self { city, number: (1_000_000 + random % 9_000_000).to_string() }
    }

    fn sentence(&self) -> String {
        format!("One of the special magic numbers for {} is: {}.", self.city, self.number)
    }

    fn question(&self) -> String {
        format!("\n\nWhat is the special magic number for {} mentioned in the provided text?", self.city)
    }

    fn prefix(&self) -> String {
        format!(" The special magic number for {} mentioned in the provided text is", self.city)
    }
}

/// The text around the needles.
struct Haystack<'a> {
    /// Tokens of the text, repeated where it is too short.
    ids: &'a [u32],
    /// Tokens of the prompt.
    length: usize,
    /// Depth of the needle.
    depth: f64,
}

impl Haystack<'_> {
    /// A text of about `length` tokens, never more, with both needles in it: `other` lies half the text away.
    fn hide(&self, builder: &Builder<'_>, needle: &Needle, other: &Needle) -> Result<Text> {
        let Self { ids, length, depth } = *self;
        let with = |hay: usize| {
            let hay: Vec<u32> = ids.iter().copied().cycle().take(hay).collect();
            let mut context = builder.tokenizer.decode(&hay);
            let half = if depth < 0.5 { depth + 0.5 } else { depth - 0.5 };
            // The later needle is inserted first, so the position of the earlier one does not change.
            let mut both = [(depth, needle), (half, other)];
            both.sort_by(|a, b| b.0.total_cmp(&a.0));
            let places = both.map(|(depth, needle)| {
                let before = &hay[..(hay.len() as f64 * depth).round() as usize];
                (sentence_end(&context, builder.tokenizer.decode(before).len(), depth), needle)
            });
            for (at, needle) in places {
                context.insert_str(at, &format!(" {} ", needle.sentence()));
            }
            Text {
                context: format!("{INTRODUCTION}{context}"),
                question: needle.question(),
                answer_prefix: needle.prefix(),
                other: Some(other.question()),
                other_prefix: other.prefix(),
            }
        };
        let tokens = |text: &Text| -> Result<usize> {
            Ok(builder.build(text, super::tasks::prompt::Question::Before)?.prefill.len())
        };
        let mut hay = length.saturating_sub(tokens(&with(0))?);
        loop {
            let text = with(hay);
            let got = tokens(&text)?;
            if got <= length && hay > 0 {
                return Ok(text);
            }
            if hay == 0 {
                return Err(Error::bad_input(format!(
                    "{length} tokens are too few for a needle and a question"
                ))
                .with_hint("use `lengths` of 200 and more"));
            }
            hay = hay.saturating_sub((got - length).max(1));
        }
    }
}

/// The end of the last sentence before `at`, or of the text for depth 1.
fn sentence_end(text: &str, at: usize, depth: f64) -> usize {
    if depth >= 1.0 {
        return text.len();
    }
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let end = |mark: &str| text[..at].rfind(mark).map(|i| i + mark.len() - 1);
    [". ", ".\n", ".\r", "。\n"].into_iter().filter_map(end).max().unwrap_or(0)
}
