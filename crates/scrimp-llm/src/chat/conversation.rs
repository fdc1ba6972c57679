//! From a conversation of OpenAI's API to a prompt, with any chat template.
//!
//! Templates differ in the roles and fields that they know. They raise an error for the others, or drop them silently.
//! A conversation is therefore rendered in the first [`Form`] that keeps everything. A copy of the conversation with the
//! same structure, in which a number replaces each text, tells which form that is: all numbers must be in its rendering.
//!
//! If no form keeps everything, the template decides: its rendering of the unchanged conversation is the result.

use super::{ChatTemplate, ReasoningMarks, forms};
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

/// Roles of messages in OpenAI's API.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// The messages and tools of a chat, with the fields of OpenAI's API.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Objects with `role`, `content` (a text) and perhaps `tool_calls` or `tool_call_id`.
    messages: Vec<Json>,
    /// Objects of type `function`.
    tools: Vec<Json>,
    /// Further variables of the template.
    variables: Map<String, Json>,
    /// The last message is the beginning of the answer.
    is_continued: bool,
    /// Whether the answer begins with reasoning; `None`: the template decides.
    thinks: Option<bool>,
}

impl Conversation {
    /// A conversation. The prompt continues the last message if the assistant has written it.
    ///
    /// # Errors
    /// A role is unknown.
    pub fn new<M: Serialize>(messages: &[M]) -> Result<Self> {
        let messages = messages
            .iter()
            .enumerate()
            .map(|(i, message)| {
                let message = serde_json::to_value(message)
                    .map_err(|e| Error::bad_input(format!("messages[{i}] cannot be written as JSON: {e}")))?;
                normalized(message, i)
            })
            .collect::<Result<Vec<_>>>()?;
        let is_continued = messages
            .last()
            .is_some_and(|last| last["role"] == "assistant" && last.get("tool_calls").is_none());
        Ok(Self { messages, is_continued, ..Self::default() })
    }

    /// Adds the functions that the assistant may call.
    #[must_use]
    pub fn tools(self, tools: Vec<Json>) -> Self {
        Self { tools, ..self }
    }

    /// Requests or prevents reasoning before the answer. Models without [`ChatTemplate::reasoning`] do not reason.
    #[must_use]
    pub fn thinks(self, thinks: bool) -> Self {
        Self { thinks: Some(thinks), ..self }
    }

    /// Adds variables of the template. They have precedence over those that [`Conversation::thinks`] sets.
    #[must_use]
    pub fn variables(self, variables: Map<String, Json>) -> Self {
        Self { variables, ..self }
    }

    /// The prompt begins a new message, even if the last one is the assistant's.
    #[must_use]
    pub fn begin_answer(self) -> Self {
        Self { is_continued: false, ..self }
    }
}

/// A message with the fields that templates know: `developer` is `system`, `function` is `tool`, empty fields are absent,
/// the arguments of calls are objects.
fn normalized(message: Json, index: usize) -> Result<Json> {
    let Json::Object(mut message) = message else {
        return Err(Error::bad_input(format!("messages[{index}] must be an object with role and content")));
    };
    let role = match message.get("role").and_then(Json::as_str) {
        Some("developer") => "system",
        Some("function") => "tool",
        Some(role) if ROLES.contains(&role) => role,
        role => {
            let shown: String = role.unwrap_or_default().chars().take(100).collect();
            let what = format!(
                "messages[{index}].role is {shown:?}; it must be system, developer, user, assistant or tool"
            );
            return Err(Error::bad_input(what));
        }
    };
    let role = role.to_owned();
    if let Some(call) = message.remove("function_call").filter(|call| !call.is_null()) {
        message.entry("tool_calls").or_insert_with(|| json!([{ "type": "function", "function": call }]));
    }
    let has_calls = role == "assistant"
        && message.get("tool_calls").and_then(Json::as_array).is_some_and(|c| !c.is_empty());
    if !has_calls {
        message.remove("tool_calls");
    }
    for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
        let arguments = call.get_mut("function").and_then(|function| function.get_mut("arguments"));
        if let Some(arguments) = arguments
            && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str::<Json>(text).ok())
        {
            *arguments = parsed;
        }
    }
    if message.get("content").is_none_or(Json::is_null) {
        message.insert("content".into(), "".into());
    }
    message.insert("role".into(), role.into());
    Ok(Json::Object(message))
}

