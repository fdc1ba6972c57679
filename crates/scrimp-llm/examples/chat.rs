//! A chat on the terminal, or the answer to one question.
//!
//! ```text
//! cargo run --release -p scrimp-llm --features hub --example chat -- smollm2
//! cargo run --release -p scrimp-llm --example chat -- model.gguf "Why is the sky blue?"
//! ```
//! A base model, which has no chat template, continues the question as a text.

#![allow(clippy::print_stdout)]

use scrimp_llm::{Error, GenerateOptions, Llm, Result};
use std::{
    io::{self, BufRead as _, Write as _},
    ops::ControlFlow,
    path::Path,
};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(model) = args.next() else {
        return Err(Error::bad_input("usage: chat MODEL [QUESTION]"));
    };
    let llm = Llm::open(model)?;
    let options = GenerateOptions { max_tokens: Some(256), ..GenerateOptions::default() };
    if let Some(question) = args.next() {
        let answer = llm.stream(&question, &options, show)?;
        println!("\n{:.1} tokens per second", answer.decode_tok_s());
        return Ok(());
    }
    let mut chat = llm.chat(options)?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io(Path::new("standard input"), e))?;
        chat.stream(&line, show)?;
        println!();
    }
    Ok(())
}

/// Prints a piece of text; a closed standard output ends the answer.
fn show(piece: &str) -> ControlFlow<()> {
    let mut out = io::stdout().lock();
    match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}
