//! A data lane against sessions that are right, wrong, slow and gone.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::peer::{PeerRange, PeerRefused, Refusal, Ticket};
use echelon_wire::frame::{encode_frame, Features, FrameHeader, FrameType};
use echelon_wire::id::{BufferId, Generation, Sequence, SessionId, WorkerId};
use echelon_wire::limits::{HEADER_BYTES, PEER_HEAD_BYTES};

use super::stream::{Stream, StreamError, StreamRoute};
use crate::endpoint::BufferKey;
use crate::memory::HostMemory;

const LONG: Duration = Duration::from_secs(60);
const SESSION: SessionId = SessionId(0x5_0000_0009);
const WORKER: WorkerId = WorkerId(2);

struct Request {
    header: FrameHeader,
    range: PeerRange,
    data: Vec<u8>,
}

fn next(stream: &mut TcpStream) -> Option<Request> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head).ok()?;
    let header = FrameHeader::decode_with(&head, Features::PEER_FETCH).unwrap();
    assert_eq!(header.sequence.0 >> 32, 9, "its mark");
    let mut payload = vec![0; header.payload_bytes as usize];
    stream.read_exact(&mut payload).ok()?;
    let data = payload.split_off(PEER_HEAD_BYTES);
    Some(Request {
        header,
        range: PeerRange::decode(&payload).unwrap(),
        data,
    })
}

fn frame(kind: FrameType, session: SessionId, sequence: Sequence, payload: &[u8]) -> Vec<u8> {
    encode_frame(kind, session, WORKER, sequence, payload).unwrap()
}

/// A session that serves one connection, and the bytes of its buffer afterwards.
fn session(
    bytes: usize,
    mut answer: impl FnMut(&mut TcpStream, Request, &mut Vec<u8>) + Send + 'static,
) -> (StreamRoute, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; bytes];
        let (mut stream, _) = listener.accept().unwrap();
        while let Some(request) = next(&mut stream) {
            answer(&mut stream, request, &mut buffer);
        }
        buffer
    });
    (route_to(address), thread)
}

fn route_to(address: SocketAddr) -> StreamRoute {
    StreamRoute {
        address,
        session: SESSION,
        worker: WORKER,
        ticket: Ticket([7; 32]),
        buffer: BufferKey {
            buffer: BufferId(3),
            generation: Generation(1),
        },
    }
}

