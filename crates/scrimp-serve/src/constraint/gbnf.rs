//! llama.cpp's grammars (GBNF) as grammars of llguidance (Lark).
//!
//! Lark has rules and terminals. A lexer matches terminals and takes the longest match, so that `/[a-z]/* "x"` would not
//! match `ax` as GBNF does. Rules without recursion therefore become terminals, whose matching is exact, and so do runs of
//! such rules and texts inside other rules.
//!
//! Source: `grammars/README.md` of llama.cpp.

use scrimp_llm::{Error, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// Maximum depth of parentheses.
const MAX_DEPTH: usize = 64;
/// Maximum number of a repetition.
const MAX_REPEAT: u32 = 4096;

/// The part of a rule.
#[derive(Debug, Clone, PartialEq)]
enum Expr {
    /// A text.
    Literal(String),
    /// A character, as a class of a regular expression.
    Class(String),
    /// A rule.
    Rule(String),
    Sequence(Vec<Expr>),
    Alternatives(Vec<Expr>),
    /// Between this many repetitions; `None`: no limit.
    Repeat(Box<Expr>, u32, Option<u32>),
}

impl Expr {
    /// Adds the names of all rules in it.
    fn rules<'a>(&'a self, out: &mut BTreeSet<&'a str>) {
        match self {
            Self::Literal(_) | Self::Class(_) => {}
            Self::Rule(name) => drop(out.insert(name)),
            Self::Sequence(parts) | Self::Alternatives(parts) => parts.iter().for_each(|p| p.rules(out)),
            Self::Repeat(part, ..) => part.rules(out),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Sequence(parts) if parts.iter().all(Self::is_empty))
            || matches!(self, Self::Literal(text) if text.is_empty())
    }
}

/// The grammar in Lark's notation.
///
/// # Errors
/// The text is not a grammar, or a rule is missing.
pub(super) fn to_lark(text: &str) -> Result<String> {
    let rules = Parser { text, at: 0, depth: 0 }.grammar()?;
    if !rules.contains_key("root") {
        return Err(Error::bad_input("the grammar has no rule `root`"));
    }
    let mut regular: BTreeSet<&str> = BTreeSet::new();
    loop {
        let before = regular.len();
        for (name, expr) in &rules {
            let mut used = BTreeSet::new();
            expr.rules(&mut used);
            if let Some(missing) = used.iter().find(|used| !rules.contains_key(**used)) {
                return Err(Error::bad_input(format!("the grammar has no rule {missing:?}")));
            }
            if used.iter().all(|used| regular.contains(used)) {
                regular.insert(name);
            }
        }
        if regular.len() == before {
            break;
        }
    }
    let numbers = rules.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut writer = Writer { regular, numbers, terminals: String::new(), count: 0 };
    let mut out = format!("start: {}\n", writer.name("root"));
    for (name, expr) in &rules {
        let is_regular = writer.regular.contains(name.as_str());
        let body = if is_regular { writer.terminal(expr) } else { writer.rule(expr) };
        let _ = writeln!(out, "{}: {body}", writer.name(name));
    }
    Ok(out + &writer.terminals)
}

/// Writes Lark.
struct Writer<'a> {
    /// Rules without recursion.
    regular: BTreeSet<&'a str>,
    numbers: BTreeMap<&'a str, usize>,
    /// Terminals for parts of rules.
    terminals: String,
    count: usize,
}

