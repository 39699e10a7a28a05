//! What every fuzz test of the workspace is made of; included by path, so that no crate is built for it.

/// SplitMix64: the same seed gives the same bytes on every machine.
pub struct Chance(pub u64);

impl Chance {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.draw() % u64::try_from(n.max(1)).unwrap()).unwrap()
    }
}

/// `usual` inputs, or `deep` with VIVARIUM_DEEP=1.
pub fn runs(usual: u64, deep: u64) -> u64 {
    if std::env::var_os("VIVARIUM_DEEP").is_some() { deep } else { usual }
}

/// One to four changes: of a bit or byte, an end cut off, one of `tokens` put in, or a piece shorter than `piece_max`
/// bytes repeated elsewhere.
pub fn mutate<T: AsRef<[u8]>>(bytes: &mut Vec<u8>, chance: &mut Chance, tokens: &[T], piece_max: usize) {
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len());
        match chance.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            1 => bytes.truncate(at),
            2 => {
                let token = tokens[chance.below(tokens.len())].as_ref();
                bytes.splice(at..at, token.iter().copied());
            }
            3 if !bytes.is_empty() => {
                bytes.remove(at);
            }
            4 if !bytes.is_empty() => {
                let end = (at + chance.below(piece_max)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = chance.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ if !bytes.is_empty() => bytes[at] = u8::try_from(chance.below(256)).unwrap(),
            _ => {}
        }
    }
}
