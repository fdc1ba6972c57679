//! Stop strings in streamed text.

use crate::error::{Error, Result};

/// Finds stop strings across pieces, and buffers text that may be the beginning of one.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The buffered text: the longest suffix so far that begins a stop string.
    held: String,
}

impl StopStrings {
    /// A finder for `stops`.
    ///
    /// # Errors
    /// When one of them is empty.
    pub fn new(stops: &[String]) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::bad_input("a stop string is empty"));
        }
        Ok(Self { stops: stops.to_vec(), held: String::new() })
    }

    /// Takes the next piece. Returns the final text, and the stop string that ended it, if there is one.
    ///
    /// Of several stop strings, the earliest counts, then the longest. After a stop, the buffer is empty.
    pub fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|&(at, stop)| (at, std::cmp::Reverse(stop.len()))) {
            let stop = stop.clone();
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let begins_stop = |end: &str| self.stops.iter().any(|stop| stop.starts_with(end));
        let keep = self.held.char_indices().map(|(at, _)| at).find(|&at| begins_stop(&self.held[at..]));
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The buffered text at the end of the generation.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn holds_back_only_what_could_become_a_stop() {
        let mut s = stops(&["\n\nUser:", "END"]);
        assert_eq!(s.push("Hello\n"), ("Hello".into(), None));
        assert_eq!(s.push("\nUs"), (String::new(), None));
        assert_eq!(s.push("eful E"), ("\n\nUseful ".into(), None));
        assert_eq!(s.push("NDless"), (String::new(), Some("END".into())));
        assert_eq!(s.finish(), "");
        assert!(StopStrings::new(&[String::new()]).is_err());
    }

    #[test]
    fn the_first_beginning_wins_then_the_longest() {
        assert_eq!(stops(&["c", "bc", "b"]).push("abcd"), ("a".into(), Some("bc".into())));
        // A complete stop string does not wait for a longer one.
        assert_eq!(stops(&["b", "bc"]).push("ab"), ("a".into(), Some("b".into())));
    }

    proptest! {
        /// The output does not depend on the cut into pieces, and text without stop strings is complete.
        #[test]
        fn cuts_do_not_matter(text in "[abü]{0,24}", cut in 1usize..5, stop in "[abü]{1,4}") {
            let chars: Vec<char> = text.chars().collect();
            let mut s = stops(&[&stop]);
            let (mut out, mut stopped) = (String::new(), false);
            for piece in chars.chunks(cut) {
                let (certain, hit) = s.push(&piece.iter().collect::<String>());
                out.push_str(&certain);
                if hit.is_some() {
                    stopped = true;
                    break;
                }
            }
            out.push_str(&s.finish());
            prop_assert_eq!(stopped, text.contains(&stop));
            prop_assert_eq!(out, text.split(&stop).next().unwrap());
        }
    }
}
