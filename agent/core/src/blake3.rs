//! BLAKE3 sums as values: what extents of base backups are known by.
//!
//! BLAKE3 and not SHA-256, because every byte of a cluster is hashed at every look: it takes a quarter of the time. `b3sum` computes it too.

use crate::sum::sum;

sum! {
    /// The BLAKE3 of some bytes (256 bits, no key), written as 64 lower-case hexadecimal digits.
    Blake3Sum, "a BLAKE3 sum"
}
