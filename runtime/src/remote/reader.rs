//! Frames out of a stream of bytes that may be cut anywhere. Pure: whoever has the socket reads into
//! [`FrameReader::space`] and says how much came.

use std::time::{Duration, Instant};

use echelon_wire::error::DecodeError;
use echelon_wire::frame::{Features, Frame, FrameHeader};
use echelon_wire::id::{SessionId, WorkerId};
use echelon_wire::limits::HEADER_BYTES;

use super::state::LaneError;

/// The first piece of a payload's buffer; it grows as bytes really arrive.
const FIRST_PIECE: usize = 64 * 1024;

/// One frame at a time, its payload in a buffer that is used again.
pub(crate) struct FrameReader {
    session: SessionId,
    worker: WorkerId,
    features: Features,
    /// Payload bytes of a frame.
    limit: u32,
    header: [u8; HEADER_BYTES],
    /// Header bytes that are there.
    have: usize,
    /// The header, once it is whole and right.
    known: Option<FrameHeader>,
    /// At least as long as what is there of the payload.
    payload: Vec<u8>,
    /// Payload bytes that are there.
    filled: usize,
    begun: Option<Instant>,
    /// The frame was handed out.
    done: bool,
}

impl FrameReader {
    /// A reader that takes frames of one session and worker only.
    pub(crate) fn new(
        session: SessionId,
        worker: WorkerId,
        features: Features,
        limit: u32,
    ) -> Self {
        Self {
            session,
            worker,
            features,
            limit,
            header: [0; HEADER_BYTES],
            have: 0,
            known: None,
            payload: Vec::new(),
            filled: 0,
            begun: None,
            done: false,
        }
    }

    fn wanted(&self) -> usize {
        self.known.map_or(0, |header| header.payload_bytes as usize)
    }

