//! Commands about buffers that other workers reach: export, import, release.

mod export;
mod fence;
mod import;
mod tcp;

pub use export::{ExportRequest, ExportResult};
pub use fence::PeerFence;
pub use import::{ImportRequest, ImportResult, ReleaseImport};
pub use tcp::TcpDescriptor;
