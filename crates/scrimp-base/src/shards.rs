//! Names of the files that a large GGUF file is split into: `NAME-00001-of-00003.gguf` (`llama-gguf-split`).

/// The most files of a model.
pub const MAX_SHARDS: usize = 1024;

/// The parts of a shard's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardName<'a> {
    stem: &'a str,
    /// Number of the shard, from 1.
    pub number: usize,
    /// Number of all shards.
    pub count: usize,
}

impl<'a> ShardName<'a> {
    /// Parses a file name or a path; `None` if it is not the name of a shard.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| {
            (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
        };
        let (number, count): (usize, usize) = (five_digits(number)?, five_digits(count)?);
        let plausible = (1..=count).contains(&number) && count <= MAX_SHARDS;
        plausible.then_some(Self { stem, number, count })
    }

    /// The names of all shards, in order.
    pub fn all(&self) -> impl Iterator<Item = String> {
        (1..=self.count).map(|number| format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_are_recognized() {
        let shard = ShardName::parse("dir/a-00002-of-00003.gguf").unwrap();
        assert_eq!((shard.number, shard.count), (2, 3));
        let all: Vec<_> = shard.all().collect();
        assert_eq!(all[0], "dir/a-00001-of-00003.gguf");
        assert_eq!((all.len(), all[1].as_str()), (3, "dir/a-00002-of-00003.gguf"));
        for other in [
            "a.gguf",
            "a-1-of-3.gguf",
            "a-00000-of-00003.gguf",
            "a-00004-of-00003.gguf",
            "a-00001-of-99999.gguf",
            "a-00001-of-00003.safetensors",
            "a-0000x-of-00003.gguf",
            "-of-.gguf",
        ] {
            assert_eq!(ShardName::parse(other), None, "{other}");
        }
    }
}
