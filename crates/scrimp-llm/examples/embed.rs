//! Embeddings of texts, as the server's `/v1/embeddings` computes them, and their cosine similarities.
//!
//! ```text
//! cargo run --release -p scrimp-llm --features hub --example embed -- smollm2 "a cat" "a kitten" "a bond yield"
//! ```

#![allow(clippy::print_stdout)]

use scrimp_llm::{Error, Llm, Result};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((model, texts)) = args.split_first().filter(|(_, texts)| !texts.is_empty()) else {
        return Err(Error::bad_input("usage: embed MODEL TEXT.."));
    };
    let llm = Llm::open(model)?;
    let embeddings = texts.iter().map(|text| llm.embed(text)).collect::<Result<Vec<_>>>()?;
    println!("{} texts, {} numbers each", texts.len(), embeddings[0].len());
    for (text, a) in texts.iter().zip(&embeddings) {
        // The vectors have length 1: the product is the cosine.
        let cosines: Vec<String> = embeddings.iter().map(|b| format!("{:6.3}", dot(a, b))).collect();
        println!("{}  {text}", cosines.join(" "));
    }
    Ok(())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
