//! Starts a server on a free port, sends it one request and stops it.
//!
//! ```text
//! cargo run --release -p scrimp-serve --example serve -- [MODEL] [PROMPT]
//! ```
//! MODEL is a GGUF file or a Hugging Face directory; the default is a tiny model with random weights.
#![allow(clippy::print_stdout)]

use scrimp_llm::{
    checkpoint::Checkpoint,
    model::{Model, RunOptions},
};
use scrimp_serve::{LanguageModel, Models, Named, ServeOptions, Server};
use std::{
    error::Error,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tiny/llama");
    let path = args.next().map_or(tiny, PathBuf::from);
    let prompt = args.next().unwrap_or_else(|| "Once upon a time".to_owned());

    let server = start(&path)?;
    let address = server.address()?;
    println!("listening on http://{address}");

    let stop = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&stop));
        let answer = complete(address, &prompt);
        stop.store(true, Ordering::Relaxed);
        running.join().expect("the server does not panic")?;
        answer
    })?;
    println!("{answer}");
    Ok(())
}

/// Loads the model and binds a free port of this machine.
fn start(path: &Path) -> Result<Server> {
    let checkpoint = Checkpoint::open(path)?;
    let tokenizer = checkpoint.tokenizer()?;
    let template = checkpoint.chat_template(&tokenizer)?;
    let model = Model::load(checkpoint, &RunOptions::default())?;

    let language = LanguageModel { model, tokenizer, template, draft: None };
    let options = ServeOptions { address: SocketAddr::from(([127, 0, 0, 1], 0)), ..Default::default() };
    let models = Models { languages: vec![Named::new("example", language.into())], ..Models::default() };
    Ok(Server::bind(options, models)?)
}

/// Sends a request to `/v1/completions` and returns the body of the response. Any HTTP client works, too.
fn complete(address: SocketAddr, prompt: &str) -> Result<String> {
    let body =
        serde_json::json!({ "model": "example", "prompt": prompt, "max_tokens": 16, "temperature": 0 });
    let body = body.to_string();
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("not an HTTP response")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(response.into());
    }
    Ok(body.to_owned())
}
