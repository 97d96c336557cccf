//! What admits an importer.

use crate::limits::PEER_TICKET_BYTES;

/// 32 random bytes that the owner gave with an export. Who presents them may do what was exported, and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub [u8; PEER_TICKET_BYTES]);

impl std::fmt::Debug for Ticket {
    // It is a secret, and values of this type end up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_does_not_show_its_bytes() {
        assert_eq!(
            format!("{:?}", Ticket([7; PEER_TICKET_BYTES])),
            "Ticket(..)"
        );
    }
}
