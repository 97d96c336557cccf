//! How the bytes of a buffer are reached.

use std::net::SocketAddr;
use std::sync::Arc;

use echelon_wire::codec::Decode as _;
use echelon_wire::frame::control::transfer::{ExportResult, TcpDescriptor};
use echelon_wire::frame::Features;

use super::stream::StreamRoute;
use super::BulkConfig;
use crate::endpoint::BufferKey;
use crate::memory::SharedRegion;
use crate::remote::transport::Side;

#[derive(Clone)]
pub(super) enum Route {
    /// Here, and whether it was just mapped.
    Mapped(Arc<SharedRegion>, bool),
    /// By data lanes.
    Stream(StreamRoute),
    /// By the command lane only.
    Frames,
}

/// True when the extensions let copies go around the command lane.
pub(in crate::remote) fn is_negotiated(side: Side) -> bool {
    let mapped = side.same_host && side.features.contains(Features::SAME_HOST);
    side.features.contains(Features::PEER_FENCE)
        && (mapped || side.features.contains(Features::DATA_LANE))
}

impl Route {
    /// What the export of a whole buffer says.
    pub(super) fn of(config: &BulkConfig, buffer: BufferKey, export: &ExportResult<'_>) -> Self {
        let BulkConfig {
            side,
            session,
            worker,
            host,
            ..
        } = *config;
        let Ok(descriptor) = TcpDescriptor::decode(&export.transport_descriptor) else {
            return Self::Frames;
        };
        // Opening it is the proof: its name is random, and only its owner, on this host, makes it (decision 0010).
        if side.same_host && side.features.contains(Features::SAME_HOST) {
            // Other files of `/dev/shm` are not for a session to name.
            let name = Some(&*descriptor.segment).filter(|name| name.starts_with("psm_"));
            let opened = name.map(|name| SharedRegion::open_posix(name, true, export.nbytes));
            if let Some(Ok(region)) = opened {
                return Self::Mapped(region, true);
            }
        }
        if !side.features.contains(Features::DATA_LANE) {
            return Self::Frames;
        }
        Self::Stream(StreamRoute {
            address: SocketAddr::new(host, descriptor.port),
            session,
            worker,
            ticket: descriptor.ticket,
            buffer,
        })
    }
}