impl Writer<'_> {
    fn name(&self, rule: &str) -> String {
        let prefix = if self.regular.contains(rule) { "T" } else { "r" };
        format!("{prefix}{}", self.numbers.get(rule).copied().unwrap_or_default())
    }

    fn is_regular(&self, expr: &Expr) -> bool {
        let mut used = BTreeSet::new();
        expr.rules(&mut used);
        used.iter().all(|used| self.regular.contains(used))
    }

    /// A part of a terminal.
    fn terminal(&self, expr: &Expr) -> String {
        match expr {
            Expr::Literal(text) => serde_json::Value::from(text.as_str()).to_string(),
            Expr::Class(class) => format!("/{class}/"),
            Expr::Rule(name) => self.name(name),
            Expr::Sequence(parts) => {
                let parts: Vec<_> =
                    parts.iter().filter(|part| !part.is_empty()).map(|part| self.terminal(part)).collect();
                if parts.is_empty() { "\"\"".to_owned() } else { format!("({})", parts.join(" ")) }
            }
            Expr::Alternatives(parts) => alternatives(parts, |part| self.terminal(part)),
            Expr::Repeat(part, least, most) => format!("({}){}", self.terminal(part), count(*least, *most)),
        }
    }

    /// A part of a rule.
    fn rule(&mut self, expr: &Expr) -> String {
        if self.is_regular(expr) {
            let body = self.terminal(expr);
            let name = format!("P{}", self.count);
            self.count += 1;
            let _ = writeln!(self.terminals, "{name}: {body}");
            return name;
        }
        match expr {
            Expr::Rule(name) => self.name(name),
            Expr::Sequence(parts) => {
                let (mut out, mut run) = (Vec::new(), Vec::new());
                for part in parts.iter().filter(|part| !part.is_empty()) {
                    if self.is_regular(part) {
                        run.push(part.clone());
                        continue;
                    }
                    if !run.is_empty() {
                        out.push(self.rule(&Expr::Sequence(std::mem::take(&mut run))));
                    }
                    out.push(self.rule(part));
                }
                if !run.is_empty() {
                    out.push(self.rule(&Expr::Sequence(run)));
                }
                format!("({})", out.join(" "))
            }
            Expr::Alternatives(parts) => alternatives(parts, |part| self.rule(part)),
            Expr::Repeat(part, least, most) => format!("({}){}", self.rule(part), count(*least, *most)),
            // These are regular.
            Expr::Literal(_) | Expr::Class(_) => String::new(),
        }
    }
}

fn alternatives(parts: &[Expr], write: impl FnMut(&Expr) -> String) -> String {
    let full: Vec<_> = parts.iter().filter(|part| !part.is_empty()).collect();
    let optional = if full.len() < parts.len() { "?" } else { "" };
    if full.is_empty() {
        return "\"\"".to_owned();
    }
    let full: Vec<_> = full.into_iter().map(write).collect();
    format!("({}){optional}", full.join(" | "))
}

