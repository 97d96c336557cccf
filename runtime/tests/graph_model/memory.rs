//! The bytes that tasks of the world read and write.

use std::collections::BTreeMap;

use echelon_runtime::graph::*;

/// Bytes in each space of the world.
pub(crate) const SPACE_BYTES: usize = 24;

/// The spaces of the world; the last two differ in the generation alone.
pub(crate) const SPACES: [Space; 4] = [
    Space::Host,
    Space::Region(1),
    Space::Remote {
        session: 1,
        buffer: 1,
        generation: 0,
    },
    Space::Remote {
        session: 1,
        buffer: 1,
        generation: 1,
    },
];

pub(crate) type Memory = BTreeMap<Space, [u8; SPACE_BYTES]>;

pub(crate) fn memory() -> Memory {
    SPACES
        .into_iter()
        .zip(1..)
        .map(|(space, fill)| (space, [fill; SPACE_BYTES]))
        .collect()
}

/// The bytes of all accesses of a kind, in order of space and offset, each once.
pub(crate) fn bytes(accesses: &[Access], of: impl Fn(AccessMode) -> bool) -> Vec<(Space, usize)> {
    let chosen = accesses.iter().filter(|a| of(a.mode));
    let mut bytes: Vec<_> = chosen
        .flat_map(|a| (a.start..a.end).map(|i| (a.space, i as usize)))
        .collect();
    bytes.sort_unstable();
    bytes.dedup();
    bytes
}

/// Whether the old contents matter; said here again, so that a wrong answer of the crate shows.
pub(crate) fn reads(mode: AccessMode) -> bool {
    matches!(mode, AccessMode::Read | AccessMode::ReadWrite)
}

/// Whether the contents change.
pub(crate) fn writes(mode: AccessMode) -> bool {
    matches!(mode, AccessMode::Write | AccessMode::ReadWrite)
}

pub(crate) fn conflict(a: &[Access], b: &[Access]) -> bool {
    a.iter().any(|x| {
        let touches = |y: &&Access| x.space == y.space && x.start.max(y.start) < x.end.min(y.end);
        b.iter()
            .filter(touches)
            .any(|y| writes(x.mode) || writes(y.mode))
    })
}

pub(crate) fn gather(memory: &Memory, accesses: &[Access]) -> Vec<u8> {
    bytes(accesses, reads)
        .iter()
        .map(|(space, i)| memory[space][*i])
        .collect()
}

/// What a task writes: every byte depends on all inputs, on the task and on the position.
pub(crate) fn scatter(memory: &mut Memory, accesses: &[Access], inputs: &[u8], salt: usize) {
    let mut state = inputs.iter().fold(salt as u64 + 1, |s, &b| {
        (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    for (space, i) in bytes(accesses, writes) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        memory.get_mut(&space).unwrap()[i] = (state >> 33) as u8;
    }
}
