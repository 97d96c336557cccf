//! The owner's port, against importers that do what they may and against others.

use super::*;
use crate::runner::lifeline::Verdict;

#[test]
fn what_a_ticket_does_not_allow_is_refused_and_the_lane_goes_on_r_114() {
    let owner = Owner::new(LONG);
    let reads = owner.grant(100, 50, AccessFlags::READ);
    let writes = owner.grant(100, 50, AccessFlags::WRITE);
    let mut lane = owner.dial();
    let good = range(reads, 100, 50);
    let stale = PeerRange {
        generation: Generation(2),
        ..good
    };
    let other = PeerRange {
        buffer_id: BufferId(6),
        ..good
    };
    let guessed = range(Ticket([7; 32]), 100, 50);
    let cases = [
        (FrameType::PeerRead, guessed, Refusal::Ticket),
        (FrameType::PeerRead, stale, Refusal::Buffer),
        (FrameType::PeerRead, other, Refusal::Buffer),
        (FrameType::PeerRead, range(reads, 99, 2), Refusal::Range),
        (FrameType::PeerRead, range(reads, 149, 2), Refusal::Range),
        (
            FrameType::PeerRead,
            range(reads, u64::MAX - 9, 9),
            Refusal::Range,
        ),
        (FrameType::PeerWrite, range(writes, 149, 2), Refusal::Range),
        (FrameType::PeerWrite, good, Refusal::Access),
        (FrameType::PeerRead, range(writes, 100, 50), Refusal::Access),
        (FrameType::PeerWrite, guessed, Refusal::Ticket),
    ];
    for (sequence, (frame_type, range, reason)) in cases.into_iter().enumerate() {
        let data = vec![
            0xEE;
            if frame_type == FrameType::PeerWrite {
                range.nbytes as usize
            } else {
                0
            }
        ];
        ask(&mut lane, frame_type, &range, &data, sequence as u64);
        assert_eq!(refusal_of(&mut lane), reason, "{range:?}");
    }
    ask(&mut lane, FrameType::PeerRead, &good, &[], 99);
    assert_eq!(
        answer(&mut lane),
        (FrameType::PeerData, 99, pattern(100, 50))
    );
    assert_eq!(
        owner.bytes(0, NBYTES),
        pattern(0, NBYTES),
        "nothing was written"
    );
}

#[test]
fn a_frame_for_another_session_or_worker_is_refused_and_ends_the_lane_r_114() {
    let owner = Owner::new(LONG);
    let good = range(owner.grant(0, 9, AccessFlags::READ), 0, 9)
        .to_bytes()
        .expect("encodes");
    for who in [(SessionId(78), OWNER.1), (OWNER.0, WorkerId(3))] {
        let mut lane = owner.dial();
        lane.write_all(&frame(FrameType::PeerRead, who, 1, &good))
            .expect("written");
        assert_eq!(refusal_of(&mut lane), Refusal::Identity);
        assert!(is_closed(&mut lane));
    }
    owner.serves();
}

/// what is no request ends its own lane, without an answer and before memory is taken for it.
#[test]
fn garbage_on_the_port_ends_its_own_lane_only_r_067_r_068() {
    let owner = Owner::new(LONG);
    let ticket = owner.grant(0, NBYTES, AccessFlags::READ_WRITE);
    let head = range(ticket, 0, 64).to_bytes().expect("encodes");
    let announce = |frame_type, payload_bytes: u32| {
        let mut bytes = frame(frame_type, OWNER, 1, &[]);
        bytes[32..36].copy_from_slice(&payload_bytes.to_le_bytes());
        bytes
    };
    let mut empty = head.clone();
    empty[56..60].copy_from_slice(&0_u32.to_le_bytes());
    let mut large = head.clone();
    large[56..60].copy_from_slice(&(MAX_PEER_CHUNK_BYTES + 1).to_le_bytes());
    let with = |mut bytes: Vec<u8>, rest: &[u8]| {
        bytes.extend(rest);
        bytes
    };
    let cases = [
        b"GET / HTTP/1.1\r\nHost: owner.example.org\r\n\r\n".to_vec(),
        vec![0xFF; 4096],
        frame(FrameType::Task, OWNER, 1, &head),
        frame(FrameType::PeerDone, OWNER, 1, &[]),
        frame(FrameType::PeerRead, OWNER, 1, &head[..63]),
        with(announce(FrameType::PeerRead, 65), &with(head.clone(), &[0])),
        with(announce(FrameType::PeerWrite, 64 + 63), &head),
        with(announce(FrameType::PeerWrite, 16 << 20), &head),
        frame(FrameType::PeerRead, OWNER, 1, &empty),
        frame(FrameType::PeerRead, OWNER, 1, &large),
        announce(FrameType::PeerWrite, u32::MAX),
    ];
    for bytes in cases {
        let mut lane = owner.dial();
        lane.write_all(&bytes).expect("written");
        assert!(is_closed(&mut lane), "{bytes:?}");
    }
    owner.serves();
}

#[test]
fn a_request_that_does_not_go_on_ends_its_own_lane_r_061() {
    let owner = Owner::new(Duration::from_millis(20));
    let ticket = owner.grant(0, NBYTES, AccessFlags::READ_WRITE);
    for kept in [1, HEADER_BYTES, HEADER_BYTES + 64, HEADER_BYTES + 70] {
        let mut payload = range(ticket, 1_000, 64).to_bytes().expect("encodes");
        payload.extend([1; 64]);
        let bytes = frame(FrameType::PeerWrite, OWNER, 1, &payload);
        let mut lane = owner.dial();
        lane.write_all(&bytes[..kept]).expect("written");
        assert!(is_closed(&mut lane), "{kept}");
    }
    let mut silent = owner.dial();
    assert!(is_closed(&mut silent), "who says nothing does not stay");
    owner.serves();
}

