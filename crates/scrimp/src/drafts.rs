//! `--speculate`: the source of drafts, and the files of a draft model.

use crate::{App, verbs::pull};
use scrimp_llm::{
    Result,
    checkpoint::Checkpoint,
    generate::{DraftCheckpoint, DraftKind, Speculation},
    model::Model,
    tokenizer::Tokenizer,
};
use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

/// The value of `--speculate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Speculate {
    /// A source without a model of its own.
    Kind(DraftKind),
    /// A model that drafts.
    Model(String),
}

impl Default for Speculate {
    fn default() -> Self {
        Self::Kind(DraftKind::Off)
    }
}

impl fmt::Display for Speculate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => kind.fmt(f),
            Self::Model(model) => model.fmt(f),
        }
    }
}

impl FromStr for Speculate {
    type Err = Infallible;
    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(match text.parse::<DraftKind>() {
            Ok(kind) if kind != DraftKind::Model => Self::Kind(kind),
            _ => Self::Model(text.to_owned()),
        })
    }
}

impl Speculate {
    /// The kind of the source.
    pub(crate) fn kind(&self) -> DraftKind {
        match self {
            Self::Kind(kind) => *kind,
            Self::Model(_) => DraftKind::Model,
        }
    }

    /// Downloads the draft model, if there is one.
    pub(crate) fn fetch(&self, app: &App) -> anyhow::Result<Drafts> {
        let path = match self {
            Self::Kind(_) => None,
            Self::Model(model) => Some(pull::fetch(app, model)?),
        };
        Ok(Drafts { kind: self.kind(), path })
    }
}

/// The source of drafts, with the path of the draft model.
#[derive(Debug, Clone)]
pub(crate) struct Drafts {
    kind: DraftKind,
    path: Option<PathBuf>,
}

impl Drafts {
    /// Compares the vocabulary of the draft model with that of `target`, before the weights of either are loaded.
    pub(crate) fn check(&self, target: &Checkpoint, tokenizer: &Tokenizer) -> Result<Checked> {
        let open = |path: &PathBuf| DraftCheckpoint::new(Checkpoint::open(path)?, (target.path(), tokenizer));
        Ok(Checked { kind: self.kind, draft: self.path.as_ref().map(open).transpose()? })
    }
}

/// The source of drafts, with the files of a draft model that has the vocabulary of the model.
#[derive(Debug)]
pub(crate) struct Checked {
    kind: DraftKind,
    pub(crate) draft: Option<DraftCheckpoint>,
}

impl Checked {
    /// Loads the draft model, if there is one.
    pub(crate) fn load(self, target: &Model) -> Result<Speculation> {
        let draft = self.draft.map(|draft| draft.load(target, None)).transpose()?;
        Speculation::new(self.kind, draft.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_words_are_models() {
        for text in ["off", "ngram", "model", "./ngram", "smollm2"] {
            let value: Speculate = text.parse().unwrap();
            assert_eq!(value.to_string(), text);
            assert_eq!(value.kind() == DraftKind::Model, !["off", "ngram"].contains(&text), "{text}");
        }
    }
}
