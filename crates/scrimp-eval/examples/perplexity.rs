//! The perplexity of a model on a text.
//!
//! ```text
//! cargo run --release -p scrimp-eval --example perplexity -- model.gguf text.txt
//! ```
#![allow(clippy::print_stdout)]

use scrimp_eval::{Windows, ppl::perplexity, read_text};
use scrimp_llm::{Error, Llm, Result};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text] = &args[..] else {
        return Err(Error::bad_input("usage: perplexity MODEL TEXT_FILE"));
    };
    let llm = Llm::open(model)?;
    let (tokenizer, context) = (llm.tokenizer(), llm.model().context_length());
    let ids = tokenizer.encode(&read_text(Path::new(text))?, false, false)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let windows = Windows::new(ids, bos, 512.min(context), None, context)?;
    let score = perplexity(&mut llm.model().session(), &windows, &mut |_| ())?;
    println!("{:.3} over {} tokens", score.ppl, score.tokens);
    Ok(())
}
