//! Frames out of a stream of bytes that may be cut anywhere. Pure: whoever has the socket reads into
//! [`FrameReader::space`], says how much came, and takes the frames that are whole.
//!
//! One read brings many small frames, which are decoded where they lie. A payload that does not fit the buffer beside its header
//! goes straight into memory of its own, which grows as bytes really arrive.

use std::ops::Range;
use std::time::{Duration, Instant};

use echelon_wire::error::DecodeError;
use echelon_wire::frame::{Features, Frame, FrameHeader};
use echelon_wire::id::{SessionId, WorkerId};
use echelon_wire::limits::HEADER_BYTES;

/// Bytes that are read at once, and the largest frame that is decoded in place.
const BUFFER_BYTES: usize = 64 * 1024;
/// The first piece of a larger payload's memory.
const FIRST_PIECE: usize = BUFFER_BYTES;

/// A frame whose payload lies in memory of its own.
#[derive(Debug)]
struct Large {
    header: FrameHeader,
    /// Payload bytes that are there.
    filled: usize,
}

/// Where a whole frame lies.
enum Place {
    Buffer(Range<usize>),
    Own,
}

/// A stream's bytes, as frames of one session and worker.
#[derive(Debug)]
pub struct FrameReader {
    session: SessionId,
    worker: WorkerId,
    features: Features,
    /// Payload bytes of a frame.
    limit: u32,
    buffer: Vec<u8>,
    /// What is in the buffer and was not taken.
    unread: Range<usize>,
    large: Option<Large>,
    /// Memory of a large payload: at least as long as what is there of it; kept for the next one.
    payload: Vec<u8>,
    /// When the last bytes came.
    came: Option<Instant>,
    begun: Option<Instant>,
}

impl FrameReader {
    /// A reader that takes frames of one session and worker only.
    #[must_use]
    pub fn new(session: SessionId, worker: WorkerId, features: Features, limit: u32) -> Self {
        Self {
            session,
            worker,
            features,
            limit,
            buffer: Vec::new(),
            unread: 0..0,
            large: None,
            payload: Vec::new(),
            came: None,
            begun: None,
        }
    }

    /// Where the next bytes belong; never empty once the frames that are whole were taken.
    pub fn space(&mut self) -> &mut [u8] {
        if let Some(Large { header, filled }) = &self.large {
            let (wanted, filled) = (header.payload_bytes as usize, *filled);
            if filled == self.payload.len() {
                // A peer that announces much and sends nothing costs one piece.
                let next = (2 * filled).clamp(FIRST_PIECE, FIRST_PIECE.max(wanted));
                self.payload.resize(next, 0);
            }
            let end = self.payload.len().min(wanted);
            return &mut self.payload[filled..end];
        }
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        if self.unread.start > 0 {
            // The beginning of a frame, or nothing.
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        &mut self.buffer[self.unread.end..]
    }

    /// So many bytes came into [`Self::space`].
    pub fn took(&mut self, count: usize, now: Instant) {
        self.came = Some(now);
        self.begun.get_or_insert(now);
        match &mut self.large {
            Some(large) => large.filled += count,
            None => self.unread.end += count,
        }
    }

    /// The next frame that is whole.
    ///
    /// # Errors
    /// [`DecodeError`] as soon as a header is there and wrong, before anything is allocated for its payload (R-068, R-069,
    ///
    #[allow(clippy::should_implement_trait)] // A frame borrows from the reader.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, DecodeError> {
        Ok(self.locate()?.map(|(header, place)| Frame {
            header,
            payload: match place {
                Place::Buffer(range) => &self.buffer[range],
                Place::Own => &self.payload[..header.payload_bytes as usize],
            },
        }))
    }

