//! Random numbers: one root, and a stream of its own for everything that needs some.

use std::fmt;

use rand::{SeedableRng, TryRng, rngs::SysRng};
use rand_chacha::ChaCha12Rng;
use sha2::{Digest, Sha256};

use super::EnvError;

/// The root of a node's random numbers.
///
/// Each component draws from a stream under its own name, so that one more draw here changes
/// nothing there. A stream's seed is SHA-256 of a fixed prefix, the root and the name; the same
/// root and name give the same numbers in every version.
#[derive(Clone, PartialEq, Eq)]
pub struct Seeds {
    root: [u8; 32],
}

impl Seeds {
    /// The same numbers for the same `seed`: for simulations, and for tests that can be repeated.
    pub fn new(seed: u64) -> Self {
        let mut root = [0; 32];
        root[..8].copy_from_slice(&seed.to_le_bytes());
        Seeds { root }
    }

    /// 256 bits from the operating system.
    ///
    /// # Errors
    /// [`EnvError::NoRandomness`] if it has none.
    pub fn random() -> Result<Self, EnvError> {
        let mut root = [0; 32];
        SysRng
            .try_fill_bytes(&mut root)
            .map_err(|error| EnvError::NoRandomness(error.to_string()))?;
        Ok(Seeds { root })
    }

    /// The stream called `name`, from its start: asking twice gives the same numbers twice.
    pub fn stream(&self, name: &str) -> ChaCha12Rng {
        ChaCha12Rng::from_seed(self.bytes(name))
    }

    /// 32 bytes called `name`, for what wants a key or a seed and not a generator.
    pub fn bytes(&self, name: &str) -> [u8; 32] {
        Sha256::new()
            .chain_update(b"footlight seeds 1\0")
            .chain_update(self.root)
            .chain_update(name.as_bytes())
            .finalize()
            .into()
    }
}

impl fmt::Debug for Seeds {
    /// Not the root: keys may be derived from it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seeds")
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn a_stream_depends_on_its_seed_and_name_and_nothing_else() {
        let first = |seed: u64, name: &str| Seeds::new(seed).stream(name).next_u64();
        assert_eq!(first(7, "foca"), first(7, "foca"));
        assert_ne!(first(7, "foca"), first(8, "foca"));
        assert_ne!(first(7, "foca"), first(7, "quic"));
    }

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        assert_eq!(Seeds::new(7).bytes("foca")[..8], KNOWN_BYTES);
        assert_eq!(Seeds::new(7).stream("foca").next_u64(), KNOWN_NUMBER);
    }

    const KNOWN_BYTES: [u8; 8] = [120, 19, 71, 176, 83, 162, 93, 60];
    const KNOWN_NUMBER: u64 = 13_943_679_669_606_883_527;

    #[test]
    fn two_random_roots_differ_and_neither_is_printed() {
        let [a, b] = [Seeds::random().unwrap(), Seeds::random().unwrap()];
        assert_ne!(a.bytes("x"), b.bytes("x"));
        assert_eq!(format!("{a:?}"), "Seeds");
    }
}