fn serve(stream: &mut TcpStream, request: Request, buffer: &mut [u8]) {
    let Request {
        header,
        range,
        data,
    } = request;
    assert_eq!((range.ticket, range.buffer_id.0), (Ticket([7; 32]), 3));
    let at = range.offset as usize..range.offset as usize + range.nbytes as usize;
    let answer = if header.frame_type == FrameType::PeerWrite {
        buffer[at].copy_from_slice(&data);
        frame(FrameType::PeerDone, SESSION, header.sequence, &[])
    } else {
        frame(FrameType::PeerData, SESSION, header.sequence, &buffer[at])
    };
    stream.write_all(&answer).unwrap();
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn dial(route: &StreamRoute, limit: Duration) -> Stream {
    Stream::dial(route.address, limit, Arc::default()).unwrap()
}

#[test]
fn bytes_go_there_and_come_back_in_many_requests() {
    let bytes = (11 << 20) + 5;
    let (route, session) = session(bytes + 10, |s, r, b| serve(s, r, b));
    let mut stream = dial(&route, LONG);
    let source = HostMemory::from_vec(pattern(bytes));
    stream.transfer(&route, true, 10, &source).unwrap();
    assert!(!stream.is_spent());
    let back = HostMemory::from_vec(vec![0; bytes]);
    stream.transfer(&route, false, 10, &back).unwrap();
    drop(stream);
    assert!(back.to_vec() == pattern(bytes));
    assert!(session.join().unwrap()[10..] == pattern(bytes));
}

/// What the transfer of 64 bytes comes to when the first request is answered like this.
fn against(
    to_remote: bool,
    limit: Duration,
    answer: impl FnMut(&mut TcpStream, Request, &mut Vec<u8>) + Send + 'static,
) -> StreamError {
    let (route, session) = session(64, answer);
    let memory = HostMemory::from_vec(vec![1; 64]);
    let mut stream = dial(&route, limit);
    let error = stream.transfer(&route, to_remote, 0, &memory).unwrap_err();
    drop(stream);
    session.join().unwrap();
    error
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let error = against(true, LONG, |stream, request, _| {
        let refused = PeerRefused {
            reason: Refusal::Ticket,
            message: "unknown".into(),
        };
        let bytes = refused.to_bytes().unwrap();
        let answer = frame(
            FrameType::PeerRefused,
            SESSION,
            request.header.sequence,
            &bytes,
        );
        stream.write_all(&answer).unwrap();
    });
    assert!(
        matches!(&error, StreamError::Refused { reason: Refusal::Ticket, message } if message == "unknown"),
        "{error}"
    );
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_breaks_the_lane() {
    type Answer = fn(Sequence) -> Vec<u8>;
    let wrong: [(&str, Answer); 5] = [
        ("another session", |at| {
            frame(FrameType::PeerData, SessionId(5), at, &[0; 64])
        }),
        ("another sequence", |at| {
            frame(FrameType::PeerData, SESSION, Sequence(at.0 + 1), &[0; 64])
        }),
        ("too many bytes", |at| {
            frame(FrameType::PeerData, SESSION, at, &[0; 65])
        }),
        ("too few bytes", |at| {
            frame(FrameType::PeerData, SESSION, at, &[0; 63])
        }),
        ("done and not data", |at| {
            frame(FrameType::PeerDone, SESSION, at, &[])
        }),
    ];
    for (what, answer) in wrong {
        let bytes = answer(Sequence(9 << 32 | 1));
        let error = against(false, LONG, move |stream, _, _| {
            stream.write_all(&bytes).unwrap()
        });
        assert!(matches!(error, StreamError::Broken(_)), "{what}: {error}");
    }
    let error = against(false, LONG, |stream, _, _| {
        stream.write_all(&[b'X'; HEADER_BYTES]).unwrap();
    });
    assert!(matches!(error, StreamError::Broken(_)), "{error}");
}

#[test]
fn a_lane_that_is_cut_in_the_middle_is_closed_and_one_that_stalls_is_late() {
    let half = |stream: &mut TcpStream, request: &Request| {
        let bytes = frame(
            FrameType::PeerData,
            SESSION,
            request.header.sequence,
            &[0; 64],
        );
        stream.write_all(&bytes[..bytes.len() - 10]).unwrap();
    };
    let error = against(false, LONG, move |stream, request, _| {
        half(stream, &request);
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    assert!(matches!(error, StreamError::Closed(_)), "{error}");
    let error = against(
        false,
        Duration::from_millis(20),
        move |stream, request, _| {
            half(stream, &request);
        },
    );
    assert!(
        error.to_string().contains("nothing moved for 20ms"),
        "{error}"
    );
}

#[test]
fn a_session_that_does_not_read_is_late_and_a_lane_that_is_called_off_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = route_to(listener.local_addr().unwrap());
    let source = HostMemory::from_vec(vec![1; 64 << 20]);
    let mut late = dial(&route, Duration::from_millis(20));
    let error = late.transfer(&route, true, 0, &source).unwrap_err();
    assert!(error.to_string().contains("nothing moved"), "{error}");
    let flag = Arc::new(AtomicBool::new(false));
    let mut stream = Stream::dial(route.address, LONG, Arc::clone(&flag)).unwrap();
    flag.store(true, Ordering::Relaxed);
    let error = stream.transfer(&route, true, 0, &source).unwrap_err();
    assert!(matches!(error, StreamError::Cancelled), "{error}");
}

#[test]
fn nobody_there_is_unreachable() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let refused = Stream::dial(address, LONG, Arc::default());
    assert!(matches!(refused, Err(StreamError::Unreachable(_))));
}
