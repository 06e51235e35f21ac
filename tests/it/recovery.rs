//! A server must never open with fewer rows than the archive holds: whatever goes wrong on the way, it stops, and goes on once that is
//! mended.

mod broken;
mod faults;
mod looks;
mod no_space;
mod servers;
mod world;