fn count(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".to_owned(),
        (1, None) => "+".to_owned(),
        (0, Some(1)) => "?".to_owned(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}

/// Parses GBNF.
struct Parser<'a> {
    text: &'a str,
    /// Byte of the next character.
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn takes(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn wrong(&self, what: &str) -> Error {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Error::bad_input(format!("line {line} of the grammar: {what}"))
    }

    /// Skips white space and comments, line breaks only if `lines`.
    fn space(&mut self, lines: bool) {
        loop {
            match self.peek() {
                Some(' ' | '\t') => drop(self.take()),
                Some('\n' | '\r') if lines => drop(self.take()),
                Some('#') => {
                    let end = self.rest().find(['\n', '\r']).unwrap_or(self.rest().len());
                    self.at += end;
                }
                _ => return,
            }
        }
    }

    fn grammar(mut self) -> Result<BTreeMap<String, Expr>> {
        let mut rules = BTreeMap::new();
        self.space(true);
        while self.peek().is_some() {
            let name = self.name().ok_or_else(|| self.wrong("expected the name of a rule"))?;
            self.space(false);
            if !self.takes("::=") {
                return Err(self.wrong("expected `::=` after the name of a rule"));
            }
            self.space(true);
            let expr = self.alternatives()?;
            rules.insert(name, expr);
            if !matches!(self.peek(), None | Some('\n' | '\r')) {
                return Err(self.wrong("expected the end of the rule"));
            }
            self.space(true);
        }
        Ok(rules)
    }

    fn name(&mut self) -> Option<String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let name: String = self.rest().chars().take_while(|&c| is_part(c)).collect();
        self.at += name.len();
        Some(name).filter(|name| !name.is_empty())
    }

    fn alternatives(&mut self) -> Result<Expr> {
        let mut all = vec![self.sequence()?];
        while self.takes("|") {
            self.space(true);
            all.push(self.sequence()?);
        }
        Ok(if all.len() == 1 { all.swap_remove(0) } else { Expr::Alternatives(all) })
    }

    fn sequence(&mut self) -> Result<Expr> {
        let mut parts = Vec::new();
        loop {
            let part = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.take();
                    Expr::Class("(?s:.)".to_owned())
                }
                Some('(') => {
                    self.take();
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(self.wrong("the parentheses are nested too deep"));
                    }
                    self.space(true);
                    let inner = self.alternatives()?;
                    if !self.takes(")") {
                        return Err(self.wrong("expected `)`"));
                    }
                    self.depth -= 1;
                    inner
                }
                _ => match self.name() {
                    Some(name) => Expr::Rule(name),
                    None => return Ok(Expr::Sequence(parts)),
                },
            };
            self.space(self.depth > 0);
            let part = self.repeated(part)?;
            parts.push(part);
        }
    }

    /// `part` with the repetitions behind it.
    fn repeated(&mut self, mut part: Expr) -> Result<Expr> {
        loop {
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.take();
                    let least = self.number()?;
                    let most = match self.takes(",") {
                        false => Some(least),
                        true if self.peek() == Some('}') => None,
                        true => Some(self.number()?),
                    };
                    if self.peek() != Some('}') || most.is_some_and(|most| most < least) {
                        return Err(self.wrong("expected a repetition such as {2}, {2,} or {2,5}"));
                    }
                    (least, most)
                }
                _ => return Ok(part),
            };
            self.take();
            self.space(self.depth > 0);
            part = Expr::Repeat(Box::new(part), least, most);
        }
    }

    fn number(&mut self) -> Result<u32> {
        let digits: String = self.rest().chars().take_while(char::is_ascii_digit).collect();
        self.at += digits.len();
        let number = digits.parse().ok().filter(|&n| n <= MAX_REPEAT);
        number.ok_or_else(|| self.wrong(&format!("a repetition must be a number up to {MAX_REPEAT}")))
    }

    fn literal(&mut self) -> Result<Expr> {
        self.take();
        let mut text = String::new();
        loop {
            match self.take() {
                Some('"') => return Ok(Expr::Literal(text)),
                Some('\\') => text.push(self.escape()?),
                Some(c) if c != '\n' => text.push(c),
                _ => return Err(self.wrong("a text has no end")),
            }
        }
    }

    /// The character after a backslash.
    fn escape(&mut self) -> Result<char> {
        let digits = match self.take() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c) if c.is_ascii_punctuation() => return Ok(c),
            _ => return Err(self.wrong("unknown escape sequence")),
        };
        let hex: String = self.rest().chars().take(digits).collect();
        let code = u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == digits);
        let c = code.and_then(char::from_u32).ok_or_else(|| self.wrong("an invalid character code"))?;
        self.at += digits;
        Ok(c)
    }

    fn class(&mut self) -> Result<Expr> {
        self.take();
        let mut class = if self.takes("^") { "[^".to_owned() } else { "[".to_owned() };
        let mut is_empty = true;
        loop {
            let first = match self.take() {
                Some(']') => break,
                Some('\\') => self.escape()?,
                Some(c) if c != '\n' => c,
                _ => return Err(self.wrong("a character class has no end")),
            };
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let last = match is_range {
                false => first,
                true => {
                    self.take();
                    match self.take() {
                        Some('\\') => self.escape()?,
                        Some(c) if c != '\n' => c,
                        _ => return Err(self.wrong("a character class has no end")),
                    }
                }
            };
            if last < first {
                return Err(self.wrong("a range of characters ends before it begins"));
            }
            is_empty = false;
            let _ = write!(class, "\\x{{{:x}}}-\\x{{{:x}}}", first as u32, last as u32);
        }
        if is_empty {
            return Err(self.wrong("a character class is empty"));
        }
        Ok(Expr::Class(class + "]"))
    }
}
