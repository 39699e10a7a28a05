//! One record, and its frame on disk.
//!
//! Frame, little-endian: `len u32 | crc u32 | body`, `len` the body's bytes, `crc` the CRC-32C of `len` and body.
//! Body: `lsn u64 | synced u64 | kind u8 | time u64 | outputs_digest 32 | payload`.
//! `synced` is the last LSN known durable when the frame was written. It is what tells damage from a torn write:
//! a bad frame that a later one calls synced was whole once.

/// Log sequence number: 1 for the first record of a life, then one more each, across segments and hosts.
pub type Lsn = u64;

/// One input of the two folds, as replay hands it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub lsn: Lsn,
    /// What the payload is; the journal does not look.
    pub kind: u8,
    /// Chain seconds when it was recorded.
    pub time: u64,
    /// Digest of the outputs that the fold gave, so that a replay stops at the first difference.
    pub outputs_digest: [u8; 32],
    pub payload: Vec<u8>,
}

/// Bytes of `len` and `crc`.
pub(crate) const PREFIX_BYTES: usize = 8;
/// Bytes of a body without payload.
pub(crate) const FIXED_BYTES: usize = 8 + 8 + 1 + 8 + 32;
/// Longest payload: a quarter of a segment, so that a damaged length is noticed before it is allocated.
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;

/// A decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub record: Record,
    pub synced: Lsn,
    /// Of the whole frame, prefix included.
    pub bytes: usize,
}

/// Why there is no frame at some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The bytes end inside the frame.
    Short,
    /// The length is impossible.
    Length,
    Checksum,
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Short => "the record is cut short",
            Self::Length => "the record's length is impossible",
            Self::Checksum => "the record's checksum is wrong",
        })
    }
}

impl Record {
    /// Bytes of the frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        PREFIX_BYTES + FIXED_BYTES + self.payload.len()
    }

    pub(crate) fn write_frame(&self, synced: Lsn, out: &mut Vec<u8>) {
        let start = out.len();
        let len = u32::try_from(FIXED_BYTES + self.payload.len()).expect("append refuses longer payloads");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.lsn.to_le_bytes());
        out.extend_from_slice(&synced.to_le_bytes());
        out.push(self.kind);
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&self.outputs_digest);
        out.extend_from_slice(&self.payload);
        let crc = checksum(len, &out[start + PREFIX_BYTES..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The frame at the beginning of `bytes`.
pub(crate) fn read_frame(bytes: &[u8]) -> Result<Frame, Flaw> {
    let (Some(len), Some(crc)) = (u32_at(bytes, 0), u32_at(bytes, 4)) else {
        return Err(Flaw::Short);
    };
    let body_bytes = usize::try_from(len).map_err(|_| Flaw::Length)?;
    if !(FIXED_BYTES..=FIXED_BYTES + PAYLOAD_BYTES_MAX).contains(&body_bytes) {
        return Err(Flaw::Length);
    }
    let body = bytes.get(PREFIX_BYTES..PREFIX_BYTES + body_bytes).ok_or(Flaw::Short)?;
    if checksum(len, body) != crc {
        return Err(Flaw::Checksum);
    }
    // The body is at least FIXED_BYTES long, so none of these can miss.
    let (lsn, synced, time) = match (u64_at(body, 0), u64_at(body, 8), u64_at(body, 17)) {
        (Some(lsn), Some(synced), Some(time)) => (lsn, synced, time),
        _ => return Err(Flaw::Length),
    };
    let mut outputs_digest = [0; 32];
    outputs_digest.copy_from_slice(&body[25..57]);
    let record = Record { lsn, kind: body[16], time, outputs_digest, payload: body[FIXED_BYTES..].to_vec() };
    Ok(Frame { record, synced, bytes: PREFIX_BYTES + body_bytes })
}

fn checksum(len: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&len.to_le_bytes()), body)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(lsn: u64, payload: Vec<u8>) -> Record {
        Record { lsn, kind: 7, time: 1_700_000_000, outputs_digest: [9; 32], payload }
    }

    proptest! {
        #[test]
        fn a_frame_is_read_as_written(lsn: u64, synced: u64, payload: Vec<u8>) {
            let record = record(lsn, payload);
            let mut bytes = Vec::new();
            record.write_frame(synced, &mut bytes);
            prop_assert_eq!(bytes.len(), record.frame_bytes());
            bytes.extend_from_slice(b"what follows");
            let frame = read_frame(&bytes).expect("whole");
            prop_assert_eq!((frame.bytes, frame.synced), (record.frame_bytes(), synced));
            prop_assert_eq!(frame.record, record);
        }

        #[test]
        fn one_flipped_bit_is_noticed(bit in 0usize..(8 + 57 + 20) * 8) {
            let mut bytes = Vec::new();
            record(3, vec![5; 20]).write_frame(2, &mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read_frame(&bytes).is_err());
        }

        #[test]
        fn a_stranger_s_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = read_frame(&bytes);
        }
    }
}