/// The way to render a conversation with a template that does not know all its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    tools: Tools,
    calls: Calls,
    system: System,
    /// Consecutive messages of one role are one message.
    merges: bool,
}

/// The place of the tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tools {
    /// The template's variable `tools`.
    Variable,
    /// A system message describes them.
    Described,
}

/// Calls of tools, and their results, in earlier messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    /// As the client wrote them.
    Given,
    /// With identifiers of nine letters and digits, which Mistral's templates demand.
    ShortIds,
    /// Each call in its own message, followed by its result, as Llama 3's templates demand.
    Single,
    /// As text of the assistant and of the user.
    Text,
}

/// The place of system messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum System {
    /// As the client wrote them.
    Given,
    /// One message at the beginning.
    First,
    /// The beginning of the first user message.
    User,
}

impl Form {
    /// All forms of a conversation, those with the fewest changes first.
    fn all(conversation: &Conversation) -> Vec<Self> {
        let tools: &[Tools] = if conversation.tools.is_empty() {
            &[Tools::Variable]
        } else {
            &[Tools::Variable, Tools::Described]
        };
        let has_calls =
            conversation.messages.iter().any(|m| m["role"] == "tool" || m.get("tool_calls").is_some());
        let calls: &[Calls] = if has_calls {
            &[Calls::Given, Calls::ShortIds, Calls::Single, Calls::Text]
        } else {
            &[Calls::Given]
        };
        let mut all = Vec::new();
        for &tools in tools {
            for &calls in calls {
                for system in [System::Given, System::First, System::User] {
                    for merges in [false, true] {
                        all.push(Self { tools, calls, system, merges });
                    }
                }
            }
        }
        all
    }

    fn apply(self, mut conversation: Conversation) -> Conversation {
        let messages = &mut conversation.messages;
        match self.calls {
            Calls::Given => {}
            Calls::ShortIds => forms::shorten_ids(messages),
            Calls::Single => forms::separate_calls(messages),
            Calls::Text => forms::write_calls(messages),
        }
        if self.tools == Tools::Described && !conversation.tools.is_empty() {
            forms::describe(&std::mem::take(&mut conversation.tools), messages);
        }
        match self.system {
            System::Given => {}
            System::First => forms::gather_system(messages),
            System::User => forms::system_to_user(messages),
        }
        if self.merges {
            forms::merge(messages);
        }
        conversation
    }
}

