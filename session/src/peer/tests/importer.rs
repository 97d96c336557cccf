//! The importer's side, against an owner of ours and against owners that misbehave.

use super::super::transfers::merged_ranges;
use super::*;
use crate::runner::lifeline::Verdict;

/// A listener whose first connection is handed to `act` once its first request was read.
fn bad_owner(
    act: impl FnOnce(&mut TcpStream, FrameHeader) + Send + 'static,
) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("an importer");
        let (header, _) = read_frame(&mut stream).expect("a request");
        drop(listener);
        act(&mut stream, header);
    });
    (address, thread)
}

fn failed_fetch(
    limit: Duration,
    act: impl FnOnce(&mut TcpStream, FrameHeader) + Send + 'static,
) -> String {
    let (address, owner) = bad_owner(act);
    let importer = Importer::new(address, Ticket([1; 32]), 0, 256, limit);
    let text = importer.fetch(0, 256).expect_err("it cannot be read");
    // Whoever waits for the importer to hang up is let go.
    drop(importer);
    owner.join().expect("no panic");
    assert!(
        text.contains("buffer 5") && text.contains("worker 2"),
        "{text}"
    );
    text
}

#[test]
fn a_window_that_does_not_begin_at_zero_is_read_and_written_exactly_r_234() {
    let owner = Owner::new(LONG);
    // Over several requests, with odd ends.
    let (base, nbytes) = (1_001, 3 * u64::from(MAX_PEER_CHUNK_BYTES) + 7);
    let importer = Importer::of(&owner, base, nbytes);
    assert_eq!(
        importer.fetch(base, nbytes).expect("reachable"),
        pattern(base, nbytes)
    );
    let part = (base + 5, 1_500_000);
    importer
        .write_back(part.0, &vec![0xAA; part.1])
        .expect("reachable");
    let mut expected = pattern(0, NBYTES);
    expected[part.0 as usize..][..part.1].fill(0xAA);
    assert!(
        owner.bytes(0, NBYTES) == expected,
        "exactly the range was written"
    );
    // Each fetch sees what is there now.
    owner
        .region
        .host(base, 1)
        .expect("inside")
        .copy_in(0, &[9])
        .expect("writable");
    assert_eq!(importer.fetch(base, 1).expect("reachable"), [9]);
}

/// The owner closed the kept lane: the importer dials again, and the task never knows.
#[test]
fn a_kept_lane_that_was_closed_is_dialled_again() {
    let owner = Owner::new(LONG);
    let importer = Importer::of(&owner, 0, 64);
    importer.fetch(0, 64).expect("reachable");
    // Enough of others to push the idle lane out.
    let _flood: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut lane = owner.dial();
            let ticket = owner.grant(0, 4, AccessFlags::READ);
            ask(&mut lane, FrameType::PeerRead, &range(ticket, 0, 4), &[], 1);
            answer(&mut lane);
            lane
        })
        .collect();
    assert_eq!(importer.fetch(0, 64).expect("dials again"), pattern(0, 64));
}

/// A thousand fetches use one lane: no descriptor more than after the first.
#[test]
fn a_thousand_fetches_leave_descriptors_flat_r_244() {
    let owner = Owner::new(LONG);
    let importer = Importer::of(&owner, 3, 64);
    importer.fetch(3, 64).expect("reachable");
    let sockets = || {
        let port = format!(":{:04X}", owner.address.port());
        let table = std::fs::read_to_string("/proc/net/tcp").expect("proc");
        // What has ended and only lingers (TIME_WAIT, 06) goes at a time of its own, and may be another process's.
        let lives = |line: &&str| line.split_ascii_whitespace().nth(3) != Some("06");
        let lines = table.lines().filter(lives);
        lines.filter(|line| line.contains(&port)).count()
    };
    let before = sockets();
    for _ in 0..1_000 {
        assert_eq!(importer.fetch(3, 64).expect("reachable"), pattern(3, 64));
    }
    assert_eq!(sockets(), before);
}

#[test]
fn an_owner_that_dies_in_the_middle_fails_the_transfer_at_once() {
    let text = failed_fetch(LONG, |stream, header| {
        let mut bytes = frame(FrameType::PeerData, OWNER, header.sequence.0, &[0; 256]);
        bytes.truncate(100);
        stream.write_all(&bytes).expect("written");
    });
    assert!(text.contains("closed") || text.contains("reset"), "{text}");
}

