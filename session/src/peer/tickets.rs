//! What importers may do: a ticket for each exported window, dead when its buffer is.

use std::collections::HashMap;
use std::sync::Arc;

use echelon_runtime::memory::{HostMemory, SharedRegion};
use echelon_wire::buffer::AccessFlags;
use echelon_wire::frame::peer::{PeerRange, Refusal, Ticket};
use echelon_wire::id::{BufferId, Generation};
use echelon_wire::limits::PEER_TICKET_BYTES;
use parking_lot::Mutex;
use rustix::io::retry_on_intr;
use rustix::rand::{getrandom, GetRandomFlags};

/// Windows with a ticket in one session. The same window gets the same ticket, so that exporting again costs nothing.
const TICKETS_MAX: usize = 65_536;

/// What was exported of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Window {
    /// First byte in the buffer.
    pub(crate) offset: u64,
    /// Bytes; offset + nbytes lies within the buffer.
    pub(crate) nbytes: u64,
    /// What importers may do.
    pub(crate) access: AccessFlags,
}

#[derive(Debug)]
struct Grant {
    region: Arc<SharedRegion>,
    buffer: BufferId,
    generation: Generation,
    window: Window,
}

#[derive(Debug, Default)]
struct Table {
    grants: HashMap<Ticket, Grant>,
    /// The tickets of each buffer; ids are never used twice within a session.
    by_buffer: HashMap<BufferId, HashMap<Window, Ticket>>,
}

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// Too many windows.
    #[error("RESOURCE_EXHAUSTED: {TICKETS_MAX} exported windows, limit {TICKETS_MAX}; free buffers whose exports are not needed")]
    Full,
    /// The kernel gives no random bytes.
    #[error("getrandom: {0}")]
    Random(std::io::Error),
}

/// All tickets of a session.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<Table>);

impl Tickets {
    /// The ticket of a window.
    pub(crate) fn grant(
        &self,
        region: &Arc<SharedRegion>,
        (buffer, generation): (BufferId, Generation),
        window: Window,
    ) -> Result<Ticket, TicketError> {
        let mut table = self.0.lock();
        let known = table.by_buffer.get(&buffer);
        if let Some(ticket) = known.and_then(|tickets| tickets.get(&window)) {
            return Ok(*ticket);
        }
        if table.grants.len() >= TICKETS_MAX {
            return Err(TicketError::Full);
        }
        let ticket = random_ticket()?;
        let grant = Grant {
            region: Arc::clone(region),
            buffer,
            generation,
            window,
        };
        table.grants.insert(ticket, grant);
        table
            .by_buffer
            .entry(buffer)
            .or_default()
            .insert(window, ticket);
        Ok(ticket)
    }

    /// Ends every ticket of a buffer. A request that is being carried out ends by itself, on memory that it keeps alive.
    pub(crate) fn revoke(&self, buffer: BufferId) {
        let mut table = self.0.lock();
        let Some(tickets) = table.by_buffer.remove(&buffer) else {
            return;
        };
        for ticket in tickets.values() {
            table.grants.remove(ticket);
        }
    }

    /// The bytes that a request names, when its ticket allows it.
    pub(crate) fn admit(
        &self,
        range: &PeerRange,
        needed: AccessFlags,
    ) -> Result<HostMemory, (Refusal, String)> {
        let table = self.0.lock();
        let grant = table.grants.get(&range.ticket).ok_or_else(|| {
            let text = "the ticket is unknown: its buffer was freed, or it was never given; export and import again";
            (Refusal::Ticket, text.to_owned())
        })?;
        if (grant.buffer, grant.generation) != (range.buffer_id, range.generation) {
            let text = format!(
                "the ticket is not for buffer {} generation {}",
                range.buffer_id, range.generation
            );
            return Err((Refusal::Buffer, text));
        }
        let Window {
            offset,
            nbytes,
            access,
        } = grant.window;
        let (start, size) = (range.offset, u64::from(range.nbytes));
        // The decoder refused a sum over 64 bits; the window's own was checked against its buffer.
        if start < offset || start + size > offset + nbytes {
            let text = format!(
                "{size} bytes at offset {start} are outside the exported {nbytes} bytes at offset {offset}"
            );
            return Err((Refusal::Range, text));
        }
        if !access.contains(needed) {
            let text = format!(
                "access {} is needed and {} was exported; export it with more",
                needed.bits(),
                access.bits()
            );
            return Err((Refusal::Access, text));
        }
        grant
            .region
            .host(start, size)
            .map_err(|error| (Refusal::Range, error.to_string()))
    }
}

fn random_ticket() -> Result<Ticket, TicketError> {
    let mut bytes = [0; PEER_TICKET_BYTES];
    // The kernel gives up to 256 bytes at once.
    let got = retry_on_intr(|| getrandom(&mut bytes[..], GetRandomFlags::empty()));
    match got {
        Ok(PEER_TICKET_BYTES) => Ok(Ticket(bytes)),
        Ok(_) => Err(TicketError::Random(
            std::io::ErrorKind::UnexpectedEof.into(),
        )),
        Err(errno) => Err(TicketError::Random(errno.into())),
    }
}