impl ChatTemplate {
    /// The prompt for the answer to `conversation`. Templates that do not know a role or a field get it as text.
    ///
    /// Templates switch the reasoning with the variable `enable_thinking` or `thinking`. If a template knows neither, the
    /// prompt of an answer without reasoning ends with empty reasoning.
    ///
    /// Tokenize the prompt with special tokens parsed and without a BOS of its own: templates write theirs.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn prompt(&self, conversation: &Conversation) -> Result<String> {
        let mut conversation = conversation.clone();
        let begun = match conversation.messages.last_mut().filter(|_| conversation.is_continued) {
            Some(last) => last["content"].as_str().unwrap_or_default().to_owned(),
            None => String::new(),
        };
        if conversation.is_continued && begun.is_empty() {
            conversation.messages.pop();
            conversation.is_continued = false;
        }
        let mut numbers = Numbers::default();
        let copy = numbers.replace_texts(&conversation);
        let form = Form::all(&conversation)
            .into_iter()
            .find(|form| self.rendered(&form.apply(copy.clone())).is_ok_and(|text| numbers.are_in(&text)));
        if let Some(last) = conversation.messages.last_mut().filter(|_| conversation.is_continued) {
            last["content"] = END.into();
        }
        let conversation = match form {
            Some(form) => form.apply(conversation),
            None => conversation,
        };
        let text = self.rendered(&conversation)?;
        if !conversation.is_continued {
            return match (self.reasoning(), conversation.thinks) {
                (Some(marks), Some(false)) => self.without_reasoning(text, marks, &conversation),
                _ => Ok(text),
            };
        }
        match text.rfind(END) {
            Some(at) => Ok(text[..at].to_owned() + &begun),
            None => {
                Err(Error::bad_input("the model's chat template cannot continue a message of the assistant"))
            }
        }
    }

    /// The marks of the reasoning in an answer to `prompt`, the prompt of `conversation`, and whether the answer begins
    /// inside the reasoning. `None`: the model does not reason.
    pub fn reasoning_after(
        &self,
        conversation: &Conversation,
        prompt: &str,
    ) -> Option<(&'static ReasoningMarks, bool)> {
        let marks = self.reasoning()?;
        let begun = conversation.messages.last().filter(|_| conversation.is_continued);
        let begun = begun.and_then(|last| last["content"].as_str()).unwrap_or_default();
        let continues = begun.trim_start().starts_with(marks.open) && !begun.contains(marks.close);
        Some((marks, continues || marks.is_open(prompt)))
    }

    /// `text`, the prompt of `conversation`, followed by empty reasoning if the template cannot prevent reasoning.
    fn without_reasoning(
        &self,
        text: String,
        marks: &ReasoningMarks,
        conversation: &Conversation,
    ) -> Result<String> {
        if marks.is_open(&text) {
            let end = text.trim_end().len() - marks.open.len();
            return Ok(text[..end].to_owned() + &marks.empty());
        }
        let other = self.rendered(&conversation.clone().thinks(true))?;
        Ok(if other == text { text + &marks.empty() } else { text })
    }

    fn rendered(&self, conversation: &Conversation) -> Result<String> {
        let mut variables = conversation.variables.clone();
        if let Some(thinks) = conversation.thinks {
            for name in ["enable_thinking", "thinking"] {
                variables.entry(name).or_insert(Json::Bool(thinks));
            }
        }
        if !conversation.tools.is_empty() {
            variables.insert("tools".into(), Json::Array(conversation.tools.clone()));
        }
        self.render(&conversation.messages, !conversation.is_continued, &variables)
    }
}

/// Replaces the text of a message that the answer continues.
const END: &str = "7300999999";

/// The numbers in a copy of a conversation.
#[derive(Debug, Default)]
struct Numbers(Vec<String>);

impl Numbers {
    /// A text with a new number.
    fn text(&mut self) -> Json {
        let number = format!("7300{:06}", self.0.len());
        self.0.push(number.clone());
        number.into()
    }

    /// A copy of `conversation` with a number instead of each text.
    fn replace_texts(&mut self, conversation: &Conversation) -> Conversation {
        let mut copy = conversation.clone();
        for message in &mut copy.messages {
            if message["content"].as_str().is_some_and(|text| !text.trim().is_empty()) {
                message["content"] = self.text();
            }
            for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
                let function = call.get_mut("function").and_then(Json::as_object_mut);
                let Some(function) = function else { continue };
                function.insert("name".into(), self.text());
                function.insert("arguments".into(), json!({ "a": self.text() }));
            }
        }
        for tool in &mut copy.tools {
            if let Some(name) = tool.get_mut("function").and_then(|function| function.get_mut("name")) {
                *name = self.text();
            }
        }
        copy
    }

    fn are_in(&self, text: &str) -> bool {
        self.0.iter().all(|number| text.contains(number))
    }
}
