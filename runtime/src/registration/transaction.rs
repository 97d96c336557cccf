//! Prepare everywhere, commit everywhere; on the first failure undo everywhere. What is in doubt is cleared before.

use super::pairs::{PairState, Step};
use crate::graph::EndpointId;

/// What became of a step at one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It took effect.
    Done,
    /// The worker, or the way there, said no: whether it took effect is not proven.
    Refused,
    /// The worker is lost, and what it had with it.
    Lost,
    /// Nobody waited for the answer any longer: a deadline, an interrupt.
    Silent,
}

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Something may be there that must be gone first.
    Unclear,
    Absent,
    Prepared,
    Committed,
    Lost,
}

#[derive(Clone, Debug)]
struct Member {
    endpoint: EndpointId,
    at: At,
    /// How it is undone, once there is something to undo.
    undo: Option<Step>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Course {
    #[default]
    Forward,
    /// Undo and wait for the answers, or without waiting.
    Back { waits: bool },
    /// Undone, as far as that is possible.
    Ended,
}

/// One registration on its way. Ask for [`Self::steps`], carry them out, say what became of them with [`Self::answered`], until
/// there are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transaction {
    members: Vec<Member>,
    course: Course,
}

impl Transaction {
    /// Adds the workers that are not members yet and do not have the callable already: what an earlier registration holds is not
    /// this one's to undo. True when there was one.
    pub(crate) fn extend(&mut self, workers: &[(EndpointId, PairState)]) -> bool {
        let before = self.members.len();
        for &(endpoint, state) in workers {
            let at = match state {
                PairState::Live => continue,
                PairState::Absent => At::Absent,
                _ => At::Unclear,
            };
            if self
                .members
                .iter()
                .all(|member| member.endpoint != endpoint)
            {
                let undo = None;
                self.members.push(Member { endpoint, at, undo });
            }
        }
        self.members.len() > before
    }

    /// The next controls, one for each worker that gets one. None when all are committed, or everything is undone.
    pub(crate) fn steps(&self) -> Vec<(EndpointId, Step)> {
        let all = |at: At, step: Step| -> Vec<(EndpointId, Step)> {
            let there = self.members.iter().filter(|member| member.at == at);
            there.map(|member| (member.endpoint, step)).collect()
        };
        match self.course {
            Course::Forward => [
                (At::Unclear, Step::Remove),
                (At::Absent, Step::Prepare),
                (At::Prepared, Step::Commit),
            ]
            .into_iter()
            .map(|(at, step)| all(at, step))
            .find(|steps| !steps.is_empty())
            .unwrap_or_default(),
            Course::Back { .. } => {
                let members = self.members.iter();
                members
                    .filter_map(|member| Some((member.endpoint, member.undo?)))
                    .collect()
            }
            Course::Ended => Vec::new(),
        }
    }

    /// False when the answers to the present steps are nobody's to wait for: the caller has been told to stop.
    pub(crate) fn waits(&self) -> bool {
        self.course != Course::Back { waits: false }
    }

    /// The present steps undo what was done before.
    pub(crate) fn is_undoing(&self) -> bool {
        matches!(self.course, Course::Back { .. })
    }

    /// What became of the steps, in their order.
    pub(crate) fn answered(&mut self, answers: &[Answer]) {
        let steps = self.steps();
        for ((endpoint, step), answer) in steps.iter().zip(answers) {
            let members = self.members.iter_mut();
            for member in members.filter(|member| member.endpoint == *endpoint) {
                member.take(*step, answer);
            }
        }
        let failed = answers.iter().any(|answer| *answer != Answer::Done);
        self.course = match self.course {
            Course::Forward if failed => Course::Back {
                waits: !answers.contains(&Answer::Silent),
            },
            Course::Forward => Course::Forward,
            Course::Back { .. } | Course::Ended => Course::Ended,
        };
    }

    /// True when every worker has it.
    pub(crate) fn succeeded(&self) -> bool {
        self.course == Course::Forward
    }

    /// Its workers.
    pub(crate) fn members(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.members.iter().map(|member| member.endpoint)
    }
}

impl Member {
    fn take(&mut self, step: Step, answer: &Answer) {
        if *answer == Answer::Lost {
            self.at = At::Lost;
            self.undo = None;
            return;
        }
        // Also a step that was refused may have taken effect.
        self.undo = match step {
            Step::Prepare => Some(Step::Abort),
            Step::Commit => Some(Step::Remove),
            Step::Abort | Step::Remove => None,
        };
        self.at = match (step, answer) {
            (Step::Prepare, Answer::Done) => At::Prepared,
            (Step::Commit, Answer::Done) => At::Committed,
            (Step::Abort | Step::Remove, Answer::Done) => At::Absent,
            _ => At::Unclear,
        };
    }
}
