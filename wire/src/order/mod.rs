//! What may overtake what on a command lane (extension `concurrent_control`), the same on both ends.
//!
//! Commands that have nothing to do with each other may be carried out in any order, so that an allocation does not wait for a
//! task of an hour. Everybody else sees the effects of the order in which the parent sent them. Pure: a [`Scope`] is what a
//! command uses, and [`Scope::may_overtake`] compares two.

use std::borrow::Cow;

pub use conditions::{behind_conditions, Conditions, Outcomes, UnknownCondition};

use crate::buffer::{AddressSpace, RemoteTensorDesc};
use crate::codec::Decode;
use crate::frame::control::buffer::{CopyHeader, CopyTo, FreeCommand};
use crate::frame::control::transfer::{ExportRequest, ImportRequest, PeerFence, ReleaseImport};
use crate::frame::{Control, ControlName, Features, FrameType};
use crate::id::{BufferId, WorkerId};
use crate::task::{Carrier, TaskPayload};

mod conditions;

/// Code of the tag of a tensor that a task only reads.
const INPUT: u8 = 0;

/// Something that two commands may both use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Thing {
    /// What may be called: tasks read it, registration changes it.
    Callables,
    /// Room for buffers and imports: giving some back commutes with giving back, taking some with nothing.
    Room,
    /// A buffer of a worker, by whatever name: an import of it, in any session, is the same memory.
    Buffer(WorkerId, BufferId),
}

/// Whether uses of one thing may change places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Use {
    /// With each other.
    Shared,
    /// With nothing.
    Alone,
}

/// What a command uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    kind: Kind,
    /// Sorted by thing, each once.
    uses: Cow<'static, [(Thing, Use)]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Tasks keep their order among themselves.
    Task,
    Control,
    /// Overtakes nothing and is overtaken by nothing.
    InOrder,
}

impl Scope {
    /// The scope of a command that keeps its place: all commands without `concurrent_control`, and whatever is not known here.
    pub const IN_ORDER: Self = Self {
        kind: Kind::InOrder,
        uses: Cow::Borrowed(&[]),
    };

    /// The scope of a command with this payload on a lane with these extensions.
    pub fn of_command(frame_type: FrameType, payload: &[u8], features: Features) -> Self {
        if !features.contains(Features::CONCURRENT_CONTROL) {
            return Self::IN_ORDER;
        }
        let payload = match frame_type {
            FrameType::Task => behind_conditions(payload, features),
            _ => payload,
        };
        match frame_type {
            FrameType::Task if names_nothing(payload, features) => Self::of_task([]),
            FrameType::Task => {
                let task = TaskPayload::decode(payload, Carrier::Wire(features));
                let sidecars = task.map(|task| task.args.sidecars).unwrap_or_default();
                Self::of_task(sidecars.iter().flatten())
            }
            FrameType::Control => {
                let control = Control::decode_with(payload, features);
                control.map_or(Self::IN_ORDER, |control| {
                    Self::of_control(control.name, &control.command)
                })
            }
            _ => Self::IN_ORDER,
        }
    }

    /// True when the command needs only what is there while a task runs: room and buffers.
    pub fn is_beside_tasks(&self) -> bool {
        let callables = |(thing, _): &(Thing, Use)| *thing == Thing::Callables;
        self.kind == Kind::Control && !self.uses.iter().any(callables)
    }

