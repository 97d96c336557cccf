//! What was found out for earlier submits: which endpoints may run a callable, as far as arguments do not decide.
//!
//! It is forgotten with every change of an endpoint or of what is registered there (`Slots::version`). In debug builds each
//! answer is compared with one that is worked out anew.

use echelon_wire::callable::{CallableKind, Digest};

use super::prepare::{args_obstacle, check_kinds};
use super::record::EndpointRole;
use super::submit::{GroupKind, Plan, SubmitSpec, Target};
use super::Core;
use crate::args::{ArgSource, TaskArgs, TensorArg};
use crate::error::Error;
use crate::fast::NumberMap;
use crate::graph::{Eligible, NodeKind};

/// Callables that are remembered; beyond that all are forgotten and found out again.
const KNOWN_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Sub,
    NextLevel,
    Worker(i32),
}

/// What is asked: a kind of worker, and what is to be called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Asked {
    digest: Digest,
    callable: CallableKind,
    kind: Kind,
}

/// What does not depend on arguments.
#[derive(Clone)]
struct Answer {
    able: Eligible,
    /// Some endpoint of the asked kind shares memory, or does not.
    any_local: bool,
    any_remote: bool,
    /// All of `able` run local tasks: any memory of this host will do.
    all_local: bool,
    /// One of `able` shares memory.
    shares_memory: bool,
}

/// The answers, as of one version of the endpoints.
#[derive(Default)]
pub(super) struct Known {
    version: u64,
    answers: NumberMap<Asked, Answer>,
    /// The last question: runs of one callable ask nothing else.
    last: Option<(Asked, Answer)>,
}

impl Core {
    /// What the scheduler is to be given for a submit.
    pub(super) fn plan(
        &mut self,
        spec: &SubmitSpec<'_>,
        members: &[TaskArgs],
    ) -> Result<Plan, Error> {
        let Some(plan) = self.known_plan(spec, members) else {
            return self.plan_anew(spec, members);
        };
        if cfg!(debug_assertions) {
            let anew = self.plan_anew(spec, members);
            debug_assert!(
                anew.is_ok_and(|anew| anew == plan),
                "what is known of the endpoints is not true any more"
            );
        }
        Ok(plan)
    }

    /// The plan of a single task, if what is known decides it; `None` leaves it, and every refusal, to the longer way.
    fn known_plan(&mut self, spec: &SubmitSpec<'_>, members: &[TaskArgs]) -> Option<Plan> {
        let (GroupKind::Single, [args]) = (spec.group, members) else {
            return None;
        };
        let kind = match spec.target {
            Target::Sub => Kind::Sub,
            Target::NextLevel => Kind::NextLevel,
            Target::Workers([id]) => Kind::Worker(*id),
            Target::Workers(_) => return None,
        };
        let tensors = args.tensors();
        let remote = |arg: &TensorArg| matches!(arg.source, ArgSource::Remote { .. });
        let owned = tensors.iter().any(remote);
        let answer = self.known_answer(kind, spec)?;
        if !tensors.is_empty() {
            check_kinds(tensors, answer.any_local, answer.any_remote).ok()?;
        }
        if !tensors.is_empty() && (owned || !answer.all_local) {
            let fits = |id| {
                let slot = self.slot(id)?;
                args_obstacle(id, slot, tensors).is_none().then_some(())
            };
            answer.able.ids().iter().try_for_each(|id| fits(*id))?;
        }
        Some(Plan {
            kind: NodeKind::Single {
                eligible: answer.able,
            },
            prefer: owned.then(|| self.preferred(tensors)).flatten(),
            shares_memory: answer.shares_memory,
        })
    }

    fn known_answer(&mut self, kind: Kind, spec: &SubmitSpec<'_>) -> Option<Answer> {
        let version = self.endpoints.version();
        if self.known.version != version || self.known.answers.len() > KNOWN_MAX {
            self.known.answers.clear();
            self.known.last = None;
            self.known.version = version;
        }
        let asked = Asked {
            digest: spec.callable.digest,
            callable: spec.callable.kind,
            kind,
        };
        if let Some((_, answer)) = self.known.last.as_ref().filter(|last| last.0 == asked) {
            return Some(answer.clone());
        }
        let answer = self.found_answer(asked, spec)?;
        self.known.last = Some((asked, answer.clone()));
        Some(answer)
    }

    fn found_answer(&mut self, asked: Asked, spec: &SubmitSpec<'_>) -> Option<Answer> {
        if let Some(answer) = self.known.answers.get(&asked) {
            return Some(answer.clone());
        }
        let candidates = self.candidates(spec.target, spec.group).ok()?;
        let candidates = candidates.first()?;
        let able = self.eligible(candidates, spec.callable, &[]).ok()?;
        let shares = |id: &_| self.slot(*id).is_some_and(|slot| slot.info.shares_memory);
        let local = |id: &_| {
            let role = self.slot(*id).map(|slot| &slot.role);
            role.is_some_and(|role| !matches!(role, EndpointRole::RemoteNextLevel { .. }))
        };
        let answer = Answer {
            any_local: candidates.iter().any(shares),
            any_remote: !candidates.iter().all(shares),
            all_local: able.iter().all(local),
            shares_memory: able.iter().any(shares),
            able: Eligible::new(able)?,
        };
        self.known.answers.insert(asked, answer.clone());
        Some(answer)
    }
}