#[test]
fn an_owner_that_stalls_or_drips_is_given_up_r_061() {
    for sent in [0, 10, 100] {
        let text = failed_fetch(Duration::from_millis(50), move |stream, header| {
            let bytes = frame(FrameType::PeerData, OWNER, header.sequence.0, &[0; 256]);
            stream.write_all(&bytes[..sent]).expect("written");
            // Until the importer hangs up.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert!(text.contains("no progress in time"), "{text}");
    }
}

#[test]
fn answers_that_were_not_asked_for_are_refused_r_071() {
    let cases: [(FrameType, u64, usize); 5] = [
        (FrameType::PeerData, 1, 255),
        (FrameType::PeerData, 2, 256),
        (FrameType::PeerDone, 1, 0),
        (FrameType::PeerRead, 1, 256),
        (FrameType::PeerRefused, 1, 5_000),
    ];
    for (frame_type, sequence, nbytes) in cases {
        let text = failed_fetch(LONG, move |stream, _| {
            let bytes = frame(frame_type, OWNER, sequence, &vec![0; nbytes]);
            stream.write_all(&bytes).expect("written");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert!(text.contains("not asked for"), "{text}");
    }
    let text = failed_fetch(LONG, |stream, _| {
        let bytes = frame(FrameType::PeerData, (SessionId(1), OWNER.1), 1, &[0; 256]);
        stream.write_all(&bytes).expect("written");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert!(text.contains("frame.session_id"), "{text}");
}

#[test]
fn an_owner_that_is_gone_is_named() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.local_addr().expect("bound")
    };
    let importer = Importer::new(address, Ticket([1; 32]), 0, 8, LONG);
    let text = importer.write_back(0, &[1]).expect_err("nobody listens");
    for part in ["written back", "worker 2", "refused", &address.to_string()] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_end_of_the_session_ends_a_transfer_at_once_r_010() {
    let (tell, told) = std::sync::mpsc::channel();
    let (address, owner) = bad_owner(move |stream, _| {
        tell.send(()).expect("the test waits");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let importer = Importer::new(address, Ticket([1; 32]), 0, 8, LONG);
    let lifeline = Arc::clone(&importer.lifeline);
    let ends = std::thread::spawn(move || {
        told.recv().expect("a request");
        lifeline.end(Verdict::Shutdown);
    });
    let text = importer.fetch(0, 8).expect_err("the session ends");
    assert!(text.contains("this session ends"), "{text}");
    drop(importer);
    ends.join().expect("no panic");
    owner.join().expect("no panic");
}

#[test]
fn overlapping_uses_of_an_import_are_moved_once() {
    let owner = Owner::new(LONG);
    let importer = Importer::of(&owner, 0, 100);
    let reads = Use {
        reads: true,
        writes: false,
    };
    let mut transfers = Transfers::default();
    for (offset, nbytes) in [(50, 10), (0, 20), (10, 30), (60, 1), (0, 0), (80, 5)] {
        transfers.add(&importer.fetched, offset, nbytes, reads);
    }
    assert_eq!(merged_ranges(transfers), [(0, 40), (50, 61), (80, 85)]);
}

#[test]
fn tags_decide_what_is_moved_and_access_without_them() {
    use echelon_runtime::Tag;
    let of = |tag, access| Use::of(tag, access).map(|usage| (usage.reads, usage.writes));
    let all = AccessFlags::READ_WRITE;
    assert_eq!(of(Some(Tag::Input), all), Ok((true, false)));
    assert_eq!(of(Some(Tag::Output), all), Ok((false, true)));
    assert_eq!(of(Some(Tag::InOut), all), Ok((true, true)));
    assert_eq!(of(Some(Tag::OutputExisting), all), Ok((true, true)));
    assert_eq!(of(None, all), Ok((true, true)));
    assert_eq!(of(None, AccessFlags::READ), Ok((true, false)));
    assert_eq!(of(None, AccessFlags::WRITE), Ok((false, true)));
    assert!(of(Some(Tag::OutputExisting), AccessFlags::WRITE).is_err());
    assert!(of(Some(Tag::NoDep), all).is_err_and(|text| text.contains("NO_DEP")));
}