    /// The scope of a task with these descriptors on a lane with these extensions: what [`Self::of_command`] finds in its bytes.
    pub fn of_descriptors<'a>(
        descriptors: impl IntoIterator<Item = &'a RemoteTensorDesc>,
        features: Features,
    ) -> Self {
        if !features.contains(Features::CONCURRENT_CONTROL) {
            return Self::IN_ORDER;
        }
        Self::of_task(descriptors)
    }

    /// The scope of a task with these descriptors. What has no tag that says otherwise may be written.
    fn of_task<'a>(descriptors: impl IntoIterator<Item = &'a RemoteTensorDesc>) -> Self {
        const NO_BUFFERS: &[(Thing, Use)] = &[(Thing::Callables, Use::Shared)];
        let mut uses = Cow::Borrowed(NO_BUFFERS);
        for desc in descriptors {
            let named = matches!(
                desc.address_space,
                AddressSpace::RemoteDevice | AddressSpace::RemoteWindow | AddressSpace::UbLdst
            );
            if named {
                let reads = desc
                    .tensor_flags()
                    .is_ok_and(|flags| flags.tag == Some(INPUT));
                let how = if reads { Use::Shared } else { Use::Alone };
                let buffer = Thing::Buffer(desc.owner_worker_id, desc.buffer_id);
                uses.to_mut().push((buffer, how));
            }
        }
        if let Cow::Owned(uses) = &mut uses {
            // The strongest use of each thing is the last of it.
            uses.sort_unstable();
            uses.reverse();
            uses.dedup_by_key(|(thing, _)| *thing);
            uses.reverse();
        }
        Self {
            kind: Kind::Task,
            uses,
        }
    }

    /// The scope of a control. One whose command does not decode has no effect, so it uses nothing.
    fn of_control(name: ControlName, command: &[u8]) -> Self {
        use Thing::{Buffer, Callables, Room};
        use Use::{Alone, Shared};
        let uses = match name {
            ControlName::UnregisterCallable
            | ControlName::PrepareRegisterCallable
            | ControlName::CommitRegisterCallable
            | ControlName::AbortRegisterCallable
            | ControlName::PrepareCallable
            // What is staged is for a registration.
            | ControlName::StageBegin
            | ControlName::StageAppend
            | ControlName::StageSeal
            | ControlName::StageDrop => Some(vec![(Callables, Alone)]),
            ControlName::AllocRemoteBuffer => Some(vec![(Room, Alone)]),
            ControlName::FreeRemoteBuffer => FreeCommand::decode(command)
                .ok()
                .map(|c| vec![(Room, Shared), (Buffer(c.worker_id, c.buffer_id), Alone)]),
            ControlName::CopyToRemote => CopyTo::decode(command)
                .ok()
                .map(|c| vec![(Buffer(c.header.worker_id, c.header.buffer_id), Alone)]),
            ControlName::CopyFromRemote => CopyHeader::decode(command)
                .ok()
                .map(|c| vec![(Buffer(c.worker_id, c.buffer_id), Shared)]),
            ControlName::ExportBuffer => ExportRequest::decode(command)
                .ok()
                .map(|c| vec![(Buffer(c.owner_worker_id, c.buffer_id), Shared)]),
            ControlName::ImportBuffer => ImportRequest::decode(command).ok().map(|c| {
                let export = &c.export;
                vec![
                    (Room, Alone),
                    // A buffer that is gone cannot be imported any more.
                    (Buffer(export.owner_worker_id, export.buffer_id), Shared),
                ]
            }),
            ControlName::ReleaseImport => ReleaseImport::decode(command).ok().map(|c| {
                vec![
                    (Room, Shared),
                    (Buffer(c.owner_worker_id, c.buffer_id), Alone),
                ]
            }),
            ControlName::PeerFence => PeerFence::decode(command)
                .ok()
                .map(|c| vec![(Buffer(c.worker_id, c.buffer_id), Alone)]),
            // Whatever they may need, and the trace, which has what came before it.
            _ => return Self::IN_ORDER,
        };
        Self {
            kind: Kind::Control,
            uses: uses.unwrap_or_default().into(),
        }
    }

    /// True when this command may be carried out, and answered, before `earlier`, which the parent sent before it.
    pub fn may_overtake(&self, earlier: &Self) -> bool {
        let ordered = matches!(
            (self.kind, earlier.kind),
            (Kind::Task, Kind::Task) | (Kind::InOrder, _) | (_, Kind::InOrder)
        );
        !ordered && !meet(&self.uses, &earlier.uses)
    }
}

/// A task without a tensor, which costs nothing to see. With conditions the task is further behind.
fn names_nothing(payload: &[u8], features: Features) -> bool {
    !features.contains(Features::CONDITIONS) && TaskPayload::names_no_tensor(payload)
}

/// True when both lists have a thing that not both only share. Each list is gone through once.
fn meet(mut one: &[(Thing, Use)], mut other: &[(Thing, Use)]) -> bool {
    while let ([(a, use_a), rest_a @ ..], [(b, use_b), rest_b @ ..]) = (one, other) {
        match a.cmp(b) {
            std::cmp::Ordering::Less => one = rest_a,
            std::cmp::Ordering::Greater => other = rest_b,
            std::cmp::Ordering::Equal if (use_a, use_b) != (&Use::Shared, &Use::Shared) => {
                return true;
            }
            std::cmp::Ordering::Equal => (one, other) = (rest_a, rest_b),
        }
    }
    false
}

#[cfg(test)]
mod tests;
