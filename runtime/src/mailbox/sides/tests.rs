//! The two sides in one process.

use super::*;

fn pair() -> (ParentSide, ChildSide, Arc<Bell>) {
    let bell = Bell::create().unwrap();
    let seat = bell.seat();
    seat.await_it();
    let parent = Mailbox::create(4096, 4096)
        .and_then(|mailbox| mailbox.seated(seat.number()))
        .and_then(Mailbox::into_parent_side)
        .unwrap();
    let child_bell = Bell::attach(bell.fd().try_clone_to_owned().unwrap(), None).unwrap();
    let child = ChildSide::attach(parent.fd().try_clone_to_owned().unwrap(), child_bell).unwrap();
    (parent, child, bell)
}

fn head(ticket: u64) -> RecordHead {
    RecordHead { kind: 1, ticket }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn records_pass_both_ways_and_ring() {
    let (mut parent, mut child, bell) = pair();
    let (seen, bell_seen) = (child.doorbell_value(), bell.value());
    assert!(parent.send(head(5), b"task").unwrap());
    assert!(child.wait(seen, soon()));
    let mut payload = Vec::new();
    assert_eq!(child.receive(&mut payload).unwrap(), Some(head(5)));
    assert_eq!(payload, b"task");
    assert!(child.send(head(5), b"done", soon()).unwrap());
    assert!(bell.wait(bell_seen, soon()));
    assert_eq!(parent.receive(&mut payload).unwrap(), Some(head(5)));
    assert_eq!(payload, b"done");
    assert_eq!(parent.receive(&mut payload).unwrap(), None);
}

#[test]
fn r_044_shutdown_is_sticky_whatever_is_in_flight() {
    let (mut parent, mut child, _bell) = pair();
    let seen = child.doorbell_value();
    parent.request_shutdown();
    assert!(child.wait(seen, soon()));
    let mut payload = Vec::new();
    for ticket in 0..100 {
        assert!(parent.send(head(ticket), b"control").unwrap());
        assert!(child.receive(&mut payload).unwrap().is_some());
        assert!(child.send(head(ticket), b"done", soon()).unwrap());
        assert!(parent.receive(&mut payload).unwrap().is_some());
        assert!(child.is_shutdown_requested());
    }
}

#[test]
fn a_child_waits_for_room_and_goes_on() {
    let (mut parent, mut child, bell) = pair();
    let late = Instant::now();
    let mut count = 0;
    while child.send(head(count), &[1; 1000], late).unwrap() {
        count += 1;
    }
    assert_eq!(count, 4);
    let mut seen = bell.value();
    let sender = std::thread::spawn(move || child.send(head(99), &[2; 1000], soon()).unwrap());
    let (mut payload, mut got) = (Vec::new(), 0);
    while got < 5 {
        if parent.receive(&mut payload).unwrap().is_some() {
            got += 1;
        } else {
            assert!(bell.wait(seen, soon()));
            seen = bell.value();
        }
    }
    assert!(sender.join().unwrap());
    assert_eq!(payload, [2; 1000]);
}

#[test]
fn r_231_a_mailbox_of_another_build_is_refused() {
    let (parent, _child, bell) = pair();
    let attach = || ChildSide::attach(parent.fd().try_clone_to_owned().unwrap(), Arc::clone(&bell));
    let poke = |offset, value| {
        Word64::new(&parent.region, offset)
            .unwrap()
            .store(value, Ordering::Release)
    };
    poke(64, 1);
    assert!(matches!(
        attach(),
        Err(MailboxError::Corrupt {
            what: "a reserved word",
            ..
        })
    ));
    poke(64, 0);
    poke(at::TASK_BYTES, 1 << 20);
    assert!(matches!(attach(), Err(MailboxError::Memory(_))));
    poke(at::TASK_BYTES, 5);
    assert!(matches!(
        attach(),
        Err(MailboxError::BadRingSize { bytes: 5, .. })
    ));
    // a child of another build is told apart, with what to do.
    poke(at::MAGIC, at::MAILBOX_MAGIC + (1 << 56));
    let Err(error) = attach() else {
        panic!("it must be refused")
    };
    let text = error.to_string();
    assert!(
        text.contains("mailbox's magic") && text.contains("reinstall"),
        "{text}"
    );
    assert!(matches!(
        Mailbox::create(100, 4096),
        Err(MailboxError::BadRingSize { .. })
    ));
}

#[test]
fn a_record_of_more_than_half_a_ring_is_refused() {
    let (mut parent, _child, _bell) = pair();
    let limit = parent.payload_max();
    let error = parent
        .send(head(0), &vec![0; limit as usize + 1])
        .unwrap_err();
    assert_eq!(
        error,
        MailboxError::RecordTooLarge {
            len: limit + 1,
            limit
        }
    );
    assert!(parent.send(head(0), &vec![0; limit as usize]).unwrap());
}

/// Design §15.13: parent, children and their children draw on the same leases.
#[test]
fn a_tree_of_workers_shares_its_leases() {
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let root = Bell::create().unwrap();
    assert!(root.leases_fd().is_none());
    let of_child = Bell::attach(copy(root.fd()), root.leases_fd().map(copy)).unwrap();
    let below = Bell::create_below(Some(&of_child.spinners())).unwrap();
    let of_grandchild = Bell::attach(copy(below.fd()), below.leases_fd().map(copy)).unwrap();
    let mut held = Vec::new();
    while let Some(slot) = root.slots().take() {
        held.push(slot);
    }
    for bell in [&of_child, &below, &of_grandchild] {
        assert_eq!(bell.slots().taken(), held.len());
    }
    drop(held);
    assert_eq!(of_grandchild.slots().taken(), 0);
}

#[test]
fn seats_are_given_out_once_and_again() {
    let bell = Bell::create().unwrap();
    let seats: Vec<_> = (0..at::SEATS_MAX).map(|_| bell.seat()).collect();
    let numbers: std::collections::HashSet<_> =
        seats.iter().map(crate::mailbox::Seat::number).collect();
    assert_eq!(numbers.len(), seats.len());
    assert!(!numbers.contains(&0));
    // Without a seat a child works all the same.
    assert_eq!(bell.seat().number(), 0);
    let last = seats.into_iter().next_back().unwrap();
    let (number, spot) = (last.number(), bell.spot_at(last.number()).unwrap().unwrap());
    spot.note();
    drop(last);
    assert_eq!(spot.seen(), Near::Apart, "nobody is there");
    assert!(bell.seat().number() <= at::SEATS_MAX && number > 0);
}

/// Design §5: as long as both sides look by themselves, the kernel is not called.
#[test]
fn two_sides_that_are_awake_make_no_system_call() {
    let (mut parent, mut child, bell) = pair();
    let rounds = 2000;
    let other = std::thread::spawn(move || {
        let (mut payload, mut taken) = (Vec::new(), 0);
        while taken < rounds {
            if let Some(head) = child.receive(&mut payload).unwrap() {
                assert!(child.send(head, b"done", soon()).unwrap());
                taken += 1;
            }
        }
        child.kernel_calls()
    });
    let (mut payload, mut sent, mut got) = (Vec::new(), 0, 0);
    while got < rounds {
        if sent < rounds && parent.send(head(sent), b"task").unwrap() {
            sent += 1;
        }
        if parent.receive(&mut payload).unwrap().is_some() {
            got += 1;
        }
    }
    // The child may have had to wait for room, and then the parent rings it awake again; nothing else is left to call for.
    let child_calls = other.join().unwrap();
    assert_eq!(child_calls.wakes, 0, "the parent never slept");
    assert_eq!(bell.kernel_calls(), KernelCalls::default());
    assert!(parent.wake_calls() <= child_calls.sleeps);
}