    /// As [`Self::next`], with a payload of its own: a small one is copied, a large one handed over.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_owned(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>, DecodeError> {
        Ok(self.locate()?.map(|(header, place)| {
            let payload = match place {
                Place::Buffer(range) => self.buffer[range].to_vec(),
                Place::Own => {
                    let mut payload = std::mem::take(&mut self.payload);
                    payload.truncate(header.payload_bytes as usize);
                    payload
                }
            };
            (header, payload)
        }))
    }

    fn locate(&mut self) -> Result<Option<(FrameHeader, Place)>, DecodeError> {
        if let Some(Large { header, filled }) = &self.large {
            if *filled < header.payload_bytes as usize {
                return Ok(None);
            }
            let header = *header;
            (self.large, self.begun) = (None, None);
            return Ok(Some((header, Place::Own)));
        }
        let Some(head) = self.buffer[self.unread.clone()].first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode_with(head, self.features)?;
        header.expect_identity(self.session, self.worker)?;
        if header.payload_bytes > self.limit {
            return Err(DecodeError::TooLong {
                field: "frame.payload_bytes",
                got: header.payload_bytes.into(),
                limit: self.limit.into(),
            });
        }
        let start = self.unread.start + HEADER_BYTES;
        let end = start + header.payload_bytes as usize;
        if end <= self.unread.end {
            self.unread.start = end;
            // What follows came with the last bytes: it has not been looked at before.
            self.begun = self.came.filter(|_| !self.unread.is_empty());
            return Ok(Some((header, Place::Buffer(start..end))));
        }
        if end - self.unread.start > BUFFER_BYTES {
            let there = start..self.unread.end;
            let filled = there.len();
            self.payload
                .resize(self.payload.len().max(FIRST_PIECE).max(filled), 0);
            self.payload[..filled].copy_from_slice(&self.buffer[there]);
            self.unread = 0..0;
            self.large = Some(Large { header, filled });
        }
        Ok(None)
    }

    /// When the frame that is not whole yet began.
    #[must_use]
    pub fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// True when a frame that is not whole began `limit` ago, however steadily it drips.
    #[must_use]
    pub fn is_late(&self, limit: Duration, now: Instant) -> bool {
        self.begun.is_some_and(|begun| now >= begun + limit)
    }

    /// Gives the memory of large payloads back.
    pub fn shrink(&mut self) {
        if self.large.is_none() {
            self.payload = Vec::new();
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
            reader.took(count, now);
            if count % 2 == 0 {
                while let Some(frame) = reader.next()? {
                    frames.push((frame.header.sequence.0, frame.payload.to_vec()));
                }
            } else {
                while let Some((header, payload)) = reader.next_owned()? {
                    frames.push((header.sequence.0, payload));
                }
            }
        }
        Ok(frames)
    }

    fn whole(payloads: &[Vec<u8>], pieces: &[usize]) {
        let mut stream = Vec::new();
        for (sequence, payload) in (1..).zip(payloads) {
            stream.extend(frame(sequence, payload));
        }
        let mut reader = reader();
        let frames = feed(&mut reader, &stream, pieces, Instant::now()).unwrap();
        let expected: Vec<_> = (1..).zip(payloads.to_vec()).collect();
        assert!(frames == expected);
        assert_eq!(reader.begun(), None);
    }

    proptest! {
        /// however the stream is cut, the same frames come out of it.
        #[test]
        fn r_060_cuts_do_not_matter(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            pieces in prop::collection::vec(1_usize..1200, 1..20),
        ) {
            whole(&payloads, &pieces);
        }

        /// also those that end at, before and behind the end of the buffer.
        #[test]
        fn r_060_sizes_around_the_buffer_do_not_matter(
            around in prop::collection::vec((0_usize..3, 0_usize..100), 1..5),
            pieces in prop::collection::vec(1_usize..100_000, 1..8),
        ) {
            let sizes = around.iter().map(|(n, below)| (n * BUFFER_BYTES + 50).saturating_sub(*below));
            let payloads: Vec<Vec<u8>> = sizes.map(|size| (0..size).map(|i| (i % 251) as u8).collect()).collect();
            whole(&payloads, &pieces);
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

    /// two frames, cut in two at each byte.
    #[test]
    fn r_060_every_cut_of_two_frames() {
        let stream = [frame(1, b"abc"), frame(2, b"defgh")].concat();
        for cut in 1..stream.len() {
            let pieces = [cut, stream.len() - cut];
            let frames = feed(&mut reader(), &stream, &pieces, Instant::now()).unwrap();
            assert_eq!(frames.len(), 2, "cut at {cut}");
        }
    }

    /// a length over the limit is refused before its memory exists, one within it costs what has arrived.
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

    /// a frame over the limit that both agreed on is refused before its memory exists.
    #[test]
    fn r_081_the_agreed_limit_is_kept() {
        let limit = 100_000;
        let fits = frame(1, &vec![0; limit as usize]);
        let frames = feed(&mut limited(limit), &fits, &[4096], Instant::now()).unwrap();
        assert_eq!(frames.len(), 1);
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
    fn the_largest_payload_arrives_and_its_memory_goes() {
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

    /// progress alone does not extend the bound, and the frames before it do not either.
    #[test]
    fn r_061_a_dripping_frame_is_late() {
        let start = Instant::now();
        let mut reader = reader();
        let stream = [frame(1, b"x"), frame(2, b"x")].concat();
        feed(&mut reader, &stream[..42], &[42], start).unwrap();
        for (second, byte) in (0..).zip(&stream[42..45]) {
            let now = start + Duration::from_secs(second);
            assert!(!reader.is_late(LIMIT, now));
            feed(&mut reader, &[*byte], &[1], now).unwrap();
        }
        reader.shrink();
        assert!(reader.is_late(LIMIT, start + LIMIT));
    }
}
