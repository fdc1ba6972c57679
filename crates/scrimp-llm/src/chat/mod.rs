//! Chat templates: from a list of messages to the text that a chat model was trained on.
//!
//! Templates are Jinja programs that come with the model, so they are strangers' code. They run without access to
//! files or to other templates, and on a budget that bounds their time and memory. One hole is
//! known: minijinja 3.1 doubles lists lazily and for free (`x + x`), and after 32 times copies what that makes.

mod conversation;
mod forms;
mod functions;
mod reasoning;
mod source;

use std::{fmt, path::Path};

use minijinja::{Environment, Value, context, syntax::SyntaxConfig, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

pub use self::conversation::Conversation;
pub use self::reasoning::{ReasoningMarks, ReasoningParser, Span};
pub use self::source::{chat_template_from_gguf, chat_template_from_hf_dir, chat_template_from_side_files};
use crate::error::{Error, Result};

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the model's template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The error for a chat with the model at `path`, which has no chat template.
pub fn no_chat_template(path: &Path) -> Error {
    Error::unsupported(
        format!("{} has no chat template: it is a base model, which continues texts", path.display()),
        "add `raw` and give the beginning of a text",
    )
}

/// A model's chat template, ready to render. Threads may share it.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    reasoning: Option<&'static ReasoningMarks>,
    source: String,
}

/// Fuel of every rendering. One unit pays for an instruction or for 64 bytes of data.
const FUEL: u64 = 100_000;
/// Fuel for each message: the longest templates take a few hundred instructions per message.
const FUEL_PER_MESSAGE: u64 = 1_000;
/// Most fuel, for some 5 MB of messages: then a template can run for a few seconds, and build 160 MB.
const MAX_FUEL: u64 = 2_500_000;
/// Longest template that is compiled, bytes; the longest known ones have some 20,000.
const MAX_TEMPLATE: usize = 128 << 10;
/// Most operators: the compiler takes time in the square of a chain of them, here about a second. The longest known
/// templates have some 2,500 (with the signs of `{%- -%}`).
const MAX_OPERATORS: usize = 8000;

// The engine recurses into chains of operators when it compiles, and into nested lists when it prints or frees them.
// What that takes at most was measured; stacks are only reserved, not used, by templates that do no such thing.
/// Stack for compiling, bytes, and bytes per byte of the template.
const COMPILE_STACK: (usize, usize) = (8 << 20, 1024);
/// Stack for rendering, bytes, and bytes per unit of fuel.
const RENDER_STACK: (usize, usize) = (1 << 20, 100);
const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles the Jinja template `source`. `bos` and `eos` are the texts of the model's begin- and end-of-text
    /// tokens, empty where it has none.
    ///
    /// # Errors
    /// When it is no valid template.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > MAX_TEMPLATE {
            let what =
                format!("the chat template has {} bytes; at most {MAX_TEMPLATE} are allowed", source.len());
            return Err(Error::bad_input(what));
        }
        let operators = functions::operators(source);
        if operators > MAX_OPERATORS {
            let what =
                format!("the chat template has {operators} operators; at most {MAX_OPERATORS} are allowed");
            return Err(Error::bad_input(what));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| error("the chat template's syntax", &e))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_function("strftime_now", functions::strftime_now);
        environment.add_filter("tojson", functions::tojson);
        let reasoning = ReasoningMarks::of_template(source);
        let original = source.to_owned();
        let source = functions::without_generation_marks(source);
        let environment =
            on_stack(COMPILE_STACK.0 + COMPILE_STACK.1 * source.len(), move || {
                match environment.add_template_owned(NAME, source) {
                    Ok(()) => Ok(environment),
                    Err(e) => Err(error("the model's chat template is not valid", &e)),
                }
            })?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned(), reasoning, source: original })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The marks of the model's reasoning; `None`: the template contains none of the known ones.
    pub fn reasoning(&self) -> Option<&'static ReasoningMarks> {
        self.reasoning
    }

    /// The text of `messages` ([`Message`], or JSON objects with further fields of the template, such as `tool_calls`);
    /// with `add_generation_prompt` followed by the beginning of the assistant's answer. `extra` are further variables of
    /// the template (`tools`, `enable_thinking`, ...); they may replace `bos_token` and `eos_token`.
    ///
    /// Tokenize the text with special tokens parsed and without a BOS of its own: templates write theirs.
    ///
    /// # Errors
    /// When the template refuses the messages (many want user and assistant to alternate), fails, or takes more than
    /// its budget.
    pub fn render<M: Serialize + Sync>(
        &self,
        messages: &[M],
        add_generation_prompt: bool,
        extra: &Map<String, Json>,
    ) -> Result<String> {
        let input = serde_json::to_string(messages).map_or(0, |json| json.len());
        let extra_size = serde_json::to_string(extra).map_or(0, |json| json.len());
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + (input / 2 + 4 * extra_size) as u64;
        let fuel = fuel.min(MAX_FUEL);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(NAME).map_err(|e| error("the model's chat template", &e))?;
        let (bos, eos) = (self.bos.as_str(), self.eos.as_str());
        let render = || {
            let given = context! {
                messages => Value::from(Serde(messages)),
                add_generation_prompt,
                bos_token => bos,
                eos_token => eos,
                tools => (),
                documents => (),
            };
            template
                .render(context! { ..Value::from(Serde(extra)), ..given })
                .map_err(|e| error("the model's chat template failed", &e))
        };
        on_stack(RENDER_STACK.0 + RENDER_STACK.1 * fuel as usize, render)
    }
}

/// Runs `work` on a stack of `bytes`.
fn on_stack<T: Send>(bytes: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bytes).spawn_scoped(scope, work);
        let thread = thread.map_err(|_| {
            Error::out_of_memory(format!("{bytes} bytes of address space for the chat template's stack"))
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::bad_input("the model's chat template made its engine fail")))
    })
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

/// The error and its place in one sentence.
fn error(what: &str, e: &minijinja::Error) -> Error {
    if let Some(message) = functions::raised(e) {
        return Error::bad_input(format!("the model's chat template refuses these messages: {message}"));
    }
    if e.kind() == minijinja::ErrorKind::OutOfFuel {
        return Error::bad_input("the model's chat template takes too long or builds too much")
            .with_hint("use `raw` to do without it");
    }
    let line = e.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let detail = e.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    Error::bad_input(format!("{what}{line}: {}{detail}", e.kind())).with_hint("use `raw` to do without it")
}
