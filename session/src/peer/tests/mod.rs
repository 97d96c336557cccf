//! Owners and importers over real sockets: the owner's port against a client of ours, and both against peers that misbehave.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use echelon_runtime::memory::SharedRegion;
use echelon_wire::buffer::AccessFlags;
use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::peer::{PeerRange, PeerRefused, Ticket};
use echelon_wire::frame::{decode_frame_with, encode_frame, Features, FrameHeader, FrameType};
use echelon_wire::id::{BufferId, Generation, Sequence};
use echelon_wire::limits::{HEADER_BYTES, MAX_PEER_CHUNK_BYTES};

use super::*;

mod importer;
mod owner;
mod tables;

const OWNER: (SessionId, WorkerId) = (SessionId(77), WorkerId(2));
const BUFFER: (BufferId, Generation) = (BufferId(5), Generation(1));
const LONG: Duration = Duration::from_secs(60);
const NBYTES: u64 = 5 * MAX_PEER_CHUNK_BYTES as u64 + 12_345;

fn peers(limit: Duration) -> (Peers, Arc<Lifeline>) {
    let lifeline = Lifeline::new().expect("pipe");
    let identity = Identity {
        session: OWNER.0,
        worker: OWNER.1,
        address: Ipv4Addr::LOCALHOST,
        connect_host: "127.0.0.1".into(),
        limit,
    };
    (Peers::new(identity, Arc::clone(&lifeline)), lifeline)
}

/// An owner with one buffer, whose byte `n` is `n % 251`.
struct Owner {
    peers: Peers,
    region: Arc<SharedRegion>,
    address: SocketAddr,
    lifeline: Arc<Lifeline>,
}

impl Owner {
    fn new(limit: Duration) -> Self {
        let (peers, lifeline) = peers(limit);
        let region = SharedRegion::create_memfd(NBYTES, true).expect("memory");
        let pattern: Vec<u8> = (0..NBYTES).map(|at| (at % 251) as u8).collect();
        let host = region.host(0, NBYTES).expect("inside");
        host.copy_in(0, &pattern).expect("inside");
        let port = peers.reachable().expect("listens").port;
        Self {
            peers,
            region,
            address: (Ipv4Addr::LOCALHOST, port).into(),
            lifeline,
        }
    }

    fn grant(&self, offset: u64, nbytes: u64, access: AccessFlags) -> Ticket {
        let window = Window {
            offset,
            nbytes,
            access,
        };
        self.peers
            .tickets()
            .grant(&self.region, BUFFER, window)
            .expect("room")
    }

    fn bytes(&self, offset: u64, nbytes: u64) -> Vec<u8> {
        self.region.host(offset, nbytes).expect("inside").to_vec()
    }

    /// The owner still serves others.
    fn serves(&self) {
        let ticket = self.grant(0, NBYTES, AccessFlags::READ);
        let mut other = self.dial();
        ask(
            &mut other,
            FrameType::PeerRead,
            &range(ticket, 3, 4),
            &[],
            1,
        );
        assert_eq!(
            answer(&mut other),
            (FrameType::PeerData, 1, vec![3, 4, 5, 6])
        );
    }

    fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("listens");
        stream.set_read_timeout(Some(LONG)).expect("a timeout");
        stream.set_write_timeout(Some(LONG)).expect("a timeout");
        stream
    }
}

fn range(ticket: Ticket, offset: u64, nbytes: u32) -> PeerRange {
    PeerRange {
        ticket,
        buffer_id: BUFFER.0,
        generation: BUFFER.1,
        offset,
        nbytes,
    }
}

fn frame(
    frame_type: FrameType,
    owner: (SessionId, WorkerId),
    sequence: u64,
    payload: &[u8],
) -> Vec<u8> {
    encode_frame(frame_type, owner.0, owner.1, Sequence(sequence), payload).expect("encodes")
}

fn ask(to: &mut TcpStream, frame_type: FrameType, range: &PeerRange, data: &[u8], sequence: u64) {
    let mut payload = range.to_bytes().expect("encodes");
    payload.extend(data);
    to.write_all(&frame(frame_type, OWNER, sequence, &payload))
        .expect("written");
}

fn read_frame(from: &mut TcpStream) -> std::io::Result<(FrameHeader, Vec<u8>)> {
    let mut bytes = vec![0; HEADER_BYTES];
    from.read_exact(&mut bytes)?;
    let header = FrameHeader::decode_with(&bytes, Features::PEER_FETCH).expect("a header");
    bytes.resize(HEADER_BYTES + header.payload_bytes as usize, 0);
    from.read_exact(&mut bytes[HEADER_BYTES..])?;
    let whole = decode_frame_with(&bytes, Features::PEER_FETCH).expect("a frame");
    Ok((header, whole.payload.to_vec()))
}

fn answer(from: &mut TcpStream) -> (FrameType, u64, Vec<u8>) {
    let (header, payload) = read_frame(from).expect("an answer");
    assert_eq!((header.session_id, header.worker_id), OWNER);
    (header.frame_type, header.sequence.0, payload)
}

fn refusal_of(from: &mut TcpStream) -> Refusal {
    let (frame_type, _, payload) = answer(from);
    assert_eq!(frame_type, FrameType::PeerRefused);
    PeerRefused::decode(&payload).expect("a refusal").reason
}

/// True when the peer has closed the connection, in whatever way.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// An importer of the window; its own `Peers`, as in another process.
struct Importer {
    peers: Peers,
    lifeline: Arc<Lifeline>,
    fetched: Arc<Fetched>,
}

impl Importer {
    fn new(address: SocketAddr, ticket: Ticket, base: u64, nbytes: u64, limit: Duration) -> Self {
        let (peers, lifeline) = peers(limit);
        let SocketAddr::V4(address) = address else {
            panic!("{address}")
        };
        let fetched = Arc::new(Fetched {
            source: Source {
                session: OWNER.0,
                worker: OWNER.1,
                address,
                ticket,
                buffer: BUFFER.0,
                generation: BUFFER.1,
            },
            local: SharedRegion::create_memfd(nbytes, true).expect("memory"),
            base,
        });
        Self {
            peers,
            lifeline,
            fetched,
        }
    }

    fn of(owner: &Owner, base: u64, nbytes: u64) -> Self {
        let ticket = owner.grant(base, nbytes, AccessFlags::READ_WRITE);
        Self::new(owner.address, ticket, base, nbytes, LONG)
    }

    fn moves(&self, offset: u64, nbytes: u64) -> Transfers {
        let both = Use {
            reads: true,
            writes: true,
        };
        let mut transfers = Transfers::default();
        transfers.add(&self.fetched, offset, nbytes, both);
        transfers
    }

    fn fetch(&self, offset: u64, nbytes: u64) -> Result<Vec<u8>, String> {
        self.moves(offset, nbytes).fetch(&self.peers)?;
        let at = offset - self.fetched.base;
        Ok(self
            .fetched
            .local
            .host(at, nbytes)
            .expect("inside")
            .to_vec())
    }

    fn write_back(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let (at, nbytes) = (offset - self.fetched.base, bytes.len() as u64);
        let host = self.fetched.local.host(at, nbytes).expect("inside");
        host.copy_in(0, bytes).expect("writable");
        self.moves(offset, nbytes).write_back(&self.peers)
    }
}

fn pattern(offset: u64, nbytes: u64) -> Vec<u8> {
    (offset..offset + nbytes)
        .map(|at| (at % 251) as u8)
        .collect()
}
