//! The peer lane: an importer's session reads from and writes to the owner's session (extension `peer_fetch`).
//!
//! The importer dials; the owner answers each request in order, and each request stands for itself: it carries the ticket, so
//! that the owner checks every one, and a buffer that is freed meanwhile is refused from the next one on. Several requests may be
//! on their way. Session and worker in every header are the owner's, the sequence of a request is the importer's count, and
//! its answer repeats it.
//!
//! | no | frame | from | payload |
//! |---:|---|---|---|
//! | 65 | PEER_READ | importer | [`PeerRange`] |
//! | 66 | PEER_WRITE | importer | [`PeerRange`], then `nbytes` bytes |
//! | 67 | PEER_DATA | owner | the `nbytes` bytes of a read |
//! | 68 | PEER_DONE | owner | empty; the write is in the buffer |
//! | 69 | PEER_REFUSED | owner | [`PeerRefused`] |

mod range;
mod refused;
mod ticket;

pub use range::PeerRange;
pub use refused::{PeerRefused, Refusal};
pub use ticket::Ticket;
