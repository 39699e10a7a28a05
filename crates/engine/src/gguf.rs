//! How long a GGUF file's header is: names, values and shapes, everything before the numbers. Nothing of it is kept;
//! llama.cpp reads it again, and this only says when it can.
//!
//! Source: ggml's docs/gguf.md, versions 2 and 3.

use std::io::{self, BufRead};

#[derive(Debug)]
pub(crate) enum Error {
    Unread(io::Error),
    /// Not GGUF, or a kind of it that is not known here.
    Unknown,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Unread(error)
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes up to the end of the last tensor's description. Reads no byte beyond them but what `from` reads ahead.
pub(crate) fn header_bytes(from: &mut impl BufRead) -> Result<u64, Error> {
    let mut header = Header { from, at: 0 };
    if header.take()? != *b"GGUF" || !matches!(header.u32()?, 2 | 3) {
        return Err(Error::Unknown);
    }
    let (tensors, values) = (header.u64()?, header.u64()?);
    for _ in 0..values {
        header.skip_string()?;
        match header.u32()? {
            STRING => header.skip_string()?,
            ARRAY => match (header.u32()?, header.u64()?) {
                (STRING, count) => (0..count).try_for_each(|_| header.skip_string())?,
                (kind, count) => header.skip(count.checked_mul(scalar_bytes(kind)?).ok_or(Error::Unknown)?)?,
            },
            kind => header.skip(scalar_bytes(kind)?)?,
        }
    }
    for _ in 0..tensors {
        header.skip_string()?;
        let dimensions = u64::from(header.u32()?);
        // Each dimension, then kind and offset.
        header.skip(dimensions * 8 + 4 + 8)?;
    }
    Ok(header.at)
}

fn scalar_bytes(kind: u32) -> Result<u64, Error> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        // An array in an array too: no model has one.
        _ => Err(Error::Unknown),
    }
}

fn bytes_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

struct Header<'a, R> {
    from: &'a mut R,
    at: u64,
}

impl<R: BufRead> Header<'_, R> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        match self.from.read_exact(&mut bytes) {
            Ok(()) => self.at += bytes_of(&bytes),
            Err(error) => return Err(error.into()),
        }
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.take().map(u64::from_le_bytes)
    }

    fn skip_string(&mut self) -> Result<(), Error> {
        let bytes = self.u64()?;
        self.skip(bytes)
    }

    /// Past the end there is nothing: a length that lies is found there.
    fn skip(&mut self, bytes: u64) -> Result<(), Error> {
        let mut left = bytes;
        while left > 0 {
            let here = self.from.fill_buf()?.len();
            if here == 0 {
                return Err(Error::Unknown);
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(here);
            self.from.consume(step);
            left -= u64::try_from(step).unwrap_or(left);
        }
        self.at += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&bytes_of(text.as_bytes()).to_le_bytes(), text.as_bytes()].concat()
    }

    fn small() -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &4u64.to_le_bytes()].concat();
        file.extend([string("a"), STRING.to_le_bytes().to_vec(), string("text")].concat());
        file.extend([string("b"), 10u32.to_le_bytes().to_vec(), 7u64.to_le_bytes().to_vec()].concat());
        let words = [ARRAY.to_le_bytes(), STRING.to_le_bytes()].concat();
        file.extend([string("c"), words, 2u64.to_le_bytes().to_vec(), string("x"), string("yz")].concat());
        let numbers = [ARRAY.to_le_bytes(), 5u32.to_le_bytes()].concat();
        file.extend([string("d"), numbers, 3u64.to_le_bytes().to_vec(), vec![0; 12]].concat());
        file.extend([string("weights"), 2u32.to_le_bytes().to_vec(), vec![0; 16], vec![0; 12]].concat());
        file
    }

    #[test]
    fn a_header_ends_after_the_last_tensor() {
        let header = small();
        let with_numbers = [&header[..], &[1; 64]].concat();
        assert_eq!(header_bytes(&mut &with_numbers[..]).unwrap(), bytes_of(&header));
    }

    #[test]
    fn what_is_cut_off_or_lies_is_not_taken_for_a_header() {
        let header = small();
        for length in 0..header.len() {
            assert!(header_bytes(&mut &header[..length]).is_err(), "{length}");
        }
        let mut lying = header.clone();
        // The first name says that it has 2^63 bytes.
        lying[31] = 0x80;
        assert!(matches!(header_bytes(&mut &lying[..]), Err(Error::Unknown)));
        assert!(matches!(header_bytes(&mut &b"GGML, or something"[..]), Err(Error::Unknown)));
    }

    #[test]
    fn a_real_file_has_a_header_of_less_than_its_tensors() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.vivarium/models/SmolLM2-135M-Instruct.Q4_1.gguf");
        let file = std::fs::File::open(path).unwrap();
        let bytes = header_bytes(&mut std::io::BufReader::new(file)).unwrap();
        assert!((1 << 20..4 << 20).contains(&bytes), "{bytes}");
    }
}