    /// Where the next bytes belong: never empty, and never beyond the present frame.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.done {
            (self.have, self.filled, self.known, self.done) = (0, 0, None, false);
        }
        if self.have < HEADER_BYTES {
            return &mut self.header[self.have..];
        }
        let wanted = self.wanted();
        if self.filled == self.payload.len() {
            // A peer that announces much and sends nothing costs one piece.
            let next = (2 * self.filled).clamp(FIRST_PIECE, FIRST_PIECE.max(wanted));
            self.payload.resize(next, 0);
        }
        let end = self.payload.len().min(wanted);
        &mut self.payload[self.filled..end]
    }

    /// So many bytes came into [`Self::space`]. The frame when it is whole.
    ///
    /// # Errors
    /// [`DecodeError`] as soon as the header is there and wrong, before anything is allocated for a payload (R-068, R-069,
    ///
    pub(crate) fn took(
        &mut self,
        count: usize,
        now: Instant,
    ) -> Result<Option<Frame<'_>>, DecodeError> {
        self.begun.get_or_insert(now);
        if self.have < HEADER_BYTES {
            self.have += count;
            if self.have < HEADER_BYTES {
                return Ok(None);
            }
            let header = FrameHeader::decode_with(&self.header, self.features)?;
            header.expect_identity(self.session, self.worker)?;
            if header.payload_bytes > self.limit {
                return Err(DecodeError::TooLong {
                    field: "frame.payload_bytes",
                    got: header.payload_bytes.into(),
                    limit: self.limit.into(),
                });
            }
            self.known = Some(header);
        } else {
            self.filled += count;
        }
        let Some(header) = self.known.filter(|_| self.filled == self.wanted()) else {
            return Ok(None);
        };
        (self.begun, self.done) = (None, true);
        let payload = &self.payload[..self.filled];
        Ok(Some(Frame { header, payload }))
    }

    /// When the frame that is not whole yet began.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// Refuses a frame that is not whole `limit` after its first byte, however steadily it drips.
    pub(crate) fn check(&self, limit: Duration, now: Instant) -> Result<(), LaneError> {
        match self.begun {
            Some(begun) if now >= begun + limit => Err(LaneError::Drip(limit)),
            _ => Ok(()),
        }
    }

    /// Gives the buffer of a large payload back.
    pub(crate) fn shrink(&mut self) {
        if self.done || self.have < HEADER_BYTES {
            self.payload = Vec::new();
            // What was handed out is gone with it.
            if self.done {
                (self.have, self.filled, self.known, self.done) = (0, 0, None, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use echelon_wire::frame::{encode_frame, FrameType};
    use echelon_wire::id::Sequence;
    use echelon_wire::limits::MAX_PAYLOAD_BYTES;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    fn reader() -> FrameReader {
        limited(MAX_PAYLOAD_BYTES)
    }

    fn limited(limit: u32) -> FrameReader {
        FrameReader::new(SessionId(7), WorkerId(3), Features::NONE, limit)
    }

    fn frame(sequence: u64, payload: &[u8]) -> Vec<u8> {
        let kind = FrameType::Completion;
        encode_frame(kind, SessionId(7), WorkerId(3), Sequence(sequence), payload).unwrap()
    }

    /// Feeds bytes in pieces of the given sizes, over and over; the frames that came out.
    fn feed(
        reader: &mut FrameReader,
        mut bytes: &[u8],
        pieces: &[usize],
        now: Instant,
    ) -> Result<Vec<(u64, Vec<u8>)>, DecodeError> {
        let mut frames = Vec::new();
        let mut pieces = pieces.iter().cycle();
        while !bytes.is_empty() {
            let space = reader.space();
            let piece = pieces.next().copied().unwrap_or(1).max(1);
            let count = piece.min(space.len()).min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if let Some(frame) = reader.took(count, now)? {
                frames.push((frame.header.sequence.0, frame.payload.to_vec()));
            }
        }
        Ok(frames)
    }

    proptest! {
        /// however the stream is cut, the same frames come out of it.
        #[test]
        fn r_060_cuts_do_not_matter(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            pieces in prop::collection::vec(1_usize..120, 1..20),
        ) {
            let mut stream = Vec::new();
            for (sequence, payload) in (1..).zip(&payloads) {
                stream.extend(frame(sequence, payload));
            }
            let mut reader = reader();
            let frames = feed(&mut reader, &stream, &pieces, Instant::now()).unwrap();
            let expected: Vec<_> = (1..).zip(payloads).collect();
            prop_assert_eq!(frames, expected);
            prop_assert_eq!(reader.begun(), None);
        }

        /// whatever comes, it is a frame or an error.
        #[test]
        fn r_067_arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            pieces in prop::collection::vec(1_usize..50, 1..5),
        ) {
            let _ = feed(&mut reader(), &bytes, &pieces, Instant::now());
        }

        /// one wrong byte in the parts of the header that must be exact is refused: all before the sequence, and the flags.
        #[test]
        fn r_068_every_byte_of_identity_counts(at in prop_oneof![0_usize..24, 36_usize..40], flip in 1_u8..=255) {
            let mut bytes = frame(1, b"");
            bytes[at] ^= flip;
            // Another frame type that exists is not the reader's business.
            prop_assume!(!(8..12).contains(&at) || bytes[8] == 0 || bytes[8] > 7 || bytes[9..12] != [0; 3]);
            prop_assert!(feed(&mut reader(), &bytes, &[40], Instant::now()).is_err());
        }
    }

    /// a length over the limit is refused before its buffer exists, one within it costs what has arrived.
    #[test]
    fn r_069_announced_bytes_are_not_allocated() {
        let mut bytes = frame(1, b"");
        bytes[32..36].copy_from_slice(&(MAX_PAYLOAD_BYTES + 1).to_le_bytes());
        let mut greedy = reader();
        assert!(matches!(
            feed(&mut greedy, &bytes, &[40], Instant::now()),
            Err(DecodeError::TooLong { .. })
        ));
        assert_eq!(greedy.payload.capacity(), 0);
        bytes[32..36].copy_from_slice(&MAX_PAYLOAD_BYTES.to_le_bytes());
        bytes.extend([0; 100]);
        let mut silent = reader();
        assert!(feed(&mut silent, &bytes, &[4096], Instant::now())
            .unwrap()
            .is_empty());
        assert!(silent.payload.capacity() < 2 * FIRST_PIECE);
    }

    /// a frame over the limit that both agreed on is refused before its buffer exists.
    #[test]
    fn r_081_the_agreed_limit_is_kept() {
        let limit = 100_000;
        let mut reader = limited(limit);
        let fits = frame(1, &vec![0; limit as usize]);
        assert_eq!(
            feed(&mut reader, &fits, &[4096], Instant::now())
                .unwrap()
                .len(),
            1
        );
        let mut reader = limited(limit);
        let over = frame(1, &vec![0; limit as usize + 1]);
        let error = feed(&mut reader, &over, &[40], Instant::now()).unwrap_err();
        assert!(
            matches!(error, DecodeError::TooLong { limit: 100_000, .. }),
            "{error}"
        );
        assert_eq!(reader.payload.capacity(), 0);
    }

    #[test]
    fn the_largest_payload_arrives_and_its_buffer_goes() {
        let payload: Vec<u8> = (0..MAX_PAYLOAD_BYTES).map(|i| (i % 251) as u8).collect();
        let bytes = frame(9, &payload);
        let mut reader = reader();
        for _ in 0..2 {
            let frames = feed(&mut reader, &bytes, &[1 << 20], Instant::now()).unwrap();
            assert!(frames[0].1 == payload);
        }
        reader.shrink();
        assert_eq!(reader.payload.capacity(), 0);
        assert_eq!(
            feed(&mut reader, &frame(1, b"ab"), &[7], Instant::now()).unwrap(),
            [(1, b"ab".to_vec())]
        );
    }

    /// progress alone does not extend the bound.
    #[test]
    fn r_061_a_dripping_frame_is_refused() {
        let start = Instant::now();
        let mut reader = reader();
        for (second, byte) in frame(1, b"x").iter().take(3).enumerate() {
            let now = start + Duration::from_secs(second as u64);
            assert_eq!(reader.check(LIMIT, now), Ok(()));
            feed(&mut reader, &[*byte], &[1], now).unwrap();
        }
        reader.shrink();
        assert_eq!(
            reader.check(LIMIT, start + LIMIT),
            Err(LaneError::Drip(LIMIT))
        );
    }
}
