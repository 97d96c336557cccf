//! The line of commands by itself.

use echelon_wire::frame::{FrameHeader, FrameType};
use echelon_wire::id::{SessionId, WorkerId};

use super::*;

fn command(sequence: u64, payload_bytes: usize) -> Command {
    let (session, worker, sequence) = (SessionId(1), WorkerId(2), Sequence(sequence));
    let kind = FrameType::Control;
    let header = FrameHeader::new(kind, session, worker, sequence, payload_bytes);
    Command {
        header: header.expect("a length"),
        payload: vec![0; payload_bytes],
    }
}

fn push(line: &mut Line, sequence: u64, bytes: usize) -> Result<(), String> {
    line.push(command(sequence, bytes), Scope::IN_ORDER, Hand::Main)
}

const FEW: Credits = Credits {
    max_commands: 3,
    max_bytes: 100,
    max_frame_bytes: 100,
};

#[test]
fn without_the_extension_sequences_say_nothing_and_order_is_kept() {
    let mut line = Line::new(None);
    for sequence in [5, 5, 0] {
        push(&mut line, sequence, 1).expect("taken");
    }
    for sequence in [5, 5, 0] {
        let (number, command) = line.take(Hand::Main).expect("a command");
        assert_eq!(command.header.sequence, Sequence(sequence));
        assert!(line.take(Hand::Main).is_none(), "one at a time");
        line.answering(number);
        line.done(number);
    }
    assert!(!line.waits_for(Hand::Main));
}

/// With pipelining a sequence that does not rise is refused, whatever became of the earlier one.
#[test]
fn a_repeated_or_lower_sequence_is_refused_where_pipelining_was_accepted() {
    for second in [3, 4] {
        let mut line = Line::new(Some(FEW));
        push(&mut line, 4, 1).expect("taken");
        let (number, _) = line.take(Hand::Main).expect("a command");
        line.answering(number);
        line.done(number);
        let error = push(&mut line, second, 1).expect_err("refused");
        assert!(error.contains("sequences rise"), "{error}");
    }
}

#[test]
fn more_than_the_credits_is_refused_and_an_answer_gives_credit_back() {
    let mut line = Line::new(Some(FEW));
    for sequence in 1..=3 {
        push(&mut line, sequence, 30).expect("within credits");
    }
    let (number, _) = line.take(Hand::Main).expect("a command");
    // Being carried out is not being answered.
    let error = push(&mut line, 4, 0).expect_err("a command too many");
    assert!(error.contains("4 commands"), "{error}");
    line.answering(number);
    push(&mut line, 5, 40).expect("the first was answered");
    line.done(number);
    let (number, _) = line.take(Hand::Main).expect("a command");
    line.answering(number);
    let error = push(&mut line, 6, 31).expect_err("a byte too many");
    assert!(error.contains("101 bytes"), "{error}");
    push(&mut line, 7, 30).expect("all of them");
}
