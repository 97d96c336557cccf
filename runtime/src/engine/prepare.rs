//! From arguments to accesses, shadows and the set of endpoints that may run a task.

use std::collections::HashMap;

use echelon_wire::id::ImportId;
use smallvec::SmallVec;

use super::record::{copies_in, EndpointRole, EndpointSlot, MemberRecord, Stage};
use super::{Core, Engine};
use crate::args::{ArgSource, TaskArgs, TensorArg};
use crate::callable::Callable;
use crate::error::Error;
use crate::graph::{Access, AccessMode, Accesses, EndpointId, Space};
use crate::memory::MemoryError;
use crate::registration::Key;
use crate::tensor::{Tag, Tensor};
use crate::worker::ScopedBlock;

/// Most bytes of local memory that travel inside one remote task (slr3-v1 §6).
const INLINE_LIMIT: u64 = echelon_wire::limits::MAX_INLINE_BYTES as u64;

impl Engine {
    /// Replaces arrays that lie in shared memory by tensors of it, and refuses memory whose scope has ended.
    pub(crate) fn normalise(&self, args: &TaskArgs) -> Result<TaskArgs, Error> {
        let mut normal = args.clone();
        for (index, arg) in args.tensors().iter().enumerate() {
            if let Some(tensor) = self.in_shared_memory(arg)? {
                normal.move_tensor(index, ArgSource::Tensor(tensor));
            }
            self.check_usable(&normal.tensors()[index])?;
        }
        Ok(normal)
    }

    pub(crate) fn normalise_one(&self, arg: &TensorArg) -> Result<TensorArg, Error> {
        let mut arg = arg.clone();
        if let Some(tensor) = self.in_shared_memory(&arg)? {
            arg.source = ArgSource::Tensor(tensor);
        }
        self.check_usable(&arg)?;
        Ok(arg)
    }

    /// The tensor of an array that lies in shared memory.
    fn in_shared_memory(&self, arg: &TensorArg) -> Result<Option<Tensor>, Error> {
        let ArgSource::Host(memory) = &arg.source else {
            return Ok(None);
        };
        let Some((region, offset)) = self.locate(memory.as_ptr() as usize, memory.len() as u64)
        else {
            return Ok(None);
        };
        // The array keeps its own memory alive; holding it keeps the block from being reused.
        let lease: crate::tensor::Lease = std::sync::Arc::new(memory.clone());
        let read_only = !memory.is_writable();
        Tensor::new(arg.meta, region, offset, Some(lease), read_only).map(Some)
    }

    fn check_usable(&self, arg: &TensorArg) -> Result<(), Error> {
        if let ArgSource::Tensor(tensor) = &arg.source {
            let ended = tensor
                .lease()
                .and_then(|lease| lease.downcast_ref::<ScopedBlock>())
                .is_some_and(ScopedBlock::ended);
            if ended {
                return Err(Error::handle(
                    "tensor",
                    "its scope has ended; allocate it outside the scope, or submit inside it",
                ));
            }
        }
        if let ArgSource::Remote { buffer, .. } = &arg.source {
            self.check_owner(buffer)?;
            buffer.check_live("tensor")?;
        }
        Ok(())
    }

    /// Refuses a handle of another `Worker` (design §15.5).
    pub(crate) fn check_owner(&self, buffer: &crate::buffer::RemoteBuffer) -> Result<(), Error> {
        if buffer.facts().owner_uid == self.uid {
            return Ok(());
        }
        Err(Error::handle(
            "buffer",
            "the handle belongs to another Worker; allocate or import it with this one",
        ))
    }

    /// Takes shadows from the arena for what is not in shared memory. Only called when a memory-sharing endpoint is eligible.
    pub(crate) fn prepare_member(
        &self,
        args: TaskArgs,
        shares_memory: bool,
    ) -> Result<MemberRecord, MemoryError> {
        let mut stages = SmallVec::new();
        for (index, arg) in args.tensors().iter().enumerate() {
            let stage = if shares_memory {
                self.stage(arg)?
            } else {
                None
            };
            if stage.is_some() {
                stages.resize_with(index, || None);
                stages.push(stage);
            }
        }
        Ok(MemberRecord::new(args, stages))
    }

    fn stage(&self, arg: &TensorArg) -> Result<Option<Stage>, MemoryError> {
        let host = match &arg.source {
            ArgSource::Host(memory) => memory.clone(),
            ArgSource::Inline(bytes) => crate::memory::HostMemory::from_bytes(bytes.clone()),
            ArgSource::Tensor(_) | ArgSource::Remote { .. } => return Ok(None),
        };
        let len = host.len() as u64;
        let block = if copies_in(arg.tag) {
            self.arena.alloc_to_fill(len)?
        } else {
            self.arena.alloc(len)?
        };
        Ok(Some(Stage {
            block,
            host,
            copy_in: copies_in(arg.tag),
            copy_out: arg.tag.writes(),
        }))
    }
}

