//! SHA-256 sums as values: what stored things are compared by.

use crate::sum::sum;

sum! {
    /// The SHA-256 of some bytes, written as 64 lower-case hexadecimal digits.
    Sha256Sum, "a SHA-256"
}
