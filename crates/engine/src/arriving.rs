//! A model whose file is still arriving: what may be read of it, and waiting for the rest.
//!
//! Whoever starts us says on standard input how many bytes of the file are verified, from its start. Bytes beyond that
//! are a hole, or right, but nobody has said so: none is read. llama.cpp first reads the header (words, shapes), then asks
//! back before each tensor, in an order of its own; so what can be done early is done with the header alone.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};

use crate::gguf;

pub(crate) struct Arriving<R> {
    /// Where the numbers come from.
    told: R,
    /// Bytes that may be read.
    verified: u64,
    /// Bytes of the whole file.
    bytes: u64,
}

impl<R: Read> Arriving<R> {
    /// The file at `path` is as long as it will be.
    pub(crate) fn new(path: &Path, told: R) -> anyhow::Result<Arriving<R>> {
        let metadata = std::fs::metadata(path);
        let bytes = metadata.with_context(|| format!("cannot open the model {}", path.display()))?.len();
        Ok(Arriving { told, verified: 0, bytes })
    }

    /// Waits until llama.cpp may read all of the header.
    pub(crate) fn wait_for_header(&mut self, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path).with_context(|| format!("cannot open the model {}", path.display()))?;
        let mut reader = BufReader::new(Prefix { file, at: 0, arriving: self });
        let header = gguf::header_bytes(&mut reader);
        match header {
            // Its reader asks for a buffer at a time, and gets what is a hole after the header: nothing looks at it.
            Ok(bytes) => {
                self.wait_for(bytes)?;
                if self.verified < self.bytes {
                    let left = self.bytes - self.verified;
                    eprintln!("vivarium-engine: the header is here ({bytes} bytes), {left} bytes of the model are not");
                }
                Ok(())
            }
            Err(gguf::Error::Unread(error)) => Err(error.into()),
            // llama.cpp says it better, of the whole file.
            Err(gguf::Error::Unknown) => self.wait_for_all(),
        }
    }

    pub(crate) fn wait_for_all(&mut self) -> anyhow::Result<()> {
        Ok(self.wait_for(self.bytes)?)
    }

    fn wait_for(&mut self, bytes: u64) -> io::Result<()> {
        while self.verified < bytes.min(self.bytes) {
            let mut number = [0; 8];
            self.told.read_exact(&mut number).map_err(|error| {
                let (verified, bytes) = (self.verified, self.bytes);
                let what = format!("the model stopped arriving at byte {verified} of {bytes}; fetch it again");
                io::Error::new(error.kind(), what)
            })?;
            self.verified = self.verified.max(u64::from_le_bytes(number));
        }
        Ok(())
    }
}

/// The file as far as it is here; reading on waits.
struct Prefix<'a, R> {
    file: File,
    at: u64,
    arriving: &'a mut Arriving<R>,
}

impl<R: Read> Read for Prefix<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.arriving.wait_for(self.at + 1)?;
        let here = usize::try_from(self.arriving.verified.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = into.len().min(here);
        let read = self.file.read_at(&mut into[..most], self.at)?;
        self.at += u64::try_from(read).unwrap_or(u64::MAX);
        Ok(read)
    }
}

/// Numbers that standard input gives, unbuffered: what follows them is not for us.
pub(crate) fn standard_input() -> anyhow::Result<File> {
    let own = rustix::io::dup(io::stdin());
    match own {
        Ok(own) => Ok(File::from(own)),
        Err(error) => bail!("standard input is closed ({error}), and --arriving needs it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn nothing_is_read_that_nobody_said_is_here() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let numbers = [40u64, 30, 60].map(u64::to_le_bytes).concat();
        let mut arriving = Arriving::new(file.path(), &numbers[..]).unwrap();
        let mut prefix = Prefix { file: File::open(file.path()).unwrap(), at: 0, arriving: &mut arriving };
        let mut content = [0; 100];
        assert_eq!(prefix.read(&mut content).unwrap(), 40);
        assert_eq!(prefix.read(&mut content).unwrap(), 20, "a smaller number takes nothing back");
        let ended = prefix.read(&mut content).unwrap_err().to_string();
        assert_eq!(ended, "the model stopped arriving at byte 60 of 100; fetch it again");
    }
}