impl Core {
    /// Refuses buffers of sessions that have ended.
    pub(super) fn check_sessions<'a>(
        &self,
        tensors: impl IntoIterator<Item = &'a TensorArg>,
    ) -> Result<(), Error> {
        for arg in tensors {
            if let ArgSource::Remote { buffer, .. } = &arg.source {
                self.check_session(buffer)?;
            }
        }
        Ok(())
    }
}

/// The byte intervals that a task touches; NO_DEP and inline bytes touch none.
pub(crate) fn accesses_of(tensors: &[TensorArg]) -> Accesses {
    tensors.iter().filter_map(access_of).collect()
}

pub(crate) fn access_of(arg: &TensorArg) -> Option<Access> {
    let mode = match arg.tag {
        Tag::Input => AccessMode::Read,
        Tag::Output | Tag::OutputExisting => AccessMode::Write,
        Tag::InOut => AccessMode::ReadWrite,
        Tag::NoDep => return None,
    };
    let (space, start) = place_of(&arg.source)?;
    Some(Access {
        space,
        start,
        end: start.saturating_add(arg.nbytes()),
        mode,
    })
}

/// Space and first byte of an argument's memory; `None` for bytes that travel with the task.
pub(crate) fn place_of(source: &ArgSource) -> Option<(Space, u64)> {
    match source {
        ArgSource::Tensor(tensor) => Some((tensor.space(), tensor.offset())),
        ArgSource::Host(memory) => Some((Space::Host, memory.as_ptr() as u64)),
        ArgSource::Inline(_) => None,
        ArgSource::Remote { buffer, offset } => {
            Some((buffer.space(), buffer.facts().base + offset))
        }
    }
}

/// Refuses members that write what another member touches: they run at the same time (design §15.23).
pub(crate) fn check_members_disjoint(members: &[TaskArgs]) -> Result<(), Error> {
    let labelled = members.iter().enumerate();
    let labelled = labelled.flat_map(|(member, args)| {
        let accesses = accesses_of(args.tensors());
        accesses.into_iter().map(move |access| (access, member))
    });
    let Some((first, second)) = clash(labelled) else {
        return Ok(());
    };
    Err(Error::argument(
        "args_list",
        format!("members {first} and {second} touch the same bytes and one of them writes; use disjoint ranges or NO_DEP"),
    ))
}

/// Refuses a task that writes bytes which it also sees through another import: in the session these are two pieces of memory, so
/// neither its own tasks would be ordered nor, across hosts, both be written back.
pub(crate) fn check_imports_disjoint(tensors: &[TensorArg]) -> Result<(), Error> {
    let mut first_with: HashMap<(u64, ImportId), usize> = HashMap::new();
    let mut labelled = Vec::new();
    for (index, arg) in tensors.iter().enumerate() {
        let ArgSource::Remote { buffer, .. } = &arg.source else {
            continue;
        };
        if let (Some((id, _)), Some(access)) = (&buffer.facts().import, access_of(arg)) {
            let import = (buffer.facts().session, *id);
            labelled.push((access, *first_with.entry(import).or_insert(index)));
        }
    }
    let Some((first, second)) = clash(labelled.into_iter()) else {
        return Ok(());
    };
    Err(Error::argument(
        "args",
        format!(
            "arguments {first} and {second} are two imports that show the same bytes, and the task writes there; make both of one \
             import, or use disjoint ranges"
        ),
    ))
}

/// Refuses arrays that share bytes and are both written: each is staged in memory of its own, and copying back the one would undo
/// the other.
pub(crate) fn check_arrays_disjoint(tensors: &[TensorArg]) -> Result<(), Error> {
    let arrays = tensors.iter().enumerate();
    let arrays = arrays.filter(|(_, arg)| matches!(arg.source, ArgSource::Host(_)));
    let written = arrays.filter_map(|(index, arg)| {
        let access = access_of(arg).filter(|access| access.mode.writes())?;
        Some((access, index))
    });
    let Some((first, second)) = clash(written) else {
        return Ok(());
    };
    Err(Error::argument(
        "args",
        format!(
            "arguments {first} and {second} are arrays that share bytes, and both are written: each gets a copy of its own, and one \
             would be lost; pass what they share once, or use orch.alloc"
        ),
    ))
}

