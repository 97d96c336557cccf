//! Properties of the messages between sessions, on random valid messages and on random bytes.

use echelon_wire::frame::control::transfer::TcpDescriptor;
use echelon_wire::frame::peer::{PeerRange, PeerRefused, Refusal, Ticket};
use echelon_wire::{BufferId, Decode, Encode, Generation, SessionId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

fn range() -> impl Strategy<Value = PeerRange> {
    let ids = (1..=u64::MAX, 1..=u64::MAX);
    (
        any::<[u8; 32]>(),
        ids,
        0..u64::MAX - (1 << 20),
        1..=1_u32 << 20,
    )
        .prop_map(|(ticket, (buffer, generation), offset, nbytes)| PeerRange {
            ticket: Ticket(ticket),
            buffer_id: BufferId(buffer),
            generation: Generation(generation),
            offset,
            nbytes,
        })
}

fn refused() -> impl Strategy<Value = PeerRefused<'static>> {
    (1..=6_u32, ".{0,60}").prop_filter_map("a code", |(code, text)| {
        let reason = Refusal::from_code(code)?;
        Some(PeerRefused {
            reason,
            message: text.into(),
        })
    })
}

fn descriptor() -> impl Strategy<Value = TcpDescriptor<'static>> {
    let texts = (".{1,40}", ".{0,40}");
    (1..=u64::MAX, any::<[u8; 32]>(), texts, 1..=u16::MAX).prop_map(
        |(session, ticket, (host, segment), port)| TcpDescriptor {
            session_id: SessionId(session),
            ticket: Ticket(ticket),
            host: host.into(),
            port,
            segment: segment.into(),
        },
    )
}

/// What is accepted encodes to the same bytes again; everything else is refused without a panic.
fn survives(bytes: &[u8]) {
    if let Ok(range) = PeerRange::decode(bytes) {
        assert_eq!(range.to_bytes().expect("accepted"), bytes);
    }
    if let Ok(refused) = PeerRefused::decode(bytes) {
        assert_eq!(refused.to_bytes().expect("accepted"), bytes);
    }
    if let Ok(descriptor) = TcpDescriptor::decode(bytes) {
        assert_eq!(descriptor.to_bytes().expect("accepted"), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn r_072_peer_messages_round_trip(range in range(), refused in refused(), descriptor in descriptor()) {
        let bytes = range.to_bytes().expect("valid");
        prop_assert_eq!(bytes.len(), 64);
        prop_assert_eq!(PeerRange::decode(&bytes), Ok(range));
        let bytes = refused.to_bytes().expect("valid");
        prop_assert_eq!(PeerRefused::decode(&bytes), Ok(refused));
        let bytes = descriptor.to_bytes().expect("valid");
        prop_assert_eq!(TcpDescriptor::decode(&bytes), Ok(descriptor));
    }

    /// a cut, a changed byte, a byte more, or nothing sensible at all.
    #[test]
    fn r_067_any_peer_bytes_are_survived(
        range in range(),
        refused in refused(),
        descriptor in descriptor(),
        at in any::<Index>(),
        value in any::<u8>(),
        noise in vec(any::<u8>(), 0..200),
    ) {
        survives(&noise);
        for bytes in [range.to_bytes(), refused.to_bytes(), descriptor.to_bytes()] {
            let mut bytes = bytes.expect("valid");
            let at = at.index(bytes.len());
            survives(&bytes[..at]);
            bytes[at] = value;
            survives(&bytes);
            bytes.push(value);
            survives(&bytes);
        }
    }
}