#[test]
fn a_peer_that_does_not_read_ends_its_own_lane_r_058() {
    let owner = Owner::new(Duration::from_millis(200));
    let ticket = owner.grant(0, NBYTES, AccessFlags::READ);
    let mut lane = owner.dial();
    // More answers than any socket holds; what ends it is the owner, who closes the lane.
    let payload = range(ticket, 0, MAX_PEER_CHUNK_BYTES)
        .to_bytes()
        .expect("encodes");
    let request = frame(FrameType::PeerRead, OWNER, 1, &payload);
    let error = loop {
        if let Err(error) = lane.write_all(&request) {
            break error;
        }
    };
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
    owner.serves();
}

/// More lanes than there are: the silent ones give way, those in use stay.
#[test]
fn a_flood_of_silent_lanes_keeps_nobody_out() {
    let owner = Owner::new(LONG);
    let ticket = owner.grant(0, NBYTES, AccessFlags::READ);
    let mut used = owner.dial();
    ask(&mut used, FrameType::PeerRead, &range(ticket, 0, 4), &[], 1);
    assert_eq!(answer(&mut used).2, [0, 1, 2, 3]);
    let flood: Vec<TcpStream> = (0..200).map(|_| owner.dial()).collect();
    owner.serves();
    ask(&mut used, FrameType::PeerRead, &range(ticket, 4, 2), &[], 2);
    assert_eq!(answer(&mut used).2, [4, 5]);
    let mut first = flood.into_iter().next().expect("one of them");
    assert!(is_closed(&mut first), "the oldest silent lane gave way");
}

/// When all lanes are in use the next importer is told so, and those that come after one has ended are served.
#[test]
fn importers_beyond_the_limit_replace_idle_ones() {
    let owner = Owner::new(LONG);
    let ticket = owner.grant(0, NBYTES, AccessFlags::READ);
    let mut idle: Vec<TcpStream> = (0..64).map(|_| owner.dial()).collect();
    for lane in &mut idle {
        ask(lane, FrameType::PeerRead, &range(ticket, 0, 4), &[], 1);
        assert_eq!(answer(lane).2, [0, 1, 2, 3]);
    }
    owner.serves();
    assert!(is_closed(&mut idle[0]), "the oldest idle lane gave way");
}

#[test]
fn a_freed_buffer_is_refused_from_the_next_request_on_r_119() {
    let owner = Owner::new(LONG);
    let importer = Importer::of(&owner, 8, 64);
    assert_eq!(importer.fetch(8, 64).expect("reachable"), pattern(8, 64));
    owner.peers.tickets().revoke(BUFFER.0);
    let text = importer.fetch(8, 64).expect_err("freed");
    for part in ["buffer 5", "worker 2", "freed", "import"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(importer.write_back(8, &[1]).is_err());
    // The region outlives its tickets only as long as somebody works on it.
    assert_eq!(Arc::strong_count(&owner.region), 1);
}

/// Freed in the middle of a transfer: what is on its way ends on memory that is still there, the next request is refused.
#[test]
fn freeing_during_a_transfer_ends_it_and_waits_for_nobody() {
    let owner = Owner::new(LONG);
    let ticket = owner.grant(0, NBYTES, AccessFlags::READ_WRITE);
    let mut lane = owner.dial();
    let mut payload = range(ticket, 0, 1_000).to_bytes().expect("encodes");
    payload.extend([0xCC; 1_000]);
    let bytes = frame(FrameType::PeerWrite, OWNER, 1, &payload);
    let (now, later) = bytes.split_at(HEADER_BYTES + 64 + 500);
    lane.write_all(now).expect("written");
    // The first half has arrived in the buffer: the request was admitted.
    let deadline = Instant::now() + LONG;
    while owner.bytes(499, 1) != [0xCC] {
        assert!(Instant::now() < deadline, "the first half did not arrive");
        std::thread::yield_now();
    }
    owner.peers.tickets().revoke(BUFFER.0);
    lane.write_all(later).expect("written");
    assert_eq!(answer(&mut lane).0, FrameType::PeerDone);
    ask(&mut lane, FrameType::PeerRead, &range(ticket, 0, 4), &[], 2);
    assert_eq!(refusal_of(&mut lane), Refusal::Ticket);
}

#[test]
fn the_same_window_has_one_ticket_and_another_window_another() {
    let owner = Owner::new(LONG);
    let read = owner.grant(0, 10, AccessFlags::READ);
    assert_eq!(read, owner.grant(0, 10, AccessFlags::READ));
    assert_ne!(read, owner.grant(0, 10, AccessFlags::READ_WRITE));
    assert_ne!(read, owner.grant(1, 9, AccessFlags::READ));
}

/// The owner's session ends while importers are connected, one of them in the middle of a request: its threads are joined.
#[test]
fn the_port_goes_with_its_session() {
    let owner = Owner::new(LONG);
    let ticket = owner.grant(0, NBYTES, AccessFlags::READ);
    let mut half = owner.dial();
    half.write_all(b"SLR3").expect("written");
    let mut used = owner.dial();
    ask(&mut used, FrameType::PeerRead, &range(ticket, 0, 4), &[], 1);
    answer(&mut used);
    owner.lifeline.end(Verdict::Shutdown);
    let address = owner.address;
    drop(owner);
    assert!(is_closed(&mut half) && is_closed(&mut used));
    assert!(TcpStream::connect(address).is_err());
}
