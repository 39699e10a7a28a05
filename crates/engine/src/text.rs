//! From tokens' bytes to text that may be shown: cut at characters, ended by stop strings.

/// The text of one answer as it grows.
pub(crate) struct TextStream {
    stops: Vec<String>,
    /// The beginning of a character whose end has not come yet: at most three bytes.
    partial: Vec<u8>,
    /// Text not shown yet, because it may be the beginning of a stop string.
    held: String,
}

/// What one token added.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) text: String,
    /// A stop string appeared; it and what follows it are not in the text.
    pub(crate) stopped: bool,
}

impl TextStream {
    /// None of the stop strings may be empty.
    pub(crate) fn new(stops: Vec<String>) -> TextStream {
        TextStream { stops, partial: Vec::new(), held: String::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Shown {
        self.partial.extend_from_slice(bytes);
        self.take_whole_characters();
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            self.partial.clear();
            return Shown { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.held.len() - self.beginning_of_a_stop();
        let rest = self.held.split_off(keep);
        Shown { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back, when no more tokens come.
    pub(crate) fn finish(mut self) -> String {
        self.held.push_str(&String::from_utf8_lossy(&self.partial));
        self.held
    }

    /// Moves what is complete from `partial` to `held`. Bytes that are no character become U+FFFD, as elsewhere.
    fn take_whole_characters(&mut self) {
        loop {
            let (valid, broken) = match std::str::from_utf8(&self.partial) {
                Ok(text) => (text.len(), None),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            self.held.push_str(&String::from_utf8_lossy(&self.partial[..valid]));
            match broken {
                Some(length) => {
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    self.partial.drain(..valid + length);
                }
                None => {
                    self.partial.drain(..valid);
                    return;
                }
            }
        }
    }

    /// Bytes at the end of `held` with which some stop string could begin.
    fn beginning_of_a_stop(&self) -> usize {
        let held = self.held.as_str();
        let longest = self.stops.iter().map(String::len).max().unwrap_or(1) - 1;
        let from = held.len().saturating_sub(longest);
        held.char_indices()
            .map(|(at, _)| at)
            .filter(|at| *at >= from)
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&held[*at..])))
            .map_or(0, |at| held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds pieces and shows what came out after each; `!` marks the stop, and `/` what finishing adds.
    fn check(stops: &[&str], pieces: &[&[u8]], wanted: &str) {
        let mut stream = TextStream::new(stops.iter().map(|stop| stop.to_string()).collect());
        let mut seen = Vec::new();
        for piece in pieces {
            let shown = stream.push(piece);
            seen.push(shown.text);
            if shown.stopped {
                assert_eq!(seen.join("|") + "!", wanted);
                return;
            }
        }
        assert_eq!(format!("{}/{}", seen.join("|"), stream.finish()), wanted);
    }

    #[test]
    fn characters_are_never_cut() {
        check(&[], &[b"Gr\xc3", b"\xbc\xc3", b"\x9fe"], "Gr|ü|ße/");
        check(&[], &["🦀".as_bytes().split_at(1).0, "🦀".as_bytes().split_at(1).1], "|🦀/");
    }

    #[test]
    fn bytes_that_are_no_character_are_marked() {
        check(&[], &[b"a\xffb", b"\xe2\x82", b"x"], "a\u{fffd}b||\u{fffd}x/");
        check(&[], &[b"ab\xe2\x82"], "ab/\u{fffd}");
    }

    /// However the bytes are cut into tokens, the same text comes out.
    #[test]
    fn where_tokens_are_cut_does_not_matter() {
        let bytes = "Größe: 3 €, 🦀 STO STOP after".as_bytes();
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let mut stream = TextStream::new(vec!["STOP".into(), "🦀🦀".into()]);
                let mut text = String::new();
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let stopped = pieces.iter().any(|piece| {
                    let shown = stream.push(piece);
                    text.push_str(&shown.text);
                    shown.stopped
                });
                assert_eq!((text.as_str(), stopped), ("Größe: 3 €, 🦀 STO ", true), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_stop_string_may_span_tokens() {
        check(&["STOP"], &[b"so S", b"T", b"OP it"], "so ||!");
        check(&["STOP"], &[b"so S", b"T", b"AY"], "so ||STAY/");
        check(&["STOP"], &[b"so ST"], "so /ST");
        check(&["aab"], &[b"aa", b"a", b"b"], "|a|!");
    }

    #[test]
    fn the_first_stop_string_in_the_text_counts() {
        check(&["d", "bc"], &[b"abcd"], "a!");
        check(&["\n\n", "\n"], &[b"x\n", b"\ny"], "x!");
        check(&["ü"], &[b"a\xc3", b"\xbc"], "a|!");
        check(&["aaaa", "ab"], &[b"aa", b"a", b"b"], "||aa!");
    }
}