/// Two labels, the lesser first, whose accesses meet in bytes that one of them writes.
fn clash(labelled: impl Iterator<Item = (Access, usize)>) -> Option<(usize, usize)> {
    let mut by_space: HashMap<Space, Vec<(u64, u64, bool, usize)>> = HashMap::new();
    for (access, label) in labelled.filter(|(access, _)| access.start < access.end) {
        let range = (access.start, access.end, access.mode.writes(), label);
        by_space.entry(access.space).or_default().push(range);
    }
    for ranges in by_space.values_mut() {
        ranges.sort_unstable();
        let (mut readers, mut writers) = (Furthest::default(), Furthest::default());
        for &(start, end, writes, label) in ranges.iter() {
            let other = writers.beyond(start, label);
            let other = other.or_else(|| readers.beyond(start, label).filter(|_| writes));
            if let Some(other) = other {
                return Some((label.min(other), label.max(other)));
            }
            let side = if writes { &mut writers } else { &mut readers };
            side.add(end, label);
        }
    }
    None
}

/// The two ranges of different members that reach furthest, among those seen so far: one of them is another member's whenever
/// any is, so that a group of any size is checked in one pass.
#[derive(Default)]
struct Furthest([Option<(u64, usize)>; 2]);

impl Furthest {
    /// A member other than `member` with a range that reaches beyond `start`.
    fn beyond(&self, start: u64, member: usize) -> Option<usize> {
        let known = self.0.iter().flatten();
        let mut found = known.filter(|(end, other)| *end > start && *other != member);
        found.next().map(|(_, other)| *other)
    }

    fn add(&mut self, end: u64, member: usize) {
        let own = self
            .0
            .iter()
            .position(|known| known.is_some_and(|(_, m)| m == member));
        // `None` is less than any range: a free place is taken first.
        let nearest = usize::from(self.0[1] < self.0[0]);
        let place = &mut self.0[own.unwrap_or(nearest)];
        *place = (*place).max(Some((end, member)));
    }
}

impl Core {
    /// The endpoints among `candidates` that may run the task, or why none may (design §4, R-087).
    pub(crate) fn eligible(
        &self,
        candidates: &[EndpointId],
        callable: &Callable,
        tensors: &[TensorArg],
    ) -> Result<Vec<EndpointId>, Error> {
        let mut reasons = Vec::new();
        let mut able = Vec::new();
        for &id in candidates {
            let Some(slot) = self.slot(id) else { continue };
            match unable(id, slot, callable, tensors) {
                None => able.push(id),
                Some(reason) => reasons.push(format!("{}: {reason}", slot.info.name)),
            }
        }
        if able.is_empty() {
            // When nothing but losses stands in the way, that is what the caller has to know.
            let mut lost = candidates.iter().filter_map(|id| self.slot(*id)).peekable();
            if lost.peek().is_some() && lost.clone().all(|slot| slot.lost.is_some()) {
                let names: Vec<&str> = lost.clone().map(|slot| slot.info.name.as_str()).collect();
                // The one that can be had back says how.
                let by_use = |slot: &&EndpointSlot| {
                    !matches!(slot.role, EndpointRole::RemoteNextLevel { .. })
                };
                let told = lost.min_by_key(by_use);
                return Err(Error::EndpointLost {
                    worker: names.join(" and "),
                    message: told.and_then(|slot| slot.lost.clone()).unwrap_or_default(),
                    hint: told.map_or("", |slot| slot.role.after_loss()),
                });
            }
            if reasons.is_empty() {
                reasons.push("there is no worker of that kind; add one before init()".into());
            }
            return Err(Error::NotEligible {
                callable: callable.name.to_string(),
                reasons,
            });
        }
        Ok(able)
    }

    /// The endpoint that owns most of the bytes, if any owns some.
    pub(crate) fn preferred(&self, tensors: &[TensorArg]) -> Option<EndpointId> {
        let mut bytes: HashMap<EndpointId, u64> = HashMap::new();
        for arg in tensors {
            if let ArgSource::Remote { buffer, .. } = &arg.source {
                *bytes.entry(buffer.facts().endpoint).or_default() += arg.nbytes();
            }
        }
        bytes
            .into_iter()
            .max_by_key(|(id, bytes)| (*bytes, std::cmp::Reverse(id.0)))
            .map(|(id, _)| id)
    }
}

/// Why the endpoint cannot run the task; `None` when it can.
fn unable(
    id: EndpointId,
    slot: &EndpointSlot,
    callable: &Callable,
    tensors: &[TensorArg],
) -> Option<String> {
    if let Some(reason) = &slot.lost {
        return Some(format!("is lost ({reason})"));
    }
    if let Some(obstacle) = slot.pairs.obstacle(&Key::new(callable, false)) {
        return Some(obstacle.into());
    }
    if let Some(refused) = slot.refused(&callable.digest) {
        return Some(format!("{refused}; register it again"));
    }
    args_obstacle(id, slot, tensors)
}

