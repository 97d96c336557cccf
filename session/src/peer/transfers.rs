//! What a task needs of imports on other hosts: fetched before it, written back after it.

use std::sync::Arc;

use echelon_runtime::memory::SharedRegion;
use echelon_runtime::Tag;
use echelon_wire::buffer::AccessFlags;

use super::client::{Direction, Source, Stretch};
use super::{PeerError, Peers};

/// An import on another host: the local memory that stands for the owner's window.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) source: Source,
    /// Writable, also when tasks may only read it.
    pub(crate) local: Arc<SharedRegion>,
    /// First byte of the window in the owner's buffer.
    pub(crate) base: u64,
}

/// What a task does with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

impl Use {
    /// By the tag, where one travelled with the task; else by what the import may do.
    ///
    /// # Errors
    /// The refusal of a tag that cannot be served without losing bytes of others (design §15.5).
    pub(crate) fn of(tag: Option<Tag>, access: AccessFlags) -> Result<Self, String> {
        let may_read = access.contains(AccessFlags::READ);
        let (reads, writes) = match tag {
            None => (may_read, access.contains(AccessFlags::WRITE)),
            Some(Tag::Input) => (true, false),
            Some(Tag::Output) => (false, true),
            Some(Tag::InOut) => (true, true),
            Some(Tag::OutputExisting) if may_read => (true, true),
            Some(Tag::OutputExisting) => {
                return Err(
                    "OUTPUT_EXISTING on an import across hosts needs read access too, for what the task leaves as it is; \
                     export it readwrite, or tag it OUTPUT"
                        .into(),
                )
            }
            Some(Tag::NoDep) => {
                return Err(
                    "NO_DEP on an import across hosts: writing it back would lose what others write meanwhile; use INOUT, or \
                     run the task on the owner"
                        .into(),
                )
            }
        };
        Ok(Self { reads, writes })
    }
}

#[derive(Debug)]
struct Piece {
    fetched: Arc<Fetched>,
    start: u64,
    end: u64,
}

/// The transfers of one task.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    reads: Vec<Piece>,
    writes: Vec<Piece>,
}

impl Transfers {
    /// Adds `nbytes` at `offset` of the owner's buffer.
    pub(crate) fn add(&mut self, fetched: &Arc<Fetched>, offset: u64, nbytes: u64, usage: Use) {
        let piece = || Piece {
            fetched: Arc::clone(fetched),
            start: offset,
            end: offset + nbytes,
        };
        if nbytes > 0 && usage.reads {
            self.reads.push(piece());
        }
        if nbytes > 0 && usage.writes {
            self.writes.push(piece());
        }
    }

    /// Brings what the task reads.
    ///
    /// # Errors
    /// Which owner and buffer could not be reached, and why.
    pub(crate) fn fetch(&mut self, peers: &Peers) -> Result<(), String> {
        peers.move_all(Direction::Fetch, std::mem::take(&mut self.reads))
    }

    /// Takes what the task wrote to its owners.
    ///
    /// # Errors
    /// As [`Transfers::fetch`].
    pub(crate) fn write_back(&mut self, peers: &Peers) -> Result<(), String> {
        peers.move_all(Direction::WriteBack, std::mem::take(&mut self.writes))
    }
}

impl Peers {
    fn move_all(&self, direction: Direction, pieces: Vec<Piece>) -> Result<(), String> {
        let pieces = merged(pieces);
        let mut rest = pieces.as_slice();
        while let Some(first) = rest.first() {
            let source = &first.fetched.source;
            let count = rest
                .iter()
                .take_while(|piece| same_owner(&piece.fetched.source, source))
                .count();
            let (group, others) = rest.split_at(count);
            rest = others;
            let stretches: Result<Vec<Stretch<'_>>, PeerError> =
                group.iter().map(stretch).collect();
            stretches
                .and_then(|stretches| self.client.transfer(source, direction, &stretches))
                .map_err(|error| describe(direction, source, &error))?;
        }
        Ok(())
    }
}

fn same_owner(one: &Source, other: &Source) -> bool {
    (one.session, one.worker, one.address) == (other.session, other.worker, other.address)
}

/// Pieces in the order of owner and import, those of one import without overlap.
fn merged(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_by_key(|piece| {
        let source = &piece.fetched.source;
        let owner = (source.session, source.worker, source.address);
        (owner, Arc::as_ptr(&piece.fetched) as usize, piece.start)
    });
    let mut merged: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match merged.last_mut() {
            Some(last) if Arc::ptr_eq(&last.fetched, &piece.fetched) && piece.start <= last.end => {
                last.end = last.end.max(piece.end);
            }
            _ => merged.push(piece),
        }
    }
    merged
}

fn stretch(piece: &Piece) -> Result<Stretch<'_>, PeerError> {
    let fetched = &*piece.fetched;
    let memory = fetched
        .local
        .host(piece.start - fetched.base, piece.end - piece.start)
        .map_err(PeerError::Memory)?;
    Ok(Stretch {
        source: &fetched.source,
        offset: piece.start,
        memory,
    })
}

fn describe(direction: Direction, source: &Source, error: &PeerError) -> String {
    let what = match direction {
        Direction::Fetch => "read from",
        Direction::WriteBack => "written back to",
    };
    format!(
        "the import of buffer {} (generation {}) could not be {what} its owner, worker {} at {}: {error}; check that worker {} is \
         alive and that its port can be reached from here, then release the import and make it again",
        source.buffer, source.generation, source.worker, source.address, source.worker
    )
}

#[cfg(test)]
pub(super) fn merged_ranges(transfers: Transfers) -> Vec<(u64, u64)> {
    let merged = merged(transfers.reads);
    merged
        .iter()
        .map(|piece| (piece.start, piece.end))
        .collect()
}
