//! Conditions: a task names earlier tasks of its lane that must have completed, or it is skipped (extension `conditions`).
//!
//! They stand before everything else of a task's payload. A lane carries tasks out in the order in which they were sent, so when
//! a task's turn comes all that it may name have ended. Who sends names only tasks that were unanswered when this one was sent;
//! therefore whoever carries out keeps the outcomes of as many tasks as may be unanswered, and no more.

use std::collections::VecDeque;

use crate::codec::{Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::frame::Features;
use crate::limits::MAX_CONDITIONS;

const ASCEND: &str = "conditions must ascend, each once";

/// The conditions of one task: numbers of earlier ones, ascending, at most [`MAX_CONDITIONS`].
///
/// | type | field |
/// |---|---|
/// | u32 | count |
/// | u64 each | number of a task: its sequence in a frame, its ticket in a mailbox |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions<'a>(&'a [u8]);

impl<'a> Conditions<'a> {
    /// Appends conditions.
    ///
    /// # Errors
    /// [`EncodeError`] for too many of them, or when they do not ascend.
    pub fn write(numbers: &[u64], writer: &mut Writer) -> Result<(), EncodeError> {
        writer.length("TASK.conditions", numbers.len(), MAX_CONDITIONS)?;
        let mut last = None;
        for number in numbers {
            check_next(last, *number)?;
            last = Some(*number);
            writer.u64(*number);
        }
        Ok(())
    }

    /// Reads conditions, and leaves `reader` at the task.
    ///
    /// # Errors
    /// [`DecodeError`] for too many of them, or when they do not ascend.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = reader.u32("TASK.conditions")?;
        if count > MAX_CONDITIONS {
            return Err(DecodeError::TooLong {
                field: "TASK.conditions",
                got: count.into(),
                limit: MAX_CONDITIONS.into(),
            });
        }
        let conditions = Self(reader.take("TASK.conditions", count as usize * 8)?);
        let mut last = None;
        for number in conditions.numbers() {
            check_next(last, number)?;
            last = Some(number);
        }
        Ok(conditions)
    }

    /// The numbers, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u64> + 'a {
        self.0.chunks_exact(8).map(|bytes| {
            let mut number = [0; 8];
            number.copy_from_slice(bytes);
            u64::from_le_bytes(number)
        })
    }
}

/// The task of a TASK payload, behind its conditions, if it has any on a lane with these extensions.
pub fn behind_conditions(payload: &[u8], features: Features) -> &[u8] {
    if !features.contains(Features::CONDITIONS) {
        return payload;
    }
    let mut reader = Reader::new(payload);
    match Conditions::read(&mut reader) {
        Ok(_) => reader.rest(),
        // What is wrong with it is said elsewhere.
        Err(_) => payload,
    }
}

fn check_next(last: Option<u64>, number: u64) -> Result<(), RuleViolation> {
    if last.is_some_and(|last| last >= number) {
        return Err(RuleViolation::new("TASK.conditions", number, ASCEND));
    }
    Ok(())
}

/// A condition that names no task which may still be named: it is unknown, comes later, or was answered long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task has condition {number}, which is none of the {window} tasks before it")]
pub struct UnknownCondition {
    /// What was named.
    pub number: u64,
    /// Tasks that may be named.
    pub window: usize,
}

/// The last tasks of a lane, and what became of them.
#[derive(Debug, Clone)]
pub struct Outcomes {
    window: usize,
    /// Number, and whether it completed; ascending.
    tasks: VecDeque<(u64, bool)>,
}

impl Outcomes {
    /// Remembers so many tasks.
    pub fn new(window: usize) -> Self {
        Self {
            window,
            tasks: VecDeque::new(),
        }
    }

    /// Notes the next task. Numbers ascend; what does not is not remembered, and cannot be named.
    pub fn note(&mut self, number: u64, completed: bool) {
        if self.tasks.back().is_some_and(|(last, _)| *last >= number) {
            return;
        }
        if self.tasks.len() >= self.window {
            self.tasks.pop_front();
        }
        self.tasks.push_back((number, completed));
    }

    /// Whether all that a task names completed.
    ///
    /// # Errors
    /// [`UnknownCondition`]: the sender broke the contract.
    pub fn met(&self, conditions: Conditions<'_>) -> Result<bool, UnknownCondition> {
        let mut met = true;
        for number in conditions.numbers() {
            let found = self.tasks.binary_search_by_key(&number, |task| task.0);
            let task = found.ok().and_then(|at| self.tasks.get(at));
            let (_, completed) = task.ok_or(UnknownCondition {
                number,
                window: self.window,
            })?;
            met &= completed;
        }
        Ok(met)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(numbers: &[u64]) -> Vec<u8> {
        let mut writer = Writer::new();
        Conditions::write(numbers, &mut writer).expect("encodes");
        writer.into_bytes()
    }

    fn met(outcomes: &Outcomes, numbers: &[u64]) -> Result<bool, UnknownCondition> {
        let bytes = bytes(numbers);
        outcomes.met(Conditions::read(&mut Reader::new(&bytes)).expect("decodes"))
    }

    #[test]
    fn conditions_stand_before_the_task_byte_for_byte() {
        assert_eq!(bytes(&[]), [0; 4]);
        let mut whole = bytes(&[3, 0x0102]);
        assert_eq!(
            whole,
            [2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]
        );
        whole.extend(b"task");
        let mut reader = Reader::new(&whole);
        let read = Conditions::read(&mut reader).expect("decodes");
        assert!(read.numbers().eq([3, 0x0102]));
        assert_eq!(reader.rest(), b"task");
    }

    #[test]
    fn too_many_unordered_repeated_or_cut_conditions_are_refused() {
        let many: Vec<u64> = (0..=u64::from(MAX_CONDITIONS)).collect();
        for numbers in [&many[..], &[2, 1], &[7, 7]] {
            assert!(Conditions::write(numbers, &mut Writer::new()).is_err());
            let mut raw = (numbers.len() as u32).to_le_bytes().to_vec();
            raw.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            assert!(Conditions::read(&mut Reader::new(&raw)).is_err());
        }
        let whole = bytes(&many[1..]);
        for len in 0..whole.len() {
            assert!(Conditions::read(&mut Reader::new(&whole[..len])).is_err());
        }
        // A count is judged before anything is read for it.
        assert!(Conditions::read(&mut Reader::new(&[0xff; 4])).is_err());
    }

    #[test]
    fn only_the_last_tasks_can_be_named() {
        let mut outcomes = Outcomes::new(3);
        assert_eq!(met(&outcomes, &[]), Ok(true));
        assert!(met(&outcomes, &[1]).is_err());
        for (number, completed) in [(1, true), (4, false), (5, true), (9, true)] {
            outcomes.note(number, completed);
        }
        assert_eq!(met(&outcomes, &[5, 9]), Ok(true));
        assert_eq!(met(&outcomes, &[4, 9]), Ok(false));
        for number in [0, 1, 6, 10, u64::MAX] {
            let unknown = UnknownCondition { number, window: 3 };
            assert_eq!(met(&outcomes, &[number]), Err(unknown));
        }
        outcomes.note(9, false);
        assert_eq!(met(&outcomes, &[9]), Ok(true), "the first verdict stands");
    }
}