/// Why the endpoint cannot take these arguments, whatever is called.
pub(super) fn args_obstacle(
    id: EndpointId,
    slot: &EndpointSlot,
    tensors: &[TensorArg],
) -> Option<String> {
    let remote = matches!(slot.role, EndpointRole::RemoteNextLevel { .. });
    let mut inline = 0;
    for (index, arg) in tensors.iter().enumerate() {
        let reason = if remote {
            unable_remote(id, arg, &mut inline)
        } else {
            unable_local(arg)
        };
        if let Some(reason) = reason {
            return Some(format!("argument {index} {reason}"));
        }
    }
    (inline > INLINE_LIMIT).then(|| {
        format!("{inline} bytes of local arguments, limit {INLINE_LIMIT} a task; use remote_malloc and orch.copy")
    })
}

fn unable_local(arg: &TensorArg) -> Option<String> {
    matches!(arg.source, ArgSource::Remote { .. }).then(|| {
        "is in a remote buffer; bring it here with orch.copy into an alloc'ed tensor".into()
    })
}

fn unable_remote(id: EndpointId, arg: &TensorArg, inline: &mut u64) -> Option<String> {
    if arg.meta.dtype() == echelon_wire::tensor::DataType::Bool {
        return Some("is BOOL, which version 1 sessions cannot decode; use UINT8".into());
    }
    match &arg.source {
        ArgSource::Remote { buffer, .. } if buffer.facts().endpoint == id => None,
        ArgSource::Remote { buffer, .. } => Some(format!(
            "is on worker {}; export it there and import it here",
            buffer.worker_id()
        )),
        _ if arg.tag != Tag::Input => Some(format!(
            "is local memory with {}; use remote_malloc, and orch.copy to move the bytes",
            arg.tag.name()
        )),
        _ => {
            *inline = inline.saturating_add(arg.nbytes());
            None
        }
    }
}

/// A type error for arguments that no endpoint of the asked kind can ever take (R-088, design §15.3).
pub(crate) fn check_kinds(
    tensors: &[TensorArg],
    any_local: bool,
    any_remote: bool,
) -> Result<(), Error> {
    for (index, arg) in tensors.iter().enumerate() {
        let remote = matches!(arg.source, ArgSource::Remote { .. } | ArgSource::Inline(_));
        if remote && !any_remote {
            return Err(Error::wrong_type(
                "args",
                format!("argument {index} is a RemoteTensorRef and the task runs on local workers only; use orch.copy to bring it here"),
            ));
        }
        if !remote && arg.tag != Tag::Input && any_remote && !any_local {
            return Err(Error::wrong_type(
                "args",
                format!(
                    "argument {index} is local memory tagged {} and the task runs remotely, where the write would be lost; \
                     use remote_malloc and a RemoteTensorRef, and orch.copy to bring the result back",
                    arg.tag.name()
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use echelon_wire::tensor::{DataType, TensorMeta};
    use proptest::prelude::*;

    use super::*;
    use crate::memory::HostMemory;

    const TAGS: [Tag; 5] = Tag::ALL;

    proptest! {
        #[test]
        fn section_15_23_overlaps_between_members_are_found_as_by_comparing_all(
            members in prop::collection::vec(
                prop::collection::vec((0..12_usize, 0..6_usize, 0..5_usize), 0..4), 0..6
            )
        ) {
            let memory = HostMemory::from_vec(vec![0; 32]);
            let arg = |&(offset, len, tag): &(usize, usize, usize)| TensorArg {
                meta: TensorMeta::new(&[len as u32], DataType::Uint8).unwrap(),
                source: ArgSource::Host(memory.slice(offset, len).unwrap()),
                tag: TAGS[tag],
            };
            let args: Vec<Vec<TensorArg>> =
                members.iter().map(|m| m.iter().map(arg).collect()).collect();
            let clash = |a: &TensorArg, b: &TensorArg| match (access_of(a), access_of(b)) {
                (Some(a), Some(b)) => {
                    a.start.max(b.start) < a.end.min(b.end) && (a.mode.writes() || b.mode.writes())
                }
                _ => false,
            };
            let expected = (0..args.len()).any(|i| {
                (0..i).any(|j| args[i].iter().any(|a| args[j].iter().any(|b| clash(a, b))))
            });
            let given = |member: &Vec<TensorArg>| {
                let mut given = TaskArgs::new();
                for arg in member {
                    let ArgSource::Host(memory) = &arg.source else { continue };
                    given.add_host(memory.clone(), arg.meta, arg.tag).unwrap();
                }
                given
            };
            let given: Vec<TaskArgs> = args.iter().map(given).collect();
            prop_assert_eq!(check_members_disjoint(&given).is_err(), expected);
        }
    }
}
