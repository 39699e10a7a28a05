//! The data of server-sent events, out of the pieces in which a stream comes.

#[derive(Default)]
pub struct Events {
    /// Of a line whose end has not come.
    pending: Vec<u8>,
}

impl Events {
    /// The data of every event that this piece completes, `[DONE]` included.
    pub fn of(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        self.pending.extend_from_slice(piece);
        let mut all = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            all.extend(line.strip_prefix(b"data: ").map(<[u8]>::to_vec));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_may_come_in_pieces_and_pieces_may_hold_several() {
        let mut events = Events::default();
        assert!(events.of(b"data: {\"a\"").is_empty());
        assert_eq!(events.of(b": 1}\n\n: comment\n\ndata: 2\n\nda"), [b"{\"a\": 1}\n".to_vec(), b"2\n".to_vec()]);
        assert_eq!(events.of(b"ta: [DONE]\n\n"), [b"[DONE]\n".to_vec()]);
    }
}
