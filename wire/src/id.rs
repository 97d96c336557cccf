//! Identities that travel on the wire, one type each so that they cannot be mixed up.

macro_rules! wire_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number as it stands on the wire.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

wire_id! {
    /// One session's identity, drawn at random by the parent; never 0 in a live session.
    SessionId(u64)
}
wire_id! {
    /// A worker's stable number under its parent, from 0; negative only in frames that are wrong.
    WorkerId(i32)
}
wire_id! {
    /// A command's number on one connection, from 1; HELLO has 0.
    Sequence(u64)
}
wire_id! {
    /// A buffer's number within its owner; never 0 for a live buffer.
    BufferId(u64)
}
wire_id! {
    /// Tells a buffer from an earlier one of the same number; never 0 for a live buffer.
    Generation(u64)
}
wire_id! {
    /// An export's number within its owner; never 0.
    ExportId(u64)
}
wire_id! {
    /// An import's number within its importer; never 0.
    ImportId(u64)
}
