//! Where the words of a mailbox and of a bell lie. Offsets are in bytes from the start of the segment.
//!
//! Both sides are this code, in one build; the magic and the version are there so that a wrong descriptor or a mix of two
//! builds is an error with a sentence and not a riddle. Each word has 128 bytes to itself: processors fetch cache
//! lines in pairs.

use super::MailboxError;

/// First eight bytes of a mailbox: `ECHMBOX` and the version of the layout.
pub const MAILBOX_MAGIC: u64 = u64::from_le_bytes(*b"ECHMBOX\x03");
/// First eight bytes of a bell.
pub const BELL_MAGIC: u64 = u64::from_le_bytes(*b"ECHBELL\x03");

/// Bytes before the first ring.
pub const HEADER_BYTES: u64 = 4096;
/// Size of a bell segment.
pub const BELL_BYTES: u64 = 8192;
/// Size of the task ring of a child.
pub const TASK_RING_BYTES: u64 = 1 << 20;
/// Size of the completion ring of a child.
pub const COMPLETION_RING_BYTES: u64 = 256 << 10;
/// The largest ring.
pub const RING_BYTES_MAX: u64 = 1 << 30;

pub(super) const MAGIC: u64 = 0;
pub(super) const TASK_BYTES: u64 = 8;
pub(super) const COMPLETION_BYTES: u64 = 16;
/// Zero up to the first word; checked on attach.
pub(super) const RESERVED: std::ops::Range<u64> = 24..128;
pub(super) const TASK_HEAD: u64 = 128;
pub(super) const TASK_TAIL: u64 = 256;
pub(super) const COMPLETION_HEAD: u64 = 384;
pub(super) const COMPLETION_TAIL: u64 = 512;
pub(super) const DOORBELL: u64 = 640;
pub(super) const DOORBELL_ASLEEP: u64 = 768;
pub(super) const SHUTDOWN: u64 = 896;
pub(super) const SEAT: u64 = 1024;
pub(super) const STALLED: u64 = 1152;

pub(super) const BELL_SEQUENCE: u64 = 128;
pub(super) const BELL_ASLEEP: u64 = 256;
pub(super) const BELL_SPOT: u64 = 384;
pub(super) const BELL_PRESENT: u64 = 512;
pub(super) const BELL_STANDBY: u64 = 640;
/// Leases of spinners, one behind the other.
pub(super) const BELL_LEASES: u64 = 1024;
pub(super) const LEASE_STRIDE: u64 = 64;
/// More than so many never spin at once, however many cores there are.
pub(super) const LEASES_MAX: u32 = 48;
/// Spots of children, by seat: written when a child comes to another core, so that they need no line of their own.
pub(super) const BELL_SEATS: u64 = 4096;
pub(super) const SEAT_STRIDE: u64 = 4;
/// Children beyond these have no seat.
pub(super) const SEATS_MAX: u32 = 1024;

const _: () = assert!(BELL_LEASES + LEASE_STRIDE * LEASES_MAX as u64 <= BELL_SEATS);
const _: () = assert!(BELL_SEATS + SEAT_STRIDE * SEATS_MAX as u64 <= BELL_BYTES);

/// Checks the size of a ring: whole pages, at least one.
pub(super) fn check_ring_bytes(bytes: u64) -> Result<(), MailboxError> {
    if bytes == 0 || bytes > RING_BYTES_MAX || bytes % 4096 != 0 {
        return Err(MailboxError::BadRingSize {
            bytes,
            max: RING_BYTES_MAX,
        });
    }
    Ok(())
}
